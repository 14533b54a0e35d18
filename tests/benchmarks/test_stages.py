from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from isicrt.benchmarks import stages
from isicrt.benchmarks.stages import StageSplit, crowded_pass, on_device, stage_pass
from isicrt.engine.images import read_mask
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.pipeline import STAGES


def _split(cores: int, **costs: tuple[float, float]) -> StageSplit:
    """`costs`: (wall ms, CPU ms) by stage."""
    return StageSplit(
        batch_size=8,
        images=4,
        cores=cores,
        wall_ms={s: (costs[s][0],) for s in STAGES},
        cpu_ms={s: (costs[s][1],) for s in STAGES},
    )


@pytest.mark.parametrize(
    ("cores", "on_device", "infer", "loads", "bottleneck", "limit", "share"),
    [
        # Two cores: everything halves, whatever the wall clock said.
        (2, False, (90.0, 40.0), [5.0, 20.0, 2.0, 1.0], "infer", 28.0, 40 / 56),
        # A GPU took 3 ms while the host slept: decoding is what to speed up, and the host's CPU is the limit.
        (2, True, (3.0, 0.5), [5.0, 3.0, 2.0, 1.0], "decode", 8.25, 10 / 16.5),
        # Nor does the GPU hold up the cores where it takes longer than each of their stages, and less than all of them.
        (2, True, (7.0, 0.5), [5.0, 7.0, 2.0, 1.0], "decode", 8.25, 10 / 16.5),
        # A slow GPU behind many cores is the limit itself.
        (16, True, (20.0, 1.0), [0.625, 20.0, 0.25, 0.125], "infer", 20.0, 1.0),
    ],
)
def test_loads_bottleneck_and_limit(
    cores: int,
    on_device: bool,
    infer: tuple[float, float],
    loads: list[float],
    bottleneck: str,
    limit: float,
    share: float,
) -> None:
    split = _split(cores, decode=(10.0, 10.0), infer=infer, restore=(4.0, 4.0), write=(2.5, 2.0))
    split = dataclasses.replace(split, on_device=on_device)
    assert [split.load(s) for s in STAGES] == pytest.approx(loads)
    assert split.bottleneck == bottleneck
    assert split.limit_ms == pytest.approx(limit)
    assert sum(map(split.share, STAGES)) == pytest.approx(1)
    assert split.bottleneck_share == pytest.approx(share)


@pytest.mark.parametrize(
    ("cores", "threads", "decode", "limit", "kind"),
    [
        (2, None, 10.0, 28.0, "CPU time of all stages / 2 cores"),
        (2, 2, 10.0, 28.0, "CPU time of all stages / 2 cores"),
        (2, 8, 10.0, 28.0, "CPU time of all stages / 2 cores"),
        # A thread does everything, one thing after the other.
        (2, 1, 10.0, 56.0, "CPU time of all stages / 1 core"),
        (64, 4, 10.0, 14.0, "CPU time of all stages / 4 cores"),
        (64, 8, 12.0, 7.25, "CPU time of all stages / 8 cores"),
        (1, None, 10.0, 56.0, "CPU time of all stages / 1 core"),
    ],
)
def test_few_threads_bound_the_pipeline(
    cores: int, threads: int | None, decode: float, limit: float, kind: str
) -> None:
    split = _split(cores, decode=(decode, decode), infer=(90.0, 40.0), restore=(4.0, 4.0), write=(2.5, 2.0))
    split = dataclasses.replace(split, threads=threads)
    assert split.limit_ms == pytest.approx(limit)
    assert split.limit_of == split.to_dict()["limit_of"] == kind
    assert StageSplit.from_dict(split.to_dict()) == split


@pytest.mark.parametrize(
    ("cores", "threads", "on_device", "usable"),
    [
        (2, 1, False, 1),
        (64, 4, False, 4),
        (2, 4, False, 2),
        (64, 8, False, 8),
        (64, None, False, 64),
        (64, 1, True, 64),
    ],
)
def test_cores_that_the_threads_can_use(cores: int, threads: int | None, on_device: bool, usable: int) -> None:
    split = _split(cores, decode=(8.0, 8.0), infer=(40.0, 40.0), restore=(4.0, 4.0), write=(2.0, 2.0))
    split = dataclasses.replace(split, threads=threads, on_device=on_device)
    assert split.usable_cores == usable
    assert split.load("restore") == pytest.approx(4 / usable)


