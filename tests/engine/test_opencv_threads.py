"""A run keeps OpenCV's own threads out, and gives the process its setting back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from isicrt.engine import opencv_threads
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.opencv_threads import WITHOUT_OPENCV_THREADS, OwnThreads
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


_forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    _enlarge()  # starts them
    yield
    cv2.setNumThreads(before)


def _enlarge() -> None:
    cv2.resize(np.zeros((64, 64), np.uint8), (800, 800))


def _fork(work: Callable[[], bool]) -> int:
    """The exit code of a forked process: 0 where `work` is True, -14 where it hangs."""
    if not (child := os.fork()):
        code = 2
        try:
            signal.alarm(20)
            code = int(not work())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _runs() -> bool:
    """What a forked process's run does. To change their number OpenCV joins the threads that it has: with those that
    stayed in the parent, for ever."""
    numbers = [cv2.getNumThreads()]
    with WITHOUT_OPENCV_THREADS:
        numbers.append(cv2.getNumThreads())
        _enlarge()
    return [*numbers, cv2.getNumThreads()] == [1, 1, 1]


@_forks
@pytest.mark.usefixtures("three_threads")
def test_a_forked_process_does_not_wait_for_the_threads_of_its_parent() -> None:
    assert _fork(_runs) == 0
    assert cv2.getNumThreads() == 3


@_forks
@pytest.mark.usefixtures("three_threads")
def test_nor_one_that_is_forked_by_it() -> None:
    assert _fork(lambda: _fork(_runs) == 0 and _runs()) == 0


@_forks
@pytest.mark.usefixtures("three_threads")
def test_nor_one_that_is_forked_beside_a_thread_that_uses_them() -> None:
    ended = threading.Event()

    def keep_on() -> None:
        while not ended.is_set():
            _enlarge()

    thread = threading.Thread(target=keep_on)
    thread.start()
    try:
        assert {_fork(_runs) for _ in range(60)} == {0}
    finally:
        ended.set()
        thread.join()
    assert cv2.getNumThreads() == 3


@_forks
@pytest.mark.usefixtures("three_threads")
def test_a_process_that_is_forked_in_a_run_may_leave_it_too() -> None:
    def leave() -> bool:
        WITHOUT_OPENCV_THREADS.__exit__()
        return _runs()

    with WITHOUT_OPENCV_THREADS:
        assert _fork(leave) == 0
        assert cv2.getNumThreads() == 1
    assert cv2.getNumThreads() == 3


@_forks
@pytest.mark.usefixtures("three_threads")
def test_an_interrupt_at_a_fork_leaves_the_setting_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python reports what a hook raises, forks and calls the others."""

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(opencv_threads.cv2, "setNumThreads", interrupted)
        own = OwnThreads()
        with pytest.raises(KeyboardInterrupt):
            own.begin_fork()
    own.end_fork()
    with own:
        assert cv2.getNumThreads() == 1
    assert cv2.getNumThreads() == 3
