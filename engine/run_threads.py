"""What every run has, however its threads share the work: jobs, outcomes, a journal, a watch over what decodes, an end.

Memory does not depend on the number of images: jobs are taken from their iterable as they are needed, and whoever is
ahead waits. When a run is interrupted, every channel is cut off and the threads end after their current image.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from isicrt.engine.channel import BusyTime, Channel, Ended, Stopped
from isicrt.engine.decoding import MAX_LOST, Abandoned, DecodeSlot, DecodeWatch
from isicrt.engine.errors import DataError, ImageError, ModelError
from isicrt.engine.finishing import Finished, Finishing
from isicrt.engine.images import DamagedImageError
from isicrt.engine.ledger import Ledger
from isicrt.engine.masks import Mask
from isicrt.engine.outcome import Outcome
from isicrt.engine.pixel_budget import BUDGET
from isicrt.engine.read_process import ReadAll
from isicrt.engine.routes import Item, Route
from isicrt.engine.sources import Job

THREAD_PREFIX = "isicrt-"
STOP_SECONDS = 1.5
"""How long a run that stops early waits for its threads, so that Ctrl-C takes less than 2 s whatever they are doing."""
_WATCH_SECONDS = 0.1
"""Between two looks at what has ended, at decoders that are stuck, and at `should_stop`."""

_TOLD_AT_ONCE = 64
"""Outcomes that are taken together."""

GATHER_SECONDS = 0.02
"""What goes on together is not waited for much longer."""

Overlay = Callable[[Job, Mask], None]


@dataclass(frozen=True)
class StageSettings:
    """Of a run; see `isicrt.engine.pipeline.run_jobs`."""

    model: str
    """Its name, for messages."""
    batch_size: int
    finishing: Finishing
    overlay: Overlay | None
    ledger: Ledger | None
    decode_timeout: float
    write_in_processes: bool = False
    """Whether each write thread has a process that finishes its masks."""
    read_ahead: ReadAll | None = None
    """What the process of each decode thread does; None where there is none."""


class RunThreads(ABC):
    """The threads of one run. Those that decode, each in a slot, are watched: one that is stuck is replaced.

    Args:
        jobs: taken as they are needed.
        route: what is done with an image.
        settings: of the run.
        decoders: threads that decode.
        others: further threads with outcomes.
    """

    slot_name: str
    """What a thread that decodes is called, in front of its number."""

    def __init__(
        self, jobs: Iterable[Job], route: Route, settings: StageSettings, decoders: int, others: int = 0
    ) -> None:
        self._jobs = iter(jobs)
        self._jobs_lock = threading.Lock()
        self._jobs_error: BaseException | None = None
        self._route = route
        self._settings = settings
        self._outcomes: Channel[Outcome] = Channel(256, producers=decoders + others, wake_at=32)
        self._told: deque[Outcome] = deque()  # taken from there, and still to be told
        self._channels: list[Channel[Item] | Channel[Outcome]] = [self._outcomes]
        self.busy = BusyTime()
        self.error: BaseException | None = None
        self.asked_to_stop = False
        self._draining = self._is_cut = False
        self._deadline = float("inf")
        slots = [DecodeSlot(n) for n in range(decoders)]
        # A worker that is overdue is killed first: a thread is given up where that does not help.
        self._watch = DecodeWatch(slots, settings.decode_timeout * 1.25 + 0.25, self._start_decoder)
        self._threads = [self._decoder(slot) for slot in slots]

    @abstractmethod
    def _work(self, slot: DecodeSlot) -> None:
        """All that a thread does that decodes, from its first image on or where the one before it was given up."""

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def ended(self, should_stop: Callable[[], bool]) -> Iterator[Outcome]:
        """Outcomes until the last one. Raises `Stopped` where the run was cut off."""
        looked = 0.0
        while True:
            try:
                if not self._told:
                    self._told.extend(self._outcomes.poll_all(_WATCH_SECONDS, _TOLD_AT_ONCE))
            except Ended:
                return
            except Stopped:
                yield from self._outcomes.left()
                raise
            if self._told:
                yield self._told.popleft()
            if self._told and time.monotonic() < looked + _WATCH_SECONDS:
                continue
            looked = time.monotonic()
            for job in self._watch.stuck_jobs():
                seconds = f"{self._settings.decode_timeout:g} s"
                message = f"{job.image}: cannot be decoded: it took more than {seconds} (--decode-timeout)"
                outcome = Outcome(job, message, None, None)
                self._record((outcome, None))
                yield outcome
                if self._watch.lost > MAX_LOST:
                    self._fail(DataError(f"{message}, as did {MAX_LOST} others: the disk or the mount does not answer"))
            if not self._draining and should_stop():
                self.asked_to_stop = True
                self.drain()
            if time.monotonic() > self._deadline:
                self._cut()

    def drain(self) -> None:
        """Take no more jobs, and be cut off when those that were taken have not ended in time."""
        if not self._draining:
            self._draining = True
            self._deadline = time.monotonic() + STOP_SECONDS * 0.6

    def stop(self) -> None:
        """Cut off every channel and wait for the threads. After the end of the outcomes none is left to wait for."""
        self._cut()
        deadline = time.monotonic() + (STOP_SECONDS / 4 if self._draining else STOP_SECONDS)
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _cut(self) -> None:
        self._is_cut = True
        for channel in self._channels:
            channel.stop()

    def _fail(self, error: BaseException) -> None:
        self.error = self.error or error
        self._cut()

    def _decoder(self, slot: DecodeSlot) -> threading.Thread:
        return self._thread(f"{self.slot_name}-{slot.number}", lambda: self._work(slot), self._outcomes, slot=slot)

    def _start_decoder(self, slot: DecodeSlot) -> None:
        # The thread that was given up is not waited for any more: it may never end.
        name = f"{THREAD_PREFIX}{self.slot_name}-{slot.number}"
        thread = self._decoder(slot)
        self._threads = [t for t in self._threads if t.name != name] + [thread]
        thread.start()

    def _thread(
        self,
        name: str,
        work: Callable[[], None],
        *into: Channel[Item] | Channel[Outcome],
        slot: DecodeSlot | None = None,
    ) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except (Stopped, Abandoned):
                pass
            except BaseException as error:
                if slot is None or not slot.abandoned:
                    self._fail(error)
            finally:
                if slot is None or not slot.abandoned:  # its successor closes them
                    for channel in into:
                        channel.close()

        # A daemon: a decoder that hangs on a file must not keep an interrupted process alive.
        return threading.Thread(target=run, name=THREAD_PREFIX + name, daemon=True)

    def _takes_no_more(self) -> bool:  # a call, since a type checker takes an attribute for unchanged
        return self._draining

    def _next_jobs(self, most: int, *, patience: float = -1) -> list[Job]:
        """Fewer where they come slowly: the first of them need not wait for the last. None where others have waited for
        them for longer than `patience`; below 0: for ever."""
        jobs: list[Job] = []
        if not self._jobs_lock.acquire(timeout=patience):
            return jobs
        try:
            until = time.monotonic() + GATHER_SECONDS
            while not self._draining and len(jobs) < most:
                if self._jobs_error is not None:
                    if jobs:  # those that came before it are done
                        break
                    raise self._jobs_error
                try:
                    job = next(self._jobs, None)
                except BaseException as error:
                    self._jobs_error = error
                    continue
                if job is None:
                    break
                jobs.append(job)
                if time.monotonic() > until:
                    break
        finally:
            self._jobs_lock.release()
        return jobs

    def _record(self, *ended: tuple[Outcome, dict[str, Any] | None]) -> None:
        if self._settings.ledger is not None:
            if self._is_cut:  # what a run that was cut off thinks of an image may be wrong
                raise Stopped
            self._settings.ledger.record(*ended)

    def _end(self, *ended: tuple[Outcome, dict[str, Any] | None]) -> None:
        self._record(*ended)
        self._outcomes.put_all([outcome for outcome, _ in ended])

    def _is_new(self, job: Job) -> bool:
        """Whether it takes no look at the disk to know that an image is to be read."""
        ledger = self._settings.ledger
        return job.problem is None and (ledger is None or not ledger.may_know(job))

    def _before(self, job: Job) -> Outcome | None:
        """How an image has ended already; None where it is to be read."""
        if job.problem is not None:
            return Outcome(job, job.problem, None, None)
        ledger = self._settings.ledger
        try:
            return None if ledger is None else ledger.check(job, self._settings.overlay)
        except ImageError as error:
            return damaged(job, error)

    def _read(self, job: Job) -> Item | Outcome:
        """An image for the network, or how it has ended without it."""
        try:
            with self.busy.stage("decode"):
                return self._route.read(job)
        except ImageError as error:
            return damaged(job, error)

    def _inference_error(self, error: Exception, batch: list[Item]) -> ModelError:
        if not batch:
            return ModelError(f"model '{self._settings.model}' failed: {error}")
        names = f"{batch[0].job.image} and {len(batch) - 1} more" if len(batch) > 1 else str(batch[0].job.image)
        return ModelError(f"model '{self._settings.model}' failed on a batch of {len(batch)} ({names}): {error}")

    def _finish(self, item: Item) -> tuple[Outcome, dict[str, Any] | None]:
        """Write a mask in this thread."""
        overlay = self._settings.overlay
        then = None if overlay is None else partial(overlay, item.job)
        with BUDGET.admit(item.native_size[0] * item.native_size[1]):
            done = self._settings.finishing.finish(item.job.mask, item.native_size, item.content, then)
        return self._noted(item, done)

    def _noted(self, item: Item, done: Finished) -> tuple[Outcome, dict[str, Any] | None]:
        """How an image ended, and what the journal notes of its mask."""
        return self._all_noted([(item, done)])[0]

    def _all_noted(self, finished: Sequence[tuple[Item, Finished]]) -> list[tuple[Outcome, dict[str, Any] | None]]:
        """The same of several."""
        written = sum(done.write_seconds for _, done in finished)
        self.busy.add("restore", sum(done.restore_seconds for _, done in finished), ago=written)
        self.busy.add("write", written)
        return [
            (
                Outcome(item.job, done.problem, item.native_size, None, note=item.note)
                if done.problem is not None
                else Outcome(item.job, None, item.native_size, done.lesion, confidence=done.confidence, note=item.note),
                self._note(item, done),
            )
            for item, done in finished
        ]

    def _note(self, item: Item, done: Finished) -> dict[str, Any] | None:
        ledger = self._settings.ledger
        if ledger is None:
            return None
        if not done.size:
            return {"unwritten": True}  # whoever draws a mask there draws it where isicrt has none
        return ledger.note(item.native_size, done, item.stamp) | ({"note": item.note} if item.note else {})


def damaged(job: Job, error: ImageError) -> Outcome:
    stamp = error.stamp if isinstance(error, DamagedImageError) else None
    return Outcome(job, str(error), None, None, damaged=stamp)