def test_a_stage_is_the_median_of_its_passes() -> None:
    split = StageSplit(1, 1, 1, dict.fromkeys(STAGES, (1.0, 9.0, 2.0)), dict.fromkeys(STAGES, (5.0, 3.0, 4.0)))
    assert (split.wall("decode"), split.cpu("decode")) == (2.0, 4.0)


def test_passes_before_those_that_agree_do_not_count() -> None:
    times = (9.0, 2.0, 2.1, 2.05)
    split = StageSplit(1, 1, 1, dict.fromkeys(STAGES, times), dict.fromkeys(STAGES, times))
    assert split.settled
    assert split.cpu("infer") == split.wall("write") == 2.05
    split = StageSplit(1, 1, 1, dict.fromkeys(STAGES, times[:3]), dict.fromkeys(STAGES, times[:3]))
    assert not split.settled
    assert split.cpu("infer") == 2.1


def test_cpu_time_beside_a_stage_is_told() -> None:
    split = _split(2, decode=(1.0, 1.02), infer=(4.0, 3.0), restore=(0.5, 0.4), write=(0.1, 0.2))
    assert split.beside == pytest.approx(1.0)
    split = _split(2, decode=(1.0, 0.9), infer=(4.0, 3.0), restore=(0.5, 0.4), write=(0.1, 0.1))
    assert split.beside == 0
    split = _split(2, decode=(1.0, 0.9), infer=(4.0, 8.0), restore=(0.5, 0.4), write=(0.1, 0.1))
    assert split.beside == pytest.approx(1.0)
    assert dataclasses.replace(split, on_device=True).beside == 0


def test_opencv_has_no_threads_of_its_own_in_a_pass(
    darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    restore = stages.restore_window

    def look(*arguments: Any, **options: Any) -> Any:
        seen.append(cv2.getNumThreads())
        return restore(*arguments, **options)

    monkeypatch.setattr(stages, "restore_window", look)
    images = sorted((rendered_pairs / "images").iterdir())[:2]
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        with OnnxRuntime(darkness_onnx, threads=1) as runtime:
            stage_pass(images, runtime, 1, tmp_path)
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)
    assert seen == [1, 1]


@pytest.mark.parametrize("batch_size", [1, 8, 100])
def test_a_pass_does_the_work_of_every_stage(
    darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path, batch_size: int
) -> None:
    images = sorted((rendered_pairs / "images").iterdir())
    with OnnxRuntime(darkness_onnx, threads=1) as runtime:
        assert not on_device(runtime)
        found = stage_pass(images, runtime, batch_size, tmp_path)
    assert list(found.wall_ms) == list(found.cpu_ms) == list(STAGES)
    assert min(found.wall_ms.values()) > 0
    assert found.megapixels == pytest.approx((120 * 90 + 96 * 128) / 2e6)
    masks = [read_mask(tmp_path / f"{n}.png") for n in range(len(images))]
    assert [m.shape for m in masks[:2]] == [(120, 90), (96, 128)]
    assert all(m.any() for m in masks)


def test_crowding_is_a_ratio_of_medians_and_is_kept() -> None:
    split = _split(2, decode=(1.0, 1.0), infer=(4.0, 4.0), restore=(1.0, 1.0), write=(1.0, 1.0))
    assert split.crowding is None
    assert StageSplit.from_dict(split.to_dict()) == split
    split = dataclasses.replace(split, crowded_ms=(9.0, 4.6, 4.4))
    assert split.crowding == pytest.approx(1.15)
    assert StageSplit.from_dict(split.to_dict()) == split


def test_a_crowded_pass_computes_every_batch(darkness_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with OnnxRuntime(darkness_onnx, threads=2) as runtime:
        batch = np.zeros((3, *runtime.card.input_size, 3), np.uint8)
        seen = []
        submit = runtime.submit
        monkeypatch.setattr(runtime, "submit", lambda images: seen.append(len(images)) or submit(images))
        found = crowded_pass(runtime, batch, calls=4)
        assert seen == [3] * 8, "four for each thread"
        assert found is not None
        assert 0 < found < 1000
        monkeypatch.setattr(runtime, "name", "tensorrt")
        assert crowded_pass(runtime, batch) is None
