from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isicrt.benchmarks.other_work import OtherWork
from isicrt.benchmarks.throughput import EndToEnd, TimedRun, run_once
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.sources import Job, find_jobs
from tests.benchmarks.sample_report import BUSY
from tests.journal_lines import read_journal


def test_figures_are_medians_of_the_runs() -> None:
    runs = tuple(TimedRun(30, 0, s, 12.0, BUSY, 1.5 * s, 6.0 * s, other_cpu_seconds=s / 4) for s in (3.0, 1.0, 2.0))
    result = EndToEnd(8, runs)
    assert result.images_per_second == 15
    assert result.megapixels_per_second == 6
    assert result.ms_per_image == pytest.approx(1000 / 15)
    assert result.spread == 1
    assert not result.settled
    assert result.megapixels_per_image == pytest.approx(0.4)
    assert result.busy_cores == pytest.approx(1.5)
    assert result.other_cores == pytest.approx(0.25)
    assert result.cpu_ms_per_image == pytest.approx(100)
    assert result.joules_per_image == pytest.approx(0.4)
    assert result.busy_threads("decode") == pytest.approx(0.125)


def test_runs_before_those_that_agree_do_not_count() -> None:
    runs = tuple(TimedRun(30, 0, s, 12.0, BUSY, s) for s in (9.0, 6.0, 2.0, 2.1, 2.05))
    result = EndToEnd(8, runs)
    assert result.settled
    assert result.images_per_second == pytest.approx(30 / 2.05)
    assert result.cpu_ms_per_image == pytest.approx(2050 / 30)
    assert result.spread == pytest.approx(0.1 / 2.05)
    assert len(result.to_dict()["runs"]) == 5


def test_what_was_not_noted_is_none() -> None:
    result = EndToEnd(8, (TimedRun(3, 0, 1.0, 2.4, BUSY),))
    assert (result.busy_cores, result.cpu_ms_per_image, result.joules_per_image) == (None, None, None)
    assert result.other_cores is None


@pytest.mark.parametrize("threads", [None, 1])
def test_a_run_writes_every_mask_and_tells_what_failed(
    darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path, threads: int | None
) -> None:
    jobs = find_jobs(rendered_pairs / "images", tmp_path / "out")
    bad = [Job(tmp_path / name, tmp_path / "out" / name) for name in ("zzz.jpg", "aaa.jpg")]
    with OnnxRuntime(darkness_onnx) as runtime:
        summary, failures = run_once([*jobs, *bad], tmp_path / "out", runtime, 5, threads)
    assert (summary.images, summary.failed) == (14, 2)
    assert summary.cpu_seconds is not None
    assert summary.cpu_seconds > 0
    counted = OtherWork(time.process_time).cpu_seconds() is not None
    assert (summary.other_cpu_seconds is not None) == counted
    assert all(job.mask.is_file() for job in jobs)
    ended = [line["status"] for line in read_journal(tmp_path / "out") if "status" in line]
    assert sorted(ended) == ["done"] * 12 + ["failed"] * 2, "the journal that `isicrt segment` keeps"
    assert [("aaa.jpg" in f, "zzz.jpg" in f) for f in failures] == [(True, False), (False, True)]


def test_the_decoders_own_processes_are_no_others(darkness_onnx: Path, tmp_path: Path) -> None:
    """TIFF is decoded by processes, whose work is the run's."""
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2000, 3000, 3), np.uint8)
    for n in range(8):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{n}.tif", compression="tiff_lzw")
    with OnnxRuntime(darkness_onnx) as runtime:
        jobs = find_jobs(tmp_path / "images", tmp_path / "out")
        before = sum(os.times()[2:4])
        summary, failures = run_once(jobs, tmp_path / "out", runtime, 4)
        children = sum(os.times()[2:4]) - before
    assert (summary.images, failures) == (8, ())
    assert children > 0.2, "they decoded, and have ended"
    assert summary.cpu_seconds is not None
    assert summary.cpu_seconds > 0.9 * children
