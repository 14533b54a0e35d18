"""One contract for the three architectures: export, any batch, half, and a real engine build."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from isicrt.benchmarks.rendered import render
from isicrt.engine import tensorrt_api
from isicrt.export.half import anchors, to_half
from isicrt.export.inspection import half_share
from isicrt.export.onnx_export import Deployed, export_onnx
from isicrt.export.parity import OnnxLevels
from isicrt.export.tensorrt_build import Profile, build_engine
from isicrt.export.untrained import make_untrained
from isicrt.trainer.models import ARCHITECTURES

IMAGES = np.stack([render(n, (64, 64))[0] for n in range(5)])

Exported = tuple[Deployed, onnx.ModelProto]


@pytest.fixture(
    scope="module",
    params=[(name, "light", share) for name, share in (("unet", 1.0), *((name, 0.0) for name in ARCHITECTURES))]
    # The report's own widths: 8, 111 and 140 million parameters.
    + [pytest.param((name, "report", 0.0), marks=pytest.mark.nightly) for name in ARCHITECTURES],
    ids=lambda param: "-".join(param[:2]) + "-standardised" * bool(param[2]),
)
def exported(request: pytest.FixtureRequest) -> Exported:
    """Random weights, 64 x 64 px."""
    architecture, layout, share = request.param
    deployed, card = make_untrained(architecture, layout, size=64, standardise=share)
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


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_an_engine_builds_with_all_convolutions_of_one_type(exported: Exported, half: bool) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")
    deployed, model = exported
    trt = tensorrt_api.load("tensorrt-rtx")
    graph = to_half(model) if half else model
    engine = build_engine(trt, graph.SerializeToString(), Profile(1, 8, 32), half=half)
    count = len(anchors(model))
    assert count > 40
    assert half_share(engine.layers) == f"{count if half else 0} of {count} convolutions"
    assert {layer.types for layer in engine.layers} == {frozenset({"HALF" if half else "FLOAT"})}
    weights = sum(p.numel() for p in deployed.parameters()) * (2 if half else 4)
    assert weights * 0.9 < len(engine.plan) < weights * 1.2 + 2e6
