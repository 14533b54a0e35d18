"""One contract for the three architectures: export, any batch, half, and a real engine build."""

from __future__ import annotations

from pathlib import Path

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
from isicrt.export.onnx_graph import set_card
from isicrt.export.parity import OnnxLevels
from isicrt.export.tensorrt_build import Profile, build_engine
from isicrt.export.untrained import make_untrained
from isicrt.trainer.models import ARCHITECTURES, build_model, normalise
from isicrt.trainer.onnx_weights import measure_batch_norms, read_weights

IMAGES = np.stack([render(n, (64, 64))[0] for n in range(5)])

Exported = tuple[Deployed, onnx.ModelProto, ModelCard]


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
    return deployed, export_onnx(deployed, card), card


def test_equals_torch_at_any_batch_and_survives_half(exported: Exported) -> None:
    deployed, model, _ = exported
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
    deployed, model, _ = exported
    trt = tensorrt_api.load("tensorrt-rtx")
    graph = to_half(model) if half else model
    engine = build_engine(trt, graph.SerializeToString(), Profile(1, 8, 32), half=half)
    count = len(anchors(model))
    assert count > 40
    assert half_share(engine.layers) == f"{count if half else 0} of {count} convolutions"
    assert {layer.types for layer in engine.layers} == {frozenset({"HALF" if half else "FLOAT"})}
    weights = sum(p.numel() for p in deployed.parameters()) * (2 if half else 4)
    assert weights * 0.9 < len(engine.plan) < weights * 1.2 + 2e6


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_the_weights_come_back_out_of_the_file(exported: Exported, half: bool, tmp_path: Path) -> None:
    deployed, graph, card = exported
    graph = to_half(graph) if half else onnx.ModelProto.FromString(graph.SerializeToString())
    set_card(graph, card)
    onnx.save(graph, tmp_path / "model.onnx")
    card, weights = read_weights(tmp_path / "model.onnx")
    model = build_model(card.architecture, **card.network).eval()
    model.load_state_dict(weights)
    inputs = normalise(torch.from_numpy(IMAGES), card.mean, card.std)
    with torch.no_grad():
        expected = deployed.network(inputs)
        before = model(inputs)
        measure_batch_norms(model, inputs.split(2))
        after = model(inputs)
    spread = float(expected.std())
    assert float((before - expected).abs().mean()) < (5e-2 if half else 1e-4) * spread
    torch.testing.assert_close(after, before, rtol=0, atol=1e-3 * spread)
    # It learns from where it stood: batch statistics change little of what it says of these images.
    model.train()
    with torch.no_grad():
        assert np.corrcoef(model(inputs).ravel(), before.ravel())[0, 1] > 0.98
