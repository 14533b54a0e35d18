"""The stages: decode threads -> one inference thread -> restore-and-write threads, between bounded channels. Decode
threads write too where masks wait. With many cores each write thread drives a process that does its work, and then
decode threads only decode; where a GPU decodes, each decode thread has a process that reads ahead.

Memory does not depend on the number of images: jobs are taken from their iterable as they are needed, and a stage
that is ahead waits. The work is done in native code that releases the GIL, so threads are enough for a few cores. When
a run is interrupted, every channel is cut off and the threads end after their current item, or their process's.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from isicrt.engine.channel import BusyTime, Channel, Ended, Stopped
from isicrt.engine.decoding import MAX_LOST, Abandoned, DecodeSlot, DecodeWatch
from isicrt.engine.errors import DataError, ImageError, IsicrtError, ModelError
from isicrt.engine.finishing import Finished, Finishing
from isicrt.engine.images import DamagedImageError
from isicrt.engine.ledger import Ledger
from isicrt.engine.masks import Mask
from isicrt.engine.outcome import Outcome
from isicrt.engine.pixel_budget import BUDGET
from isicrt.engine.read_process import ReadAll, ReadProcess
from isicrt.engine.routes import Item, Route
from isicrt.engine.sources import Job
from isicrt.engine.write_process import WriteProcess, is_large

THREAD_PREFIX = "isicrt-"
STOP_SECONDS = 1.5
"""How long a run that stops early waits for its threads, so that Ctrl-C takes less than 2 s whatever they are doing."""
_WATCH_SECONDS = 0.1
"""Between two looks at what has ended, at decoders that are stuck, and at `should_stop`."""

_GATHER_SECONDS = 0.02

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


class Pipeline:
    """The threads and the channels of one run."""

    def __init__(self, jobs: Iterable[Job], route: Route, settings: StageSettings, decoders: int, writers: int) -> None:
        self._jobs = iter(jobs)
        self._jobs_lock = threading.Lock()
        self._jobs_error: BaseException | None = None
        self._route = route
        self._settings = settings
        # Room for the next batch while one is in the network.
        self._decoded: Channel[Item] = Channel(settings.batch_size + decoders, producers=decoders)
        self._inferred: Channel[Item] = Channel(settings.batch_size + writers, producers=1)
        self._outcomes: Channel[Outcome] = Channel(256, producers=decoders + writers, wake_at=32)
        self.busy = BusyTime()
        self.error: BaseException | None = None
        self.asked_to_stop = False
        self._draining = self._is_cut = False
        self._deadline = float("inf")
        self._waited = 0.0
        self._in_flight: deque[list[Item]] = deque()
        # Of each decode thread and, where it is given up, its successor: jobs to be checked, and jobs to be read.
        self._ahead: list[tuple[deque[Job], deque[Job]]] = [(deque(), deque()) for _ in range(decoders)]
        slots = [DecodeSlot(n) for n in range(decoders)]
        # A worker that is overdue is killed first: a thread is given up where that does not help.
        self._watch = DecodeWatch(slots, settings.decode_timeout * 1.25 + 0.25, self._start_decoder)
        self._threads = [
            *(self._decoder(slot) for slot in slots),
            self._thread("infer", self._infer, self._inferred),
            *(self._thread(f"write-{n}", partial(self._write_all, n), self._outcomes) for n in range(writers)),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def ended(self, should_stop: Callable[[], bool]) -> Iterator[Outcome]:
        """Outcomes until the last one. Raises `Stopped` where the run was cut off."""
        while True:
            try:
                outcome = self._outcomes.poll(_WATCH_SECONDS)
            except Ended:
                return
            if outcome is not None:
                yield outcome
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
        for channel in (self._decoded, self._inferred, self._outcomes):
            channel.stop()

    def _fail(self, error: BaseException) -> None:
        self.error = self.error or error
        self._cut()

    def _decoder(self, slot: DecodeSlot) -> threading.Thread:
        return self._thread(f"decode-{slot.number}", lambda: self._decode_and_help(slot), self._outcomes, slot=slot)

    def _start_decoder(self, slot: DecodeSlot) -> None:
        # The thread that was given up is not waited for any more: it may never end.
        name = f"{THREAD_PREFIX}decode-{slot.number}"
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

    def _takes_no_more(self) -> bool:
        return self._draining

    def _next_jobs(self, most: int) -> list[Job]:
        """Fewer where they come slowly: the first of them need not wait for the last."""
        jobs: list[Job] = []
        with self._jobs_lock:
            until = time.monotonic() + _GATHER_SECONDS
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
        return jobs

    def _record(self, *ended: tuple[Outcome, dict[str, Any] | None]) -> None:
        if self._settings.ledger is not None:
            if self._is_cut:  # what a run that was cut off thinks of an image may be wrong
                raise Stopped
            self._settings.ledger.record(*ended)

    def _end(self, *ended: tuple[Outcome, dict[str, Any] | None]) -> None:
        self._record(*ended)
        for outcome, _ in ended:
            self._outcomes.put(outcome)

    def _decode_and_help(self, slot: DecodeSlot) -> None:
        try:
            if self._settings.read_ahead is None:
                self._decode(slot)
            else:
                self._decode_ahead(slot, self._settings.read_ahead)
        finally:
            if not slot.abandoned:
                self._decoded.close()
        if not self._settings.write_in_processes:
            self._write()  # what is left: with the write threads alone, the other cores would be idle at the end

    def _decode(self, slot: DecodeSlot) -> None:
        while True:
            # What is nearly done goes first. The system gives each thread its share and knows nothing of stages: write
            # threads, which are few, would fall behind where masks are large.
            while not self._settings.write_in_processes and (item := self._inferred.take()) is not None:
                self._end(self._finish(item))
            if not (jobs := self._next_jobs(1)):
                return
            slot.begin(jobs[0])
            ended = self._before(jobs[0]) or self._read(jobs[0])
            slot.end()
            self._hand_on(ended)

    def _decode_ahead(self, slot: DecodeSlot, task: ReadAll) -> None:
        unchecked, unread = self._ahead[slot.number]
        process = ReadProcess(task, self._settings.decode_timeout)
        try:
            while not self._takes_no_more():
                if not unchecked and not unread:
                    unchecked.extend(self._next_jobs(process.takes))
                    if not unchecked:
                        return
                while unchecked:
                    if self._takes_no_more():
                        return
                    job = unchecked.popleft()
                    slot.begin(job)
                    before = self._before(job)
                    slot.end()
                    if before is None:
                        unread.append(job)
                    else:
                        self._hand_on(before)
                with self.busy.stage("decode"):
                    images = deque(process.read([job.image for job in unread]))
                while images:
                    if self._takes_no_more():
                        return
                    job, image = unread.popleft(), images.popleft()
                    if image is not None:
                        self._hand_on(Item(job, image.native_size, image, image.stamp))
                        continue
                    slot.begin(job)
                    ended = self._read(job)
                    slot.end()
                    self._hand_on(ended)
        finally:
            process.close()

    def _before(self, job: Job) -> Outcome | None:
        """How an image has ended already; None where it is to be read."""
        if job.problem is not None:
            return Outcome(job, job.problem, None, None)
        ledger = self._settings.ledger
        try:
            return None if ledger is None else ledger.check(job)
        except ImageError as error:
            return _damaged(job, error)

    def _read(self, job: Job) -> Item | Outcome:
        """An image for the network, or how it has ended without it."""
        try:
            with self.busy.stage("decode"):
                return self._route.read(job)
        except ImageError as error:
            return _damaged(job, error)

    def _hand_on(self, ended: Item | Outcome) -> None:
        if isinstance(ended, Outcome):
            self._end((ended, None))
        else:
            self._decoded.put(ended)

    def _infer(self) -> None:
        ledger = self._settings.ledger
        results = self._route.results(self._batches())
        while True:
            started, waited = time.perf_counter(), self._waited
            try:
                batch, contents = next(results)
            except StopIteration:
                return
            except (IsicrtError, Stopped):
                raise
            except Exception as error:  # runtimes have no common root of their errors
                raise self._inference_error(error) from error
            self._in_flight.popleft()
            self.busy.add("infer", time.perf_counter() - started - (self._waited - waited))
            done = [replace(item, content=new) for item, new in zip(batch, contents, strict=True)]
            if ledger is not None:
                ledger.announce([item.job for item in done if not isinstance(item.content, ImageError)])
            for item in done:
                if isinstance(item.content, ImageError):
                    self._end((_damaged(item.job, item.content), None))
                else:
                    self._inferred.put(item)

    def _batches(self) -> Iterator[list[Item]]:
        """Full batches, and what is left in the end; one that would have too many pixels goes before it is full."""
        size, most = self._settings.batch_size, self._route.batch_pixels
        batch: list[Item] = []
        pixels = 0
        started = time.perf_counter()
        for item in self._decoded:
            own = item.native_size[0] * item.native_size[1]
            ready = []
            if batch and pixels + own > most:
                ready.append(batch)
                batch, pixels = [], 0
            batch.append(item)
            pixels += own
            if len(batch) == size:
                ready.append(batch)
                batch, pixels = [], 0
            for full in ready:
                self._waited += time.perf_counter() - started
                self._in_flight.append(full)
                yield full
                started = time.perf_counter()
        self._waited += time.perf_counter() - started
        if batch:
            self._in_flight.append(batch)
            yield batch

    def _inference_error(self, error: Exception) -> ModelError:
        # Results come in order, so it was the oldest batch in flight that failed.
        batch = self._in_flight[0] if self._in_flight else []
        if not batch:
            return ModelError(f"model '{self._settings.model}' failed: {error}")
        names = f"{batch[0].job.image} and {len(batch) - 1} more" if len(batch) > 1 else str(batch[0].job.image)
        return ModelError(f"model '{self._settings.model}' failed on a batch of {len(batch)} ({names}): {error}")

    def _write(self) -> None:
        for item in self._inferred:
            self._end(self._finish(item))

    def _write_all(self, number: int) -> None:
        """A write thread's work."""
        if not self._settings.write_in_processes:
            self._write()
            return
        process = WriteProcess(self._settings.finishing, number)
        try:
            for items in self._inferred.several(lambda: process.takes, lambda item: is_large(item.native_size)):
                finished = process.finish([(item.job.mask, item.native_size, item.content) for item in items])
                ended = [(item, done) for item, done in zip(items, finished, strict=True) if done is not None]
                if ended:
                    self._end(*[self._noted(item, done) for item, done in ended])
                if process.error is not None:
                    raise process.error
                for item, done in zip(items, finished, strict=True):
                    if done is None:  # one after the other, so that a run that is cut off ends here
                        self._end(self._finish(item))
        finally:
            process.close()

    def _finish(self, item: Item) -> tuple[Outcome, dict[str, Any] | None]:
        """Write a mask in this thread."""
        overlay = self._settings.overlay
        then = None if overlay is None else partial(overlay, item.job)
        with BUDGET.admit(item.native_size[0] * item.native_size[1]):
            done = self._settings.finishing.finish(item.job.mask, item.native_size, item.content, then)
        return self._noted(item, done)

    def _noted(self, item: Item, done: Finished) -> tuple[Outcome, dict[str, Any] | None]:
        """How an image ended, and what the journal notes of its mask."""
        self.busy.add("restore", done.restore_seconds)
        self.busy.add("write", done.write_seconds)
        outcome = Outcome(item.job, done.problem, item.native_size, done.lesion)
        if done.problem is not None or self._settings.ledger is None:
            return outcome, None
        return outcome, self._settings.ledger.note(item.native_size, done, item.stamp)


def _damaged(job: Job, error: ImageError) -> Outcome:
    stamp = error.stamp if isinstance(error, DamagedImageError) else None
    return Outcome(job, str(error), None, None, damaged=stamp)
