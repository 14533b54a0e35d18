"""The threads that decode: one that is stuck is given up, its image has failed, and another takes its place."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from isicrt.engine.pixel_budget import BUDGET
from isicrt.engine.sources import Job

MAX_LOST = 16
"""Threads that a run gives up before it stops: then it is the disk that hangs, and not an image."""


class Abandoned(Exception):
    """The thread was given up while it decoded: what it has is nobody's."""


class DecodeSlot:
    """What one decode thread does at the moment."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._lock = threading.Lock()
        self._job: Job | None = None
        self._started = 0.0
        self._thread: int | None = None
        self.abandoned = False

    def begin(self, job: Job) -> None:
        """The thread takes a job."""
        with self._lock:
            self._thread, self._started, self._job = threading.get_ident(), time.monotonic(), job

    def end(self) -> None:
        """The thread has its result. Raises `Abandoned` where that is too late."""
        with self._lock:
            if self.abandoned:
                raise Abandoned
            self._job = None

    def give_up(self, seconds: float) -> Job | None:
        """The job, if the thread has worked on it for longer than this; the thread's result is then refused."""
        with self._lock:
            if self._job is None or self.abandoned:
                return None
            now = time.monotonic()
            if BUDGET.is_waiting(self._thread):  # for its turn, which is not work
                self._started = now
            if now - self._started <= seconds:
                return None
            self.abandoned = True
            return self._job


class DecodeWatch:
    """Looks after the slots of a run.

    Args:
        slots: one for each thread.
        seconds: that a job may take.
        replace: starts a thread for a new slot.
    """

    def __init__(self, slots: list[DecodeSlot], seconds: float, replace: Callable[[DecodeSlot], None]) -> None:
        self.seconds = seconds
        self.lost = 0
        self._slots = slots
        self._replace = replace
        self._next = 0.0

    def stuck_jobs(self) -> list[Job]:
        """Jobs whose thread was given up now. Cheap to ask often."""
        now = time.monotonic()
        if now < self._next:
            return []
        self._next = now + min(1.0, self.seconds / 4)
        jobs = []
        for n, slot in enumerate(self._slots):
            if (job := slot.give_up(self.seconds)) is not None:
                jobs.append(job)
                self.lost += 1
                self._slots[n] = DecodeSlot(slot.number)
                self._replace(self._slots[n])
        return jobs
