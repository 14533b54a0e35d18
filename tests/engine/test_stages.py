"""The threads of a run in stages help each other, and wait for each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.outcome import Outcome
from isicrt.engine.pipeline import THREAD_PREFIX, run_jobs
from isicrt.engine.sources import Job, find_jobs


def test_decode_threads_write_what_waits_and_what_is_left(
    rendered_pairs: Path, tmp_path: Path, darkness_onnx: Path
) -> None:
    jobs = find_jobs(rendered_pairs / "images", tmp_path)
    held = threading.Event()
    writers: list[str] = []

    def overlay(job: Job, mask: np.ndarray) -> None:
        name = threading.current_thread().name.removeprefix(THREAD_PREFIX)
        writers.append(name)
        if len(writers) == len(jobs):
            held.set()
        if name.startswith("write"):  # the only write thread is stuck until all others are written
            assert held.wait(60)

    with OnnxRuntime(darkness_onnx, threads=1) as runtime:
        summary = run_jobs(jobs, runtime, batch_size=4, decode_threads=2, write_threads=1, overlay=overlay)
    assert (summary.images, summary.failed) == (12, 0)
    assert sum(name.startswith("write") for name in writers) <= 1
    assert len(list(tmp_path.iterdir())) == 12


def test_jobs_are_taken_as_they_are_needed(rendered_pairs: Path, tmp_path: Path, darkness_onnx: Path) -> None:
    taken = ended = most = 0

    def jobs() -> Iterator[Job]:
        nonlocal taken, most
        for _ in range(30):
            for job in find_jobs(rendered_pairs / "images", tmp_path):
                taken += 1
                most = max(most, taken - ended)
                yield job

    def slow_consumer(_: Outcome) -> None:
        nonlocal ended
        ended += 1

    with OnnxRuntime(darkness_onnx, threads=1) as runtime:
        run_jobs(jobs(), runtime, batch_size=4, decode_threads=2, write_threads=1, on_outcome=slow_consumer)
    # A batch and what waits for it, before and after the network; the workers' hands; the outcomes.
    assert ended == 360
    assert most <= (2 + runtime.depth) * 4 + 2 * (2 + 1) + 64 + 4


def test_a_slow_writer_holds_back_the_reader(rendered_pairs: Path, tmp_path: Path, darkness_onnx: Path) -> None:
    taken = written = most = 0
    lock = threading.Lock()

    def jobs() -> Iterator[Job]:
        nonlocal taken, most
        for _ in range(20):
            for job in find_jobs(rendered_pairs / "images", tmp_path):
                with lock:
                    taken += 1
                    most = max(most, taken - written)
                yield job

    def slow(job: Job, mask: np.ndarray) -> None:
        nonlocal written
        time.sleep(0.003)
        with lock:
            written += 1

    with OnnxRuntime(darkness_onnx, threads=1) as runtime:
        run_jobs(jobs(), runtime, batch_size=4, decode_threads=2, write_threads=1, overlay=slow)
    assert written == 240
    assert most <= (2 + runtime.depth) * 4 + 2 * (2 + 1) + 4
