"""A plan of a tiny model, built on this machine's GPU for the tests that are marked `gpu`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from isicrt.engine.cuda_driver import find_gpu
from isicrt.engine.errors import ModelError
from isicrt.engine.tensorrt_runtime import TensorRtRuntime

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}


def open_plan(onnx: Path, flavour: str, out: Path) -> TensorRtRuntime:
    """The plan of an ONNX file for batches of 2 to 8, opened. The test is skipped where this machine cannot."""
    if find_gpu() is None:
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
    for note in built.notes:
        if "does not run on this GPU" in note:
            pytest.skip(note)
    try:
        return TensorRtRuntime(built.plan)
    except ModelError as error:
        if flavour == "tensorrt-rtx" and any(said in str(error) for said in ("calls it invalid on", "cannot load it")):
            pytest.skip(str(error))  # on a GPU that it is not made for
        raise
