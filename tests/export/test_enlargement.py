"""Bilinear enlargement of one channel as two matrix products."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from isicrt.benchmarks.macs import count_parameters
from isicrt.engine import shipped
from isicrt.export.enlargement import PREFIX, enlarge_by_products, enlarge_by_resize, interpolation
from isicrt.export.half import is_anchor, to_half


def _graph(channels: int = 1, kind: str = "linear", **settings: object) -> onnx.ModelProto:
    """A map of 5 x 7 doubled."""
    options = {"mode": kind, "coordinate_transformation_mode": "half_pixel"} | settings
    sizes = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, *sides])
        for name, sides in (("x", (5, 7)), ("y", (10, 14)))
    ]
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], **options)
    graph = helper.make_graph([node], "doubled", sizes[:1], sizes[1:], [scales])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _run(model: onnx.ModelProto, x: np.ndarray, name: str = "x") -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {name: x})[0]
    return result


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 4), (3, 3), (5, 10), (7, 21), (4, 6), (96, 192)])
def test_the_matrix_interpolates_as_torch_does(before: int, after: int) -> None:
    x = np.random.default_rng(0).normal(0, 5, before).astype(np.float32)
    expected = functional.interpolate(torch.from_numpy(x)[None, None], size=after, mode="linear")[0, 0]
    matrix = interpolation(before, after)
    np.testing.assert_allclose(matrix @ x, expected.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(matrix.sum(axis=1), np.float32(1))
    assert (matrix > 0).sum(axis=1).max() <= 2


def test_two_products_compute_what_resize_does() -> None:
    model = _graph()
    x = np.random.default_rng(0).normal(0, 5, (3, 1, 5, 7)).astype(np.float32)
    expected = _run(model, x)
    assert enlarge_by_products(model) == 1
    assert [node.op_type for node in model.graph.node] == ["MatMul", "MatMul"]
    assert {tensor.name for tensor in model.graph.initializer} == {f"{PREFIX}0.rows", f"{PREFIX}0.columns"}
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(_run(model, x), expected, rtol=1e-5, atol=1e-5)
    assert enlarge_by_products(model) == 0, "once is enough"


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(_graph(channels=2), id="more_channels"),
        pytest.param(_graph(kind="nearest", nearest_mode="floor"), id="not_bilinear"),
        pytest.param(_graph(coordinate_transformation_mode="align_corners"), id="other_centres"),
        pytest.param(_graph(coordinate_transformation_mode="asymmetric"), id="corners"),
    ],
)
def test_another_resize_is_left_alone(model: onnx.ModelProto) -> None:
    before = model.SerializeToString()
    assert enlarge_by_products(model) == 0
    assert model.SerializeToString() == before


@pytest.mark.parametrize("name", [shipped.FLOAT, None])
def test_the_models_that_ship_double_their_last_map_by_products(name: str | None) -> None:
    model = onnx.load(str(shipped.resolve(name)))
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert len(products) == 2
    assert not any(is_anchor(node) for node in products)
    assert 1.9e6 < count_parameters(model) < 2e6, "the matrices are no weights"


def test_products_stay_float32_where_the_network_becomes_half() -> None:
    model = to_half(onnx.load(str(shipped.resolve(shipped.FLOAT))))
    matrices = [tensor for tensor in model.graph.initializer if tensor.name.startswith(PREFIX)]
    assert [tensor.data_type for tensor in matrices] == [TensorProto.FLOAT] * 2
    halves = sum(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)
    assert halves > 100


def test_the_way_back() -> None:
    model = _graph()
    x = np.random.default_rng(0).normal(0, 5, (3, 1, 5, 7)).astype(np.float32)
    expected = _run(model, x)
    assert enlarge_by_products(model) == 1
    assert enlarge_by_resize(model) == 1
    assert [node.op_type for node in model.graph.node] == ["Resize"]
    assert len(model.graph.initializer) == 1
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(_run(model, x), expected)
    assert enlarge_by_resize(model) == 0


@pytest.mark.parametrize("half", [False, True])
def test_what_tensorrt_is_given_of_the_model_that_ships_computes_the_same(half: bool) -> None:
    model = onnx.load(str(shipped.resolve(shipped.FLOAT)))
    model = to_half(model) if half else model
    name = model.graph.input[0].name
    pixels = np.random.default_rng(0).integers(0, 256, (2, 192, 192, 3), np.uint8)
    expected = _run(model, pixels, name)
    assert enlarge_by_resize(model) == 1
    assert "MatMul" not in {node.op_type for node in model.graph.node}
    assert np.abs(_run(model, pixels, name).astype(int) - expected.astype(int)).max() <= 1
