"""Fixtures of the engine room: the GPU's way with all of the GPU on the CPU."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from isicrt.engine.pipeline import THREAD_PREFIX
from isicrt.engine.read_process import ReadProcess
from isicrt.engine.segmenter import Segmenter
from isicrt.engine.write_process import WriteProcess
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


@pytest.fixture
def segmenter(darkness_onnx: Path) -> Iterator[Segmenter]:
    with Segmenter(darkness_onnx, threads=1) as segmenter:
        yield segmenter


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of a run start with the first file and the first mask."""
    for kind in (ReadProcess, WriteProcess):
        start = kind.__init__
        monkeypatch.setattr(
            kind,
            "__init__",
            lambda self, *settings, start=start, **options: start(self, *settings, **options | {"start_after": 0}),
        )


@pytest.fixture
def no_process_is_left() -> Iterator[None]:
    """After the test no child of this process is left, running or ended."""
    yield
    if os.name == "posix":
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
