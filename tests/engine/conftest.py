"""Fixtures of the engine room: the GPU's way with all of the GPU on the CPU."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from isicrt.engine.pipeline import THREAD_PREFIX
from isicrt.engine.read_process import ReadProcess
from isicrt.engine.segmenter import Segmenter
from isicrt.engine.share_process import Read, Share, ShareProcess
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


@pytest.fixture
def many(rendered_pairs: Path, tmp_path: Path) -> Path:
    """A folder of 60 images."""
    folder = tmp_path / "many"
    folder.mkdir()
    images = sorted((rendered_pairs / "images").iterdir())
    for n in range(60):
        shutil.copy(images[n % len(images)], folder / f"{n:02d}{images[n % len(images)].suffix}")
    return folder


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Processes are waited for; the numbers of images in the shares that they have read."""
    sizes: list[int] = []
    start, read = ShareProcess.__init__, ShareProcess.read
    is_ready = vars(ShareProcess)["is_ready"].fget  # which a test may replace

    def started(self: ShareProcess, *arguments: Any, **options: Any) -> None:
        start(self, *arguments, **options)
        deadline = time.monotonic() + 60
        while not (is_ready(self) or self.process.is_over) and time.monotonic() < deadline:
            time.sleep(0.01)

    def noted(self: ShareProcess, paths: Sequence[Path]) -> Share:
        share = read(self, paths)
        sizes.append(sum(isinstance(image, Read) for image in share.images))
        return share

    monkeypatch.setattr(ShareProcess, "__init__", started)
    monkeypatch.setattr(ShareProcess, "read", noted)
    return sizes
