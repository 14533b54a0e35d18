"""Fixtures of the engine room: the GPU's way with all of the GPU on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from isicrt.engine.pipeline import THREAD_PREFIX
from tests.engine.cpu_kernels import CpuKernels
from tests.engine.host_plan import HostPlan


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> CpuKernels:
    """The CUDA kernels, compiled once. They keep nothing between two launches."""
    return CpuKernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def host(darkness_onnx: Path, kernels: CpuKernels) -> Iterator[HostPlan]:
    """A plan and its chain; after the test all memory is given back and no thread of a run is left."""
    pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed (extra gpu)")
    host = HostPlan(darkness_onnx, kernels)
    yield host
    host.close()
    assert [t.name for t in threading.enumerate() if t.name.startswith(THREAD_PREFIX)] == []
