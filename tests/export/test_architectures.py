"""One contract for the three architectures: export, any batch, half, and a real engine build."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from isicrt.benchmarks.rendered import render
from isicrt.engine import tensorrt_api
from isicrt.engine.card import ModelCard
from isicrt.export.half import anchors, to_half
from isicrt.export.inspection import half_share
from isicrt.export.onnx_export import Deployed, export_onnx
from isicrt.export.parity import OnnxLevels
from isicrt.export.tensorrt_build import Profile, build_engine
from isicrt.trainer.models import ARCHITECTURES, build_model, normalise

IMAGES = np.stack([render(n, (64, 64))[0] for n in range(5)])

Exported = tuple[Deployed, onnx.ModelProto]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def exported(request: pytest.FixtureRequest) -> Exported:
    """Random weights, 64 x 64 px, batch norms that have seen one batch: else the signal dies on its way down."""
    card = ModelCard(name=request.param, architecture=request.param, input_height=64, input_width=64)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        network = build_model(request.param, pretrained=None)
        norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        network(normalise(torch.from_numpy(IMAGES), card.mean, card.std))
        for norm in norms:  # dead channels would amplify nothing but the rounding
            norm.running_var.clamp_(min=0.003)  # type: ignore[union-attr]
    deployed = Deployed(network, card).eval()
    return deployed, export_onnx(deployed, card)


def test_equals_torch_at_any_batch_and_survives_half(exported: Exported) -> None:
    deployed, model = exported
    exact, rehearsal, half = OnnxLevels(model), OnnxLevels(model, rehearse_half=True), OnnxLevels(to_half(model))
    for batch in (IMAGES[:1], IMAGES[:3], IMAGES):
        with torch.no_grad():
            expected = deployed.levels(torch.from_numpy(batch)).numpy()
        assert expected.std() > 5
        np.testing.assert_allclose(exact(batch), expected, atol=0.05)
        assert np.abs(rehearsal(batch) - expected).mean() < 1
        assert np.abs(half(batch) - expected).mean() < 1
    assert rehearsal.largest_activation is not None
    assert np.isfinite(rehearsal.largest_activation[0])


def test_an_fp16_engine_builds_with_every_convolution_half(exported: Exported) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")
    _, model = exported
    trt = tensorrt_api.load("tensorrt-rtx")
    engine = build_engine(trt, to_half(model).SerializeToString(), Profile(1, 8, 32), half=True)
    count = len(anchors(model))
    assert count > 40
    assert half_share(engine.layers) == f"{count} of {count} convolutions"
