from __future__ import annotations

from pathlib import Path

import pytest

from isicrt.benchmarks.throughput import EndToEnd, run_once
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.pipeline import RunSummary
from isicrt.engine.sources import Job, find_jobs
from tests.benchmarks.sample_report import BUSY


def test_figures_are_medians_of_the_runs() -> None:
    runs = tuple(RunSummary(30, 0, seconds, 12.0, BUSY) for seconds in (3.0, 1.0, 2.0))
    result = EndToEnd(8, runs)
    assert result.images_per_second == 15
    assert result.megapixels_per_second == 6
    assert result.ms_per_image == pytest.approx(1000 / 15)
    assert result.spread == 1


@pytest.mark.parametrize("threads", [None, 1])
def test_a_run_writes_every_mask_and_tells_what_failed(
    darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path, threads: int | None
) -> None:
    jobs = find_jobs(rendered_pairs / "images", tmp_path)
    bad = [Job(tmp_path / name, tmp_path / "none" / name) for name in ("zzz.jpg", "aaa.jpg")]
    with OnnxRuntime(darkness_onnx) as runtime:
        summary, failures = run_once(jobs + bad, runtime, 5, threads)
    assert (summary.images, summary.failed) == (14, 2)
    assert all(job.mask.is_file() for job in jobs)
    assert [("aaa.jpg" in f, "zzz.jpg" in f) for f in failures] == [(True, False), (False, True)]
