"""A run keeps OpenCV's own threads out, and gives the process its setting back."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.opencv_threads import WITHOUT_OPENCV_THREADS
from isicrt.engine.pipeline import run_jobs
from isicrt.engine.sources import find_jobs


@pytest.mark.parametrize("raises", [False, True])
def test_opencv_computes_in_the_calling_thread_while_a_run_lasts(
    rendered_pairs: Path, darkness_onnx: Path, tmp_path: Path, raises: bool
) -> None:
    seen: list[int] = []

    def look(_: object) -> None:
        seen.append(cv2.getNumThreads())
        if raises:
            raise RuntimeError("the consumer has failed")

    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        with OnnxRuntime(darkness_onnx, threads=1) as runtime:
            jobs = find_jobs(rendered_pairs / "images", tmp_path / "masks")
            if raises:
                with pytest.raises(RuntimeError, match="consumer"):
                    run_jobs(jobs, runtime, on_outcome=look)
            else:
                run_jobs(jobs, runtime, on_outcome=look)
        assert set(seen) == {1}
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


def test_of_two_runs_at_once_the_last_gives_it_back() -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        first, second = WITHOUT_OPENCV_THREADS, WITHOUT_OPENCV_THREADS
        first.__enter__()
        second.__enter__()
        first.__exit__()
        assert cv2.getNumThreads() == 1
        second.__exit__()
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)
