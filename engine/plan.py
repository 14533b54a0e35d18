"""The ``.plan`` file: a model card, then the plan that TensorRT serialised.

    magic       12 bytes   b"ISICRT-PLAN" and the format's number
    lengths     4 + 8      card and plan in bytes, little-endian
    checksum    32 bytes   SHA-256 of the card
    card        JSON, UTF-8; its builder["plan_sha256"] is the SHA-256 of the plan
    plan        as the builder gave it

Everything is checked before a byte of the plan reaches TensorRT. This finds accidents, not attacks: a plan is code
that runs on the GPU, so load only plans that you trust.
"""

from __future__ import annotations

import hashlib
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from isicrt.engine.card import ModelCard
from isicrt.engine.errors import ModelError
from isicrt.engine.masks import replace_file
from isicrt.engine.onnx_file import read_onnx_card
from isicrt.engine.rebuild import advice_without_builder, builder_problem, rebuild_advice

MAGIC = b"ISICRT-PLAN\x01"
MAX_CARD_BYTES = 1 << 20
MAX_PLAN_BYTES = 1 << 34
_LENGTHS = struct.Struct("<IQ")
_HEADER_BYTES = len(MAGIC) + _LENGTHS.size + 32


def write_plan(path: str | os.PathLike[str], card: ModelCard, plan: bytes) -> None:
    """Write a plan with its card in front; ``plan_sha256`` is added to the card's ``builder``.

    Raises:
        ModelError: the card or the plan is larger than the format allows, or the plan is empty.
        OSError: it cannot be written; nothing is left behind.
    """
    card = card.replace(builder=dict(card.builder) | {"plan_sha256": hashlib.sha256(plan).hexdigest()})
    text = card.to_json().encode()
    if len(text) > MAX_CARD_BYTES or not 0 < len(plan) <= MAX_PLAN_BYTES:
        raise ModelError(f"{path}: a card of {len(text)} and a plan of {len(plan)} bytes do not fit a .plan file")
    header = MAGIC + _LENGTHS.pack(len(text), len(plan)) + hashlib.sha256(text).digest()
    replace_file(path, header + text + plan)


@dataclass(frozen=True)
class PlanFile:
    """A plan as it was read."""

    card: ModelCard
    plan: bytes
    """As the builder gave it."""
    digest: str
    """SHA-256 of the whole file, in hexadecimal, whatever lies there by now."""


def read_plan(path: str | os.PathLike[str]) -> tuple[ModelCard, bytes]:
    """Card and plan, see `read_plan_file`."""
    file = read_plan_file(path)
    return file.card, file.plan


def read_plan_file(path: str | os.PathLike[str]) -> PlanFile:
    """Read a plan and its card, and check both against their SHA-256.

    Raises:
        ModelError: not a plan of ours, another format, truncated, altered, or built by what this isicrt does not know.
            The message says which and how to build the plan again.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            # Of the file that is open: another may take its name at any time.
            card, head, plan_bytes = _read_card(file, path, os.fstat(file.fileno()).st_size)
            plan = file.read(plan_bytes)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(plan).hexdigest()
    recorded = card.builder.get("plan_sha256")
    if digest != recorded:
        raise ModelError(
            f"{path}: altered: the plan's SHA-256 is {digest}, its card says {recorded}. "
            f"It is not loaded. {rebuild_advice(card, path)}"
        )
    whole = hashlib.sha256(head)
    whole.update(plan)
    return PlanFile(card, plan, whole.hexdigest())


def _read_card(file: BinaryIO, path: Path, size: int) -> tuple[ModelCard, bytes, int]:
    """The card, the bytes that it was read from, and how many bytes of plan follow them."""
    card: ModelCard | None = None

    def again() -> str:  # looked for only where it is wanted: it reads the ONNX file beside the plan
        return advice_without_builder(path) if card is None else rebuild_advice(card, path)

    header = file.read(_HEADER_BYTES)
    if header[: len(MAGIC) - 1] != MAGIC[:-1]:
        raise ModelError(f"{path}: {_what_else(path, size)}")
    if header[len(MAGIC) - 1 : len(MAGIC)] not in (MAGIC[-1:], b""):
        raise ModelError(f"{path}: plan format {header[len(MAGIC) - 1]}; this isicrt reads {MAGIC[-1]}. {again()}")
    if len(header) < _HEADER_BYTES:
        raise ModelError(f"{path}: truncated: it ends within the header, after {size} bytes. {again()}")
    card_bytes, plan_bytes = _LENGTHS.unpack_from(header, len(MAGIC))
    if not 0 < card_bytes <= MAX_CARD_BYTES or not 0 < plan_bytes <= MAX_PLAN_BYTES:
        raise ModelError(f"{path}: altered: its header claims {card_bytes} + {plan_bytes} bytes. {again()}")
    expected = _HEADER_BYTES + card_bytes + plan_bytes
    text, problem = file.read(card_bytes), ""
    if len(text) == card_bytes:
        digest, recorded = hashlib.sha256(text).digest(), header[-32:]
        if digest == recorded or _is_slip(digest, recorded):
            card, problem = _checked_card(path, text)
        if digest != recorded:
            said = f"its model card's SHA-256 is {digest.hex()}, the header says {recorded.hex()}"
            raise ModelError(f"{path}: altered: {said}. {again()}")
    if size < expected:
        raise ModelError(f"{path}: truncated: {size} of {expected} bytes are there. {again()}")
    if size > expected:
        raise ModelError(f"{path}: altered: {size - expected} bytes follow the plan's end. {again()}")
    if card is None:
        raise ModelError(problem)
    return card, header + text, plan_bytes


def _checked_card(path: Path, text: bytes) -> tuple[ModelCard | None, str]:
    """The card of a plan; or None, and what is wrong with it and what to do."""
    try:
        card = ModelCard.from_json(text)
    except ModelError as error:
        said = str(error)  # of another isicrt's card it says itself what to do, in whole sentences
        return None, f"{path}: {said}" if said.endswith(".") else f"{path}: {said}. {advice_without_builder(path)}"
    problem = builder_problem(card.builder)
    if card.precision == "int8":
        problem = "its card says int8, and isicrt builds plans with --fp16 and --fp32"
    if problem:
        return None, f"{path}: {problem}. {advice_without_builder(path, card)}"
    return card, ""


def _is_slip(digest: bytes, recorded: bytes) -> bool:
    """Whether two SHA-256 are of the same bytes, and one of them was altered: those of two texts share a byte at most
    by chance, and never half of them."""
    return sum(one == other for one, other in zip(digest, recorded, strict=True)) >= len(digest) // 2


def _what_else(path: Path, size: int) -> str:
    """What a file is that is no plan of ours, and what to do."""
    if size == 0:
        return f"is empty. {advice_without_builder(path)}"
    with suppress(ModelError):
        read_onnx_card(path)
        return f"is an ONNX file and no plan: rename it to {path.with_suffix('.onnx').name}"
    what = "not a plan made by `isicrt build-engine` (a bare TensorRT engine has no model card)"
    return f"{what}. {advice_without_builder(path)}"
