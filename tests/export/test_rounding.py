"""Rounding of int8 weights: errors cancel on inputs as they are; moments are of what a convolution sees."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from isicrt.engine.geometry import UInt8Array
from isicrt.export import rounding
from isicrt.export.onnx_export import Deployed, export_onnx
from isicrt.export.parity import OnnxLevels
from isicrt.export.quantisation import quantise
from isicrt.export.rounding import rounded
from tests.export.tiny_network import tiny_card


class Differences(nn.Module):
    """What makes MobileNetV2 hard: large depthwise weights that all but cancel on an even, bright image."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        kernels = torch.randn(12, 1, 3, 3, generator=generator) * 8
        self.depthwise = nn.Conv2d(3, 12, 3, padding=1, groups=3, bias=False)
        self.depthwise.weight.data = kernels - kernels.mean((2, 3), keepdim=True)
        self.pointwise = nn.Conv2d(12, 8, 1)
        self.head = nn.Conv2d(8, 1, 1)
        for layer in (self.pointwise, self.head):
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) / 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.pointwise(self.depthwise(x).clamp(-2, 2)).relu())
        return logits


@pytest.fixture(scope="module")
def differences() -> onnx.ModelProto:
    card = tiny_card(input_height=64, input_width=96)
    return export_onnx(Deployed(Differences(), card).eval(), card)


@pytest.fixture(scope="module")
def even() -> list[UInt8Array]:
    """Images of one colour, bright or dark."""
    rng = np.random.default_rng(0)
    return [np.tile(rng.integers(40, 250, 3, dtype=np.uint8), (64, 96, 1)) for _ in range(8)]


def test_errors_cancel_on_inputs_that_go_together() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 1)) + 0.1 * rng.normal(size=(500, 9))
    weights, scales = rng.normal(size=(1, 16, 9)), np.full((1, 16, 1), 0.1)
    found = rounded(weights, scales, (x.T @ x)[None])
    nearest = np.clip(np.rint(weights / scales), -127, 127)
    errors = [np.square((q * scales - weights)[0] @ x.T).mean() for q in (found, nearest)]
    assert errors[0] < errors[1] / 3
    assert found.dtype == np.int8
    assert np.abs(found - nearest).max() <= 2, "close to the weights all the same"


def test_weights_on_the_grid_and_layers_without_any_input_get_the_nearest_integers() -> None:
    rng = np.random.default_rng(0)
    integers = rng.integers(-127, 128, (4, 3, 5))
    scales = rng.uniform(0.1, 1, (4, 3, 1))
    x = rng.normal(size=(4, 50, 5))
    assert np.array_equal(rounded(integers * scales, scales, x.swapaxes(1, 2) @ x), integers)
    weights = rng.normal(size=(4, 3, 5))
    assert np.array_equal(rounded(weights, scales, np.zeros((4, 5, 5))), np.rint(weights / scales))


def test_no_integer_is_out_of_range() -> None:
    x = np.ones((10, 2)) * [5.0, 1.0]
    found = rounded(np.array([[[12.7, 3.0]]]), np.full((1, 1, 1), 0.1), (x.T @ x)[None])
    assert found.tolist() == [[[127, 30]]]
    found = rounded(np.array([[[20.0, -3.0]]]), np.full((1, 1, 1), 0.1), (x.T @ x)[None])
    assert found[0, 0, 0] == 127
    assert found[0, 0, 1] > 0, "the other weight makes up for it as far as it can"


@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "settings"),
    [
        (6, 5, 3, {"padding": 1}),
        (6, 6, 3, {"padding": 1, "stride": 2, "groups": 6}),
        (6, 4, 3, {"padding": 2, "dilation": 2, "groups": 2}),
        (3, 4, 1, {}),
        (3, 4, (1, 3), {"padding": (0, 1), "stride": (1, 2)}),
    ],
)
def test_moments_are_of_what_the_taps_see(channels: int, outputs: int, kernel: int, settings: dict[str, int]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, outputs, kernel, bias=False, **settings)
    x = torch.randn(2, channels, 9, 11)
    top, left = layer.padding if isinstance(layer.padding, tuple) else (0, 0)
    groups = layer.groups
    moments = rounding._second_moments(
        x.numpy(),
        rounding._Layer(
            data="",
            shape=tuple(layer.weight.shape),
            weights=np.empty(0),
            integers=onnx.TensorProto(),
            scales=np.empty(0),
            groups=groups,
            pads=(top, top, left, left),
            strides=(layer.stride[0], layer.stride[1]),
            dilations=(layer.dilation[0], layer.dilation[1]),
        ),
    )
    weights = layer.weight.detach().numpy().reshape(groups, outputs // groups, -1)
    energy = np.einsum("gok,gkl,gol->go", weights, moments, weights).reshape(-1)
    expected = layer(x).square().sum((0, 2, 3)).detach().numpy()
    np.testing.assert_allclose(energy, expected, rtol=1e-4)


def test_a_network_of_differences_loses_less(differences: onnx.ModelProto, even: list[UInt8Array]) -> None:
    exact = OnnxLevels(differences)
    others = np.stack(even[4:])
    errors = {}
    for how in ("gptq", "nearest"):
        found = OnnxLevels(quantise(differences, even[:4], rounding=how))(others)
        errors[how] = float(np.abs(found - exact(others)).mean())
    assert errors["gptq"] < errors["nearest"] / 2, errors


def test_only_the_integers_change(differences: onnx.ModelProto, even: list[UInt8Array]) -> None:
    changed, plain = (quantise(differences, even, rounding=how) for how in ("gptq", "nearest"))
    before = {tensor.name: tensor for tensor in plain.graph.initializer}
    other = [t for t in changed.graph.initializer if t.SerializeToString() != before[t.name].SerializeToString()]
    assert changed.graph.node == plain.graph.node
    assert len(before) == len(changed.graph.initializer)
    assert len(other) == 2, "one for each convolution but the head"
    for tensor in other:
        steps = numpy_helper.to_array(tensor).astype(int) - numpy_helper.to_array(before[tensor.name])
        assert tensor.data_type == onnx.TensorProto.INT8
        assert 0 < np.abs(steps).max() < 20


def test_a_layer_of_too_many_inputs_keeps_the_nearest(
    differences: onnx.ModelProto, even: list[UInt8Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    nearest = quantise(differences, even, rounding="nearest")
    monkeypatch.setattr(rounding, "MAX_INPUTS", 4)
    assert quantise(differences, even).SerializeToString() == nearest.SerializeToString()
