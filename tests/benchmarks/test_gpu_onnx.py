"""ONNX Runtime's CUDA provider as a peer, with its CPU in the GPU's place."""

from __future__ import annotations

from pathlib import Path

import pytest

from isicrt.benchmarks import gpu_onnx
from isicrt.benchmarks.gpu_onnx import cuda_figures
from isicrt.engine.errors import ModelError
from isicrt.engine.silent_imports import import_onnxruntime


def test_a_network_is_timed_on_the_device_and_through_the_host(
    darkness_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_onnx, "PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(gpu_onnx, "DEVICE", "cpu")
    figures = cuda_figures(darkness_onnx, 2, 3)
    assert set(figures) == {"version", "precision", "calls", "network_ms", "call_ms", "images_per_second"}
    assert figures["network_ms"] > 0
    assert figures["call_ms"] > 0
    assert figures["images_per_second"] == pytest.approx(2e3 / figures["network_ms"])


def test_an_onnx_runtime_without_the_provider_is_an_error_and_not_the_cpus_figure(darkness_onnx: Path) -> None:
    if gpu_onnx.PROVIDER in import_onnxruntime().get_available_providers():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    with pytest.raises(ModelError, match=r"has no CUDAExecutionProvider: onnxruntime-gpu brings it"):
        cuda_figures(darkness_onnx, 1, 1)
