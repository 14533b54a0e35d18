"""8-bit networks compute the same on processors that cannot sum products of 8 bits exactly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from isicrt.engine import exact_sums, onnx_runtime, runtime
from isicrt.engine.card import METADATA_KEY
from isicrt.engine.exact_sums import sums_are_exact
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.runtime import CPU_RUNTIME_VARIABLE, open_runtime
from isicrt.engine.silent_imports import import_onnxruntime
from tests.tiny_models import darkness_card

CHANNELS = 32


@pytest.fixture
def found_anew() -> Iterator[None]:
    sums_are_exact.cache_clear()
    yield
    sums_are_exact.cache_clear()


def _eight_bits(path: Path) -> Path:
    """An int8 model that gives 200 where the image is 255: 32 products of 255 x 127, which saturate to half of it."""
    card = darkness_card((8, 8), precision="int8")
    total = CHANNELS * 127 * 255
    constants = {
        "ones": np.ones((CHANNELS, 3, 1, 1), np.float32) / 3,
        "unit": np.float32(1),
        "zero": np.uint8(0),
        "signed_zero": np.int8(0),
        "weights": np.full((1, CHANNELS, 1, 1), 127, np.int8),
        "scale": np.float32(total / 200),
        "axis": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["channels_first"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["channels_first", "ones"], ["many"]),
        helper.make_node("QuantizeLinear", ["many", "unit", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "unit", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["weights", "unit", "signed_zero"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["y"]),
        helper.make_node("QuantizeLinear", ["y", "scale", "zero"], ["rounded"]),
        helper.make_node("Squeeze", ["rounded", "axis"], ["probability"]),
    ]
    graph = helper.make_graph(
        nodes,
        "sums",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [helper.make_tensor_value_info("probability", TensorProto.UINT8, ["batch", 8, 8])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, {METADATA_KEY: card.to_json()})
    onnx.save(model, path)
    return path


def test_the_file_in_the_code_is_what_it_says() -> None:
    sides = {"a": (TensorProto.UINT8, ["m", "k"]), "b": (TensorProto.INT8, ["k", "n"])}
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["c"])],
        "g",
        [helper.make_tensor_value_info(name, *side) for name, side in sides.items()],
        [helper.make_tensor_value_info("c", TensorProto.INT32, ["m", "n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    assert model.SerializeToString(deterministic=True) == exact_sums._PRODUCT


def test_an_eight_bit_model_is_exact_on_any_processor(tmp_path: Path) -> None:
    with OnnxRuntime(_eight_bits(tmp_path / "a.onnx"), threads=1) as model:
        assert set(model.infer(np.full((2, 8, 8, 3), 255, np.uint8)).flat) == {200}


def test_what_is_found_out_is_what_a_model_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found_anew: None
) -> None:
    """Where there is VNNI or an Arm, both are exact."""
    exact = sums_are_exact()
    monkeypatch.setattr(onnx_runtime, "sums_are_exact", lambda: True)  # so that nothing is done about it
    with OnnxRuntime(_eight_bits(tmp_path / "a.onnx"), threads=1) as model:
        assert (set(model.infer(np.full((2, 8, 8, 3), 255, np.uint8)).flat) == {200}) == exact


def test_a_runtime_that_cannot_tell_is_not_relied_on(monkeypatch: pytest.MonkeyPatch, found_anew: None) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(import_onnxruntime(), "InferenceSession", fail)
    assert not sums_are_exact()


@pytest.mark.parametrize(
    ("exact", "eight_bits", "chosen", "expected"),
    [
        (True, True, "auto", "openvino-cpu"),
        (False, True, "auto", "onnxruntime-cpu"),
        (False, False, "auto", "openvino-cpu"),
        (False, True, "openvino", "openvino-cpu"),
    ],
)
def test_openvino_is_not_chosen_for_what_it_would_not_compute_exactly(
    tmp_path: Path,
    darkness_onnx: Path,
    monkeypatch: pytest.MonkeyPatch,
    exact: bool,
    eight_bits: bool,
    chosen: str,
    expected: str,
) -> None:
    monkeypatch.setattr(runtime, "sums_are_exact", lambda: exact)
    monkeypatch.setenv(CPU_RUNTIME_VARIABLE, chosen)
    with open_runtime(_eight_bits(tmp_path / "a.onnx") if eight_bits else darkness_onnx, threads=1) as opened:
        assert opened.name == expected
