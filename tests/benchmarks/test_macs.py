"""Counting is checked against hand-made graphs, and against the numbers that the docs give for our networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from isicrt.benchmarks.macs import count_macs, count_parameters, load_graph
from isicrt.engine import shipped
from isicrt.engine.errors import ModelError
from isicrt.export.views import average_views


def one_node(
    kind: str, weight: tuple[int, ...], data: tuple[int, ...], bias: int = 0, **settings: Any
) -> onnx.ModelProto:
    """A graph of one node with a symbolic batch."""
    names = ["w"] + (["b"] if bias else [])
    stored = [numpy_helper.from_array(np.zeros(weight, np.float32), "w")]
    stored += [numpy_helper.from_array(np.zeros(bias, np.float32), "b")] if bias else []
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", *names], ["y"], **settings)],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *data])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(
    ("model", "macs", "parameters"),
    [
        (one_node("Conv", (8, 3, 3, 3), (3, 10, 6), bias=8, pads=[1, 1, 1, 1]), 10 * 6 * 8 * 27, 8 * 27 + 8),
        (one_node("Conv", (8, 3, 3, 3), (3, 10, 6), strides=[2, 2], pads=[1, 1, 1, 1]), 5 * 3 * 8 * 27, 8 * 27),
        (one_node("Conv", (6, 1, 3, 3), (6, 4, 4), group=6), 2 * 2 * 6 * 9, 54),
        (one_node("Conv", (2, 4, 1, 1), (4, 7, 5)), 7 * 5 * 2 * 4, 8),
        (one_node("ConvTranspose", (4, 3, 2, 2), (4, 5, 5), bias=3, strides=[2, 2]), 5 * 5 * 4 * 3 * 4, 51),
        (one_node("ConvTranspose", (4, 1, 2, 2), (4, 5, 5), group=4, strides=[2, 2]), 5 * 5 * 4 * 4, 16),
        (one_node("MatMul", (3, 5), (7, 3)), 7 * 3 * 5, 15),
        (one_node("Gemm", (3, 5), (3,)), 3 * 5, 15),
    ],
)
def test_by_hand(model: onnx.ModelProto, macs: int, parameters: int) -> None:
    assert count_macs(model) == macs
    assert count_macs(model, batch=4) == 4 * macs
    assert count_parameters(model) == parameters


def test_the_model_is_left_alone() -> None:
    model = one_node("Gemm", (3, 5), (3,))
    before = model.SerializeToString(deterministic=True)
    count_macs(model, batch=3)
    assert model.SerializeToString(deterministic=True) == before


def test_the_shipped_model_costs_what_the_docs_say() -> None:
    if not shipped.names():
        pytest.skip("no model ships yet")
    graph = load_graph(shipped.resolve("unet-light"))
    # torch's FlopCounterMode / 2, 0.32 GMAC at 192 px; and the last doubling as two products (export.enlargement).
    assert count_macs(graph) == 315_804_672 + 96 * 96 * 192 + 192 * 96 * 192
    assert count_parameters(graph) == pytest.approx(1.99e6, rel=0.02)  # folded batch norms leave a bias each


@pytest.mark.parametrize("name", [shipped.FLOAT, shipped.DEFAULT])
def test_each_view_costs_the_network_again_and_no_weights(name: str) -> None:
    if name not in shipped.names():
        pytest.skip("no model ships yet")
    graph = load_graph(shipped.resolve(name))
    averaged = average_views(graph, 4)
    assert count_macs(averaged) == 4 * count_macs(graph)
    assert count_macs(averaged, batch=3) == 12 * count_macs(graph)
    assert count_parameters(averaged) == count_parameters(graph)


def test_a_shape_that_is_open_is_told() -> None:
    model = one_node("Conv", (8, 3, 3, 3), (3, 10, 6))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(ModelError, match=r"\(Conv\): the shape of 'x' is open"):
        count_macs(model)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"not protobuf at all")
    with pytest.raises(ModelError, match=r"a\.onnx: not an ONNX file"):
        load_graph(tmp_path / "a.onnx")
