"""What an ``.onnx`` file holds, read before ONNX Runtime sees it: its card, and whether it is safe to load.

A file from a stranger may point at other files of this machine as its weights ("external data"), or claim tensors of
any size. Only the protocol buffer's wire format is read here (https://protobuf.dev/programming-guides/encoding/), by
the field numbers of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from isicrt.engine.card import METADATA_KEY, ModelCard
from isicrt.engine.errors import ModelError

MAX_BYTES = 1 << 30
MAX_ELEMENTS = 1 << 28
"""Of one tensor."""
MAX_CARD_BYTES = 1 << 20
MAX_FIELDS = 1 << 22
"""Of a whole file. Those of the models that ship are ten thousand; a gigabyte of empty ones would take an hour."""
_MAX_DIMENSIONS_BYTES = 256
_MAX_DEPTH = 16

# Message -> field number -> message in that field. What is not here holds no tensor.
_NESTED = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_TENSOR_DIMS, _TENSOR_NAME, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 1, 8, 13, 14
_NODE_OPERATOR, _MODEL_METADATA = 4, 14

# A few bytes of these can keep a core busy for ever, or fill the memory while they are loaded: functions that call
# each other twice double with each level. No model that isicrt exports has one.
_ENDLESS = (b"Loop", b"Scan", b"SequenceMap")


def read_onnx_card(path: str | os.PathLike[str]) -> ModelCard:
    """The card of an ``.onnx`` file, after its structure was checked. See `read_onnx_file`."""
    return read_onnx_file(path)[0]


def read_onnx_file(path: str | os.PathLike[str]) -> tuple[ModelCard, bytes]:
    """The card of an ``.onnx`` file and the whole file, after its structure was checked. Nothing of it is executed.

    Who is to run it loads these bytes: another file may lie there a moment later.

    Raises:
        ModelError: not an ONNX file, larger than `MAX_BYTES`, with weights in other files, with a tensor of more than
            `MAX_ELEMENTS`, with loops or functions of its own, or without a valid card.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ModelError(f"{path}: {size / 2**30:.1f} GiB is more than a model of isicrt may have")
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        _check(memoryview(data), "model", path, 0, itertools.repeat(True, MAX_FIELDS))
        card = _card(memoryview(data), path)
    except (IndexError, ValueError) as error:
        raise ModelError(f"{path}: not an ONNX file, or a damaged one: {error}") from error
    if card is None:
        raise ModelError(f"{path}: carries no model card. isicrt runs models made by `isicrt build-engine`.")
    try:
        return ModelCard.from_json(card), data
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def _check(message: memoryview, kind: str, path: Path, depth: int, left: Iterator[bool]) -> None:
    """`left`: has an item for each field that may still be read."""
    if depth > _MAX_DEPTH:
        raise ModelError(f"{path}: its graphs are nested more than {_MAX_DEPTH} deep")
    if kind == "tensor":
        _check_tensor(message, path, left)
        return
    nested = _NESTED[kind]
    for number, value in _fields(message, left):
        if number in nested:
            if isinstance(value, int):
                raise ValueError(f"field {number} of a {kind} is a number")
            _check(value, nested[number], path, depth + 1, left)
        elif kind == "node" and number == _NODE_OPERATOR and not isinstance(value, int) and bytes(value) in _ENDLESS:
            raise ModelError(f"{path}: has a {bytes(value).decode()} node. That is refused: it may never end")
    if kind == "function":
        raise ModelError(f"{path}: has functions of its own. That is refused: export it with them inlined")


def _check_tensor(message: memoryview, path: Path, left: Iterator[bool]) -> None:
    elements, name, external = 1, "", False
    for number, value in _fields(message, left):
        if number == _TENSOR_DIMS:
            for size in [value] if isinstance(value, int) else _packed(value):
                elements = min(elements * size, 1 << 64)
        elif number == _TENSOR_NAME and not isinstance(value, int):
            name = bytes(value[:200]).decode("utf-8", "backslashreplace")
        elif number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value != 0):
            external = True
    if external:
        raise ModelError(
            f"{path}: tensor {name!r} has its data in another file. That is refused: a model of isicrt is one file. "
            "Save it with its weights inside (`isicrt build-engine` does)"
        )
    if elements > MAX_ELEMENTS:
        raise ModelError(f"{path}: tensor {name!r} claims {elements} elements; more than {MAX_ELEMENTS} are not loaded")


def _card(message: memoryview, path: Path) -> bytes | None:
    left = itertools.repeat(True, MAX_FIELDS)
    for number, value in _fields(message, left):
        if number == _MODEL_METADATA and not isinstance(value, int):
            entry = {key: bytes(text) for key, text in _fields(value, left) if not isinstance(text, int)}
            if entry.get(1) == METADATA_KEY.encode():
                card = entry.get(2, b"")
                if len(card) > MAX_CARD_BYTES:
                    raise ModelError(f"{path}: its model card has {len(card)} bytes; {MAX_CARD_BYTES} are read")
                return card
    return None


def _fields(message: memoryview, left: Iterator[bool]) -> Iterator[tuple[int, int | memoryview]]:
    """Field numbers and values: a number, or the bytes of what has a length. Raises IndexError or ValueError."""
    position = 0
    while position < len(message):
        if not next(left, False):
            raise ValueError(f"more than {MAX_FIELDS} fields")
        tag, position = _varint(message, position)
        if tag < 8:
            raise ValueError("field 0")
        if tag >> 32:  # ONNX Runtime drops the upper bits: what passes for another field here would be a weight there
            raise ValueError(f"field {tag >> 3}")
        number, wire = tag >> 3, tag & 7
        value: int | memoryview
        if wire == 0:
            value, position = _varint(message, position)
        elif wire in (1, 2, 5):
            length = {1: 8, 5: 4}.get(wire, 0)
            if wire == 2:
                length, position = _varint(message, position)
            if length > len(message) - position:
                raise ValueError(f"field {number} is longer than what it is in")
            value, position = message[position : position + length], position + length
        else:
            raise ValueError(f"wire type {wire}")
        yield number, value


def _packed(data: memoryview) -> Iterator[int]:
    if len(data) > _MAX_DIMENSIONS_BYTES:
        raise ValueError(f"a tensor with {len(data)} bytes of dimensions")
    position = 0
    while position < len(data):
        value, position = _varint(data, position)
        yield value


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number of more than 64 bits")
