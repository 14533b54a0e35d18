"""Each stage of the GPU's way alone, on a CPU: which parts of the chain run, and what is counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from isicrt.benchmarks import gpu_alone
from isicrt.benchmarks.gpu_alone import (
    RESIZE,
    RESTORE,
    GpuParts,
    batch_of,
    chain_figures,
    cpu_decode_figures,
    cpu_restore_figures,
    gpu_decode_figures,
    held_figures,
    process_read_figures,
    process_write_figures,
    read_figures,
    write_figures,
)
from isicrt.benchmarks.gpu_slots import SlotRuntime
from isicrt.benchmarks.gpu_torch import SETTLE
from isicrt.engine.errors import ModelError
from isicrt.engine.gpu_batch import PackedMask
from isicrt.engine.gpu_decode import GpuDecoder
from isicrt.engine.gpu_kernels import NAMES
from isicrt.engine.images import read_mask
from isicrt.engine.tensorrt_slot import PARTIAL_BATCHES
from tests.benchmarks.host_parts import idle_host
from tests.engine.cpu_kernels import CpuKernels
from tests.tiny_models import darkness_card


class _CountingKernels:
    def __init__(self, kernels: CpuKernels) -> None:
        self._kernels = kernels
        self.launched: Counter[str] = Counter()

    def launch(self, name: str, *rest: Any) -> None:
        self.launched[name] += 1
        self._kernels.launch(name, *rest)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> CpuKernels:
    pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed (extra gpu)")
    return CpuKernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def files(rendered_pairs: Path) -> list[Path]:
    return sorted((rendered_pairs / "images").iterdir())[:3]


@pytest.fixture
def idle() -> SlotRuntime:
    return idle_host(darkness_card())


def test_a_batch_takes_files_over_and_over_and_has_a_bound(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [image.path for image in batch_of(files, (64, 64), 5)] == [*files, *files[:2]]
    monkeypatch.setattr(gpu_alone, "BATCH_PIXELS", 2 * 120 * 90)
    assert len(batch_of(files, (64, 64), 5)) == 2
    monkeypatch.setattr(gpu_alone, "BATCH_PIXELS", 1)
    assert len(batch_of(files, (64, 64), 5)) == 1


def test_a_stage_alone_launches_its_own_kernels(idle: SlotRuntime, files: list[Path], compiled: CpuKernels) -> None:
    kernels = _CountingKernels(compiled)
    parts = GpuParts(lambda device, load: GpuDecoder(GpuDecoder.CPU_ONLY, cpu_threads=1), lambda device: kernels)
    with idle:
        decode = gpu_decode_figures(idle, files, 0.001, parts)
        assert not kernels.launched
        held_figures(idle, files, 0.001, parts, RESIZE)
        assert set(kernels.launched) == RESIZE
        kernels.launched.clear()
        restore = held_figures(idle, files, 0.001, parts, RESTORE)
        assert set(kernels.launched) == RESTORE
        kernels.launched.clear()
        held_figures(idle, files, 0.001, parts, frozenset())
        assert not kernels.launched
        chain_figures(idle, files, 0.001, parts)
        assert set(kernels.launched) == set(NAMES)
    for figures in (decode, restore):
        assert (figures["batch"], figures["in_flight"]) == (4, 3)
        assert figures["images_per_second"] > 0
    assert idle.device.allocated == 0


class _FakeChain:
    """Its slots take turns; how often each was collected is counted."""

    depth = 3
    largest = 4
    decoded = SimpleNamespace(refused=0)

    def __init__(self) -> None:
        self.submitted = 0
        self.collected: Counter[int] = Counter()

    def submit(self, images: Any) -> int:
        self.submitted += 1
        return (self.submitted - 1) % self.depth

    def collect(self, slot: int) -> list[PackedMask]:
        self.collected[slot] += 1
        return [PackedMask(np.zeros((1, 1), np.uint8), (1, 8))]


@pytest.mark.parametrize(("images", "before"), [(4, SETTLE), (2, PARTIAL_BATCHES)])
def test_nothing_is_timed_before_every_slot_has_its_graph(
    monkeypatch: pytest.MonkeyPatch, images: int, before: int
) -> None:
    chain: Any = _FakeChain()
    begun: list[Counter[int]] = []

    def timed(work: Any, seconds: float) -> dict[str, Any]:
        begun.append(Counter(chain.collected))
        return {}

    monkeypatch.setattr(gpu_alone, "rate", timed)
    gpu_alone.in_flight_figures(chain, [None] * images, 0.0)  # type: ignore[list-item]
    # torch runs a shape call by call so often, and a plan's slot a partial batch, and records it the time after that.
    assert begun == [Counter(dict.fromkeys(range(chain.depth), before + 1))]


class _Refusing:
    """A decoder whose check passes and that decodes none of some files."""

    def __init__(self, checks: bool, refused: int) -> None:
        self._real = GpuDecoder(GpuDecoder.CPU_ONLY, cpu_threads=1)
        self._checks, self._refused = checks, refused

    def check(self, stream: int) -> None:
        if not self._checks:
            raise ModelError("decodes no JPEG on this GPU")

    def decode(self, files: list[bytes], stream: int) -> list[Any]:
        return [None] * self._refused + self._real.decode(files, stream)[self._refused :]

    def close(self) -> None:
        self._real.close()


@pytest.mark.parametrize("stage", [gpu_decode_figures, lambda *given: held_figures(*given, RESIZE)])
@pytest.mark.parametrize(
    ("checks", "refused", "message"),
    [
        (False, 0, "decodes no JPEG on this GPU"),
        (True, 4, "the GPU (refused|decoded)"),
        (True, 1, "the GPU (refused|decoded)"),
    ],
)
def test_a_decoder_that_refuses_ends_the_figure(
    idle: SlotRuntime, files: list[Path], compiled: CpuKernels, stage: Any, checks: bool, refused: int, message: str
) -> None:
    parts = GpuParts(lambda device, load: _Refusing(checks, refused), lambda device: compiled)
    with idle, pytest.raises(ModelError, match=message):
        stage(idle, files, 0.001, parts)
    assert idle.device.allocated == 0


def test_the_hardware_decoders_share_reaches_the_decoder(
    idle: SlotRuntime, files: list[Path], compiled: CpuKernels
) -> None:
    asked = []

    def decoder(device: Any, load: float) -> GpuDecoder:
        asked.append(load)
        return GpuDecoder(GpuDecoder.CPU_ONLY, cpu_threads=1)

    with idle:
        gpu_decode_figures(idle, files, 0.001, GpuParts(decoder, lambda device: compiled), 0.35)
    assert asked == [0.35]


def test_what_the_cpu_does(files: list[Path], tmp_path: Path) -> None:
    assert read_figures(files, (64, 64), 0.001, 2)["threads"] == 2
    assert process_read_figures(files, 0.001, 2)["images_per_second"] > 0
    assert cpu_decode_figures(files, (64, 64), 0.001, 2)["images_per_second"] > 0
    for name, figures in (
        ("gpu", lambda folder: write_figures((120, 161), folder, 0.001, 2)),
        ("processes", lambda folder: process_write_figures((120, 161), folder, 0.001, 2)),
        ("cpu", lambda folder: cpu_restore_figures((64, 64), (120, 161), folder, 0.001, 2)),
    ):
        folder = tmp_path / name
        folder.mkdir()
        assert figures(folder)["images_per_second"] > 0
        written = sorted(folder.iterdir())
        assert len(written) >= 4 * 64  # each under a name of its own
        mask = read_mask(written[0])
        assert mask.shape == (120, 161)
        assert 0 < mask.mean() < 1
