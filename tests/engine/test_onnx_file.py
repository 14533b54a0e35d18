"""What is read of an ONNX file before any native code sees it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from isicrt.engine import onnx_file
from isicrt.engine.card import METADATA_KEY
from isicrt.engine.errors import ModelError
from isicrt.engine.onnx_file import read_onnx_card
from isicrt.engine.onnx_runtime import OnnxRuntime
from tests.tiny_models import darkness_card


def _outside(location: str) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(np.zeros(64, np.float32), "weights")
    set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    return tensor


def _in_a_node(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def _in_a_subgraph(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    inner = helper.make_graph([], "inner", [], [], [tensor])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))


def _in_a_function(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    model.functions.append(helper.make_function("d", "f", [], ["c"], [node], []))


@pytest.mark.parametrize("location", ["weights.bin", "../secret", "/etc/passwd"])
@pytest.mark.parametrize(
    "put",
    [lambda model, tensor: model.graph.initializer.append(tensor), _in_a_node, _in_a_subgraph, _in_a_function],
    ids=["initializer", "node", "subgraph", "function"],
)
def test_weights_in_other_files_are_refused(
    darkness_onnx: Path, tmp_path: Path, put: Callable[..., None], location: str
) -> None:
    model = onnx.load(darkness_onnx)
    put(model, _outside(location))
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    for load in (read_onnx_card, OnnxRuntime):
        with pytest.raises(ModelError, match="tensor 'weights' has its data in another file"):
            load(path)


def _varint(value: int) -> bytes:
    """A number as protocol buffers have it."""
    data = bytearray([value & 127])
    while value := value >> 7:
        data[-1] |= 128
        data.append(value & 127)
    return bytes(data)


def _delimited(number: int, data: bytes, upper: int = 0) -> bytes:
    return _varint(number << 3 | 2 | upper << 32) + _varint(len(data)) + data


@pytest.mark.parametrize(
    ("upper", "location", "message"),
    [
        pytest.param(0, 1, "data in another file", id="as_it_should_be"),
        pytest.param(1, 1, "not an ONNX file", id="fields_of_more_than_32_bits"),
        pytest.param(2, 1 | 1 << 32, "not an ONNX file", id="also_the_location"),
        pytest.param(0, 1 | 1 << 32, "data in another file", id="the_location_alone"),
    ],
)
def test_what_only_onnx_runtime_would_take_for_weights_elsewhere(
    darkness_onnx: Path, tmp_path: Path, upper: int, location: int, message: str
) -> None:
    # ONNX Runtime 1.32 reads 32 bits of a field's number and of an enumeration, and then the file beside the model.
    where = onnx.StringStringEntryProto(key="location", value="secret").SerializeToString()
    tensor = TensorProto(dims=[1], data_type=TensorProto.UINT8, name="outside").SerializeToString()
    tensor += _delimited(13, where, upper) + _varint(14 << 3 | upper << 32) + _varint(location)
    model = onnx.load(darkness_onnx)
    graph = model.graph.SerializeToString() + _delimited(5, tensor)
    model.ClearField("graph")
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString() + _delimited(7, graph))
    for load in (read_onnx_card, OnnxRuntime):
        with pytest.raises(ModelError, match=message):
            load(path)


def test_a_tensor_of_any_size_is_refused(darkness_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(darkness_onnx)
    model.graph.initializer.append(TensorProto(dims=[1 << 20, 1 << 20], data_type=TensorProto.FLOAT, name="huge"))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="tensor 'huge' claims 1099511627776 elements"):
        read_onnx_card(tmp_path / "m.onnx")


def test_deep_graphs_are_refused(darkness_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(darkness_onnx)
    graph = helper.make_graph([], "leaf", [], [])
    for _ in range(10):
        graph = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=graph)], "branch", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=graph))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="nested more than"):
        read_onnx_card(tmp_path / "m.onnx")


def test_functions_of_its_own_are_refused(darkness_onnx: Path, tmp_path: Path) -> None:
    # Each calls the next one twice: with 30 of them ONNX Runtime would load a billion nodes.
    model = onnx.load(darkness_onnx)
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("x", 1)]
    for n in range(30):
        twice = [helper.make_node(f"f{n + 1}", [a], [b], domain="x") for a, b in (("a", "b"), ("b", "c"))]
        once = [helper.make_node("Identity", ["a"], ["c"])]
        model.functions.append(helper.make_function("x", f"f{n}", ["a"], ["c"], twice if n < 29 else once, imports))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="functions of its own"):
        OnnxRuntime(tmp_path / "m.onnx")


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("operator", ["Loop", "Scan", "SequenceMap"])
def test_loops_are_refused(darkness_onnx: Path, tmp_path: Path, operator: str, inside: bool) -> None:
    model = onnx.load(darkness_onnx)
    node = helper.make_node(operator, ["x"], ["y"], body=helper.make_graph([], "body", [], []))
    if inside:
        node = helper.make_node("If", ["x"], ["y"], then_branch=helper.make_graph([node], "branch", [], []))
    model.graph.node.append(node)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=f"has a {operator} node"):
        OnnxRuntime(tmp_path / "m.onnx")


def test_the_card_is_read(darkness_onnx: Path) -> None:
    assert read_onnx_card(darkness_onnx) == darkness_card()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "carries no model card"),
        (b"rubbish", "not an ONNX file"),
        (b"\xff" * 40, "not an ONNX file"),
        (b"\x3a\xff\x01abc", "not an ONNX file"),
        (bytes(100), "field 0"),
        (b"\x08\x00" * 1001, "more than 1000 fields"),
        (_delimited(7, _delimited(5, b"\x08\x02" * 1001)), "more than 1000 fields"),
        (_delimited(7, _delimited(5, _delimited(1, bytes(300)))), "300 bytes of dimensions"),
        (_delimited(7, _delimited(5, _delimited(1, b"\x7f" * 200))), "more than 268435456 are not loaded"),
    ],
)
def test_what_is_no_onnx_file(tmp_path: Path, data: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "MAX_FIELDS", 1000)
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(ModelError, match=message):
        read_onnx_card(tmp_path / "m.onnx")


@pytest.mark.parametrize(("name", "limit"), [("MAX_BYTES", 100), ("MAX_CARD_BYTES", 10)])
def test_limits(darkness_onnx: Path, name: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, name, limit)
    with pytest.raises(ModelError, match=r"more than a model|are read"):
        read_onnx_card(darkness_onnx)


def test_a_bad_card_names_its_field(darkness_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(darkness_onnx)
    text = darkness_card().to_json().replace('"threshold": 0.5', '"threshold": "high"')
    helper.set_model_props(model, {METADATA_KEY: text})
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"m\.onnx: model card: field 'threshold' must be of type float, not 'high'"):
        OnnxRuntime(tmp_path / "m.onnx")


def test_mutated_models_are_read_or_refused(darkness_onnx: Path, tmp_path: Path) -> None:
    original = darkness_onnx.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(300):
        data = bytearray(original)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / "m.onnx").write_bytes(data)
        try:
            read_onnx_card(tmp_path / "m.onnx")
        except ModelError as error:
            refused += 1
            assert str(error).startswith(f"{tmp_path / 'm.onnx'}: ")  # noqa: PT017
    assert 0 < refused < 300
