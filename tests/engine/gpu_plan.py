"""A plan of a tiny model, built on this machine's GPU for the tests that are marked `gpu`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from isicrt.engine import tensorrt_api
from isicrt.engine.cuda_driver import Gpu, find_gpu
from isicrt.engine.errors import OtherGpuError
from isicrt.engine.rebuild import targets
from isicrt.engine.tensorrt_runtime import TensorRtRuntime

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}


def open_plan(onnx: Path, flavour: str, out: Path) -> TensorRtRuntime:
    """The plan of an ONNX file for batches of 2 to 8, opened. The test is skipped where there is no GPU for it."""
    gpu = find_gpu()
    if gpu is None:
        pytest.skip("no NVIDIA GPU with a driver here")
    pytest.importorskip("pycuda.driver", reason="PyCUDA is not installed (extra gpu)", exc_type=ImportError)
    pytest.importorskip(MODULES[flavour], reason=f"{flavour} is not installed", exc_type=ImportError)
    from isicrt.export.build import build, choose_target, open_source
    from isicrt.export.parity import Sample
    from isicrt.export.tensorrt_build import Profile

    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    built = build(
        open_source(onnx, "darkness"),
        [Sample("noise", noise)],
        precision="fp32",
        profile=Profile(2, 4, 8),
        destination=choose_target(flavour),
        out=out,
        images="noise",
        report=lambda stage, fraction: None,
    )
    assert built.plan is not None
    return open_made_for(gpu, flavour, built.plan)


def open_made_for(gpu: Gpu, flavour: str, plan: Path) -> TensorRtRuntime:
    """A plan that was built here, opened; see `skip_where_it_is_not_made_for`."""
    try:
        return TensorRtRuntime(plan)
    except OtherGpuError as error:
        skip_where_it_is_not_made_for(gpu, tensorrt_api.load(flavour), error)
        raise


def skip_where_it_is_not_made_for(gpu: Gpu, trt: tensorrt_api.TensorRt, error: OtherGpuError) -> None:
    """Skip the test if TensorRT for RTX builds for no such GPU. Elsewhere the error is a fault of ours."""
    if trt.flavour == "tensorrt-rtx" and gpu.compute_capability not in targets(trt, {}):
        pytest.skip(str(error))
