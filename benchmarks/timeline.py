"""Who worked when: the spans of every stage on every thread, over the first batches of a run.

Every stage of the pipeline tells its busy time when it ends. That call is watched from outside, with Python's own
profile hook on the threads that the pipeline starts. The hook costs a little in every call, so this run's times are in
no other figure.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from isicrt.benchmarks.throughput import run_once
from isicrt.engine.channel import BusyTime
from isicrt.engine.pipeline import STAGES, THREAD_PREFIX
from isicrt.engine.runtime import Runtime
from isicrt.engine.sources import Job

TIMELINE_BATCHES, TIMELINE_IMAGES = 4, 128
"""Of the run that is drawn: so many batches, and of small batches more, so that each thread is seen at several."""


@dataclass(frozen=True)
class Lane:
    """One stage on one thread."""

    thread: str
    """As the pipeline names it: ``worker-0``; in a run in stages ``decode-0``, ``infer``, ``write-1``."""
    stage: str
    starts_ms: tuple[float, ...]
    """Since the first span of the run began, ascending."""
    ends_ms: tuple[float, ...]
    """Of the same spans."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "thread": self.thread,
            "stage": self.stage,
            "starts_ms": [round(t, 3) for t in self.starts_ms],
            "ends_ms": [round(t, 3) for t in self.ends_ms],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Lane:
        """The inverse of `to_dict`."""
        return cls(data["thread"], data["stage"], tuple(data["starts_ms"]), tuple(data["ends_ms"]))


def record_timeline(
    jobs: Sequence[Job], out: Path, runtime: Runtime, batch_size: int, threads: int | None = None
) -> tuple[Lane, ...]:
    """Run the pipeline over `jobs` and note when each stage worked.

    Args:
        jobs, out, runtime, batch_size, threads: see `run_once`.

    Returns:
        By stage, then by thread. Images that fail are seen as far as they came.
    """
    watch = _Watch()
    before = threading.getprofile()
    threading.setprofile(watch)
    try:
        run_once(jobs, out, runtime, batch_size, threads)
    finally:
        threading.setprofile(before)
    return watch.lanes()


class _Watch:
    """A profile function: called by the interpreter at each call and return, in the thread where it happens."""

    def __init__(self) -> None:
        self._spans: defaultdict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code is BusyTime.add.__code__:
            end, thread = 1e3 * time.perf_counter(), threading.current_thread().name.removeprefix(THREAD_PREFIX)
            given = frame.f_locals
            end -= 1e3 * given["ago"]
            self._spans[given["name"], thread].append((end - 1e3 * given["seconds"], end))

    def lanes(self) -> tuple[Lane, ...]:
        first = min((start for spans in self._spans.values() for start, _ in spans), default=0.0)
        order = sorted(self._spans, key=lambda key: (STAGES.index(key[0]), key[1]))
        return tuple(
            Lane(
                thread,
                stage,
                tuple(start - first for start, _ in self._spans[stage, thread]),
                tuple(end - first for _, end in self._spans[stage, thread]),
            )
            for stage, thread in order
        )
