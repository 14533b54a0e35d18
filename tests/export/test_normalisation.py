"""The normalisation as one operation: the same numbers, and graphs that are otherwise stay as they are."""

from __future__ import annotations

import numpy as np
import onnx

from isicrt.engine.geometry import UInt8Array
from isicrt.export.normalisation import fuse_normalisation
from isicrt.export.parity import OnnxLevels
from isicrt.export.quantisation import quantise


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_it_computes_the_same(tiny_onnx: onnx.ModelProto, pixels: UInt8Array) -> None:
    fused = _copy(tiny_onnx)
    assert fuse_normalisation(fused)
    onnx.checker.check_model(fused, full_check=True)
    kinds = _kinds(fused)
    assert kinds.index("Transpose") < kinds.index("BatchNormalization") < kinds.index("Conv")
    assert not {"Mul", "Add"} & set(kinds[: kinds.index("Conv")])
    assert np.abs(OnnxLevels(fused)(pixels) - OnnxLevels(tiny_onnx)(pixels)).max() < 1e-3
    names = {tensor.name for tensor in fused.graph.initializer}
    assert names == {name for node in fused.graph.node for name in node.input if name in names}, "nothing is left over"


def test_once_is_enough_and_other_arithmetic_stays(tiny_onnx: onnx.ModelProto) -> None:
    fused = _copy(tiny_onnx)
    fuse_normalisation(fused)
    before = fused.SerializeToString(deterministic=True)
    assert not fuse_normalisation(fused)
    assert fused.SerializeToString(deterministic=True) == before


def test_a_scale_that_is_not_one_for_each_channel_stays(tiny_onnx: onnx.ModelProto) -> None:
    model = _copy(tiny_onnx)
    mul = next(node for node in model.graph.node if node.op_type == "Mul")
    for tensor in model.graph.initializer:
        if tensor.name in mul.input:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones((1, 1, 96), np.float32), tensor.name))
    assert not fuse_normalisation(model)


def test_int8_graphs_have_it(tiny_onnx: onnx.ModelProto, pixels: UInt8Array) -> None:
    kinds = _kinds(quantise(tiny_onnx, list(pixels)))
    assert "BatchNormalization" in kinds[: kinds.index("Conv")]
