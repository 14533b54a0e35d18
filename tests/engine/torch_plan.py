"""`isicrt segment` with a plan, and torch in TensorRT's place behind it: on a GPU, or on the CPU with all of the GPU.

Everything but the plan's opener and, on the CPU, nvImageCodec's device, the kernels and the memory is what a user runs.

    python -m tests.engine.torch_plan host|gpu model.onnx FOLDER SECONDS segment ...     # a command, in its own process

FOLDER is for the kernels, and each batch takes SECONDS longer.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isicrt.benchmarks.gpu_slots import SlotRuntime
from isicrt.benchmarks.gpu_torch import open_torch
from isicrt.engine import gpu_chain, segmenter
from isicrt.engine import runtime as runtime_module
from isicrt.engine.gpu_chain import GpuChain, Launcher
from isicrt.engine.gpu_decode import GpuDecoder
from tests.benchmarks.host_parts import torch_host
from tests.engine.cpu_kernels import CpuKernels

LARGEST = 8
"""Batch."""
PLACES = ("host", "gpu")


def on_cpu_decoder(device: int, *, hardware_load: float, cpu_threads: int | None) -> GpuDecoder:
    """nvImageCodec's own CPU decoder, on one thread, with the arguments of a GPU's."""
    return GpuDecoder(GpuDecoder.CPU_ONLY, hardware_load=hardware_load, cpu_threads=1)


def put_torch_behind_plans(patch: pytest.MonkeyPatch, onnx: Path, kernels: Launcher | None) -> list[SlotRuntime]:
    """From now on every plan that is opened is the network of `onnx` in torch. Returns those that were.

    Args:
        patch: undoes it.
        onnx: a model.
        kernels: for the CPU; None for the GPU.
    """
    opened: list[SlotRuntime] = []

    def open_runtime(path: Path, threads: int | None = None) -> SlotRuntime:
        assert path.suffix == ".plan"
        runtime = open_torch(onnx, LARGEST) if kernels is None else torch_host(onnx, LARGEST)
        if kernels is not None:
            runtime.device.index = 0
        opened.append(runtime)
        return runtime

    for module in (segmenter, runtime_module):
        patch.setattr(module, "open_runtime", open_runtime)
    patch.setattr(gpu_chain, "TensorRtRuntime", SlotRuntime)
    if kernels is not None:
        patch.setattr(gpu_chain, "GpuDecoder", on_cpu_decoder)
        patch.setattr(gpu_chain, "Kernels", lambda device: kernels)
    return opened


def slow_down(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Every batch takes so much longer, so that a run can be interrupted before its end."""
    collect: Callable[..., Any] = GpuChain.collect

    def slowly(chain: GpuChain, ticket: Any) -> Any:
        time.sleep(seconds)
        return collect(chain, ticket)

    patch.setattr(GpuChain, "collect", slowly)


def main(place: str, onnx: str, folder: str, seconds: str, *command: str) -> None:
    """See the module."""
    from isicrt.cli.main import main as run

    patch = pytest.MonkeyPatch()
    put_torch_behind_plans(patch, Path(onnx), CpuKernels(Path(folder)) if place == "host" else None)
    slow_down(patch, float(seconds))
    sys.argv = ["isicrt", *command]
    run()


if __name__ == "__main__":
    main(*sys.argv[1:])
