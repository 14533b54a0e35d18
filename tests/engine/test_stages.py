"""The threads of a run help each other."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from isicrt.engine.onnx_runtime import OnnxRuntime
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
