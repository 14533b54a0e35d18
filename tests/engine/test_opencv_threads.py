"""A run keeps OpenCV's own threads out, and gives the process its setting back."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import cv2
import numpy as np
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_is_not_left_waiting_for_the_threads_of_its_parent() -> None:
    """To change their number OpenCV joins those that it has: with threads that stayed in the parent, for ever."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        cv2.resize(np.zeros((64, 64), np.uint8), (1500, 1500))  # starts them
        if not (child := os.fork()):
            signal.alarm(20)
            numbers = [cv2.getNumThreads()]
            with WITHOUT_OPENCV_THREADS:
                numbers.append(cv2.getNumThreads())
            os._exit(0 if [*numbers, cv2.getNumThreads()] == [3, 1, 3] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_that_is_forked_in_a_run_leaves_it_too() -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        child = 1
        with WITHOUT_OPENCV_THREADS:
            child = os.fork()
            inside = cv2.getNumThreads()
        if not child:
            os._exit(0 if (inside, cv2.getNumThreads()) == (1, 3) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (inside, cv2.getNumThreads()) == (1, 3)
    finally:
        cv2.setNumThreads(before)
