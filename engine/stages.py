"""The stages: decode threads -> one inference thread -> restore-and-write threads, between bounded channels. Decode
threads write too where masks wait. With many cores each write thread drives a process that does its work, and then
decode threads only decode; where a GPU decodes, each decode thread has a process that reads ahead.

The work is done in native code that releases the GIL, so threads are enough for a few cores.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from functools import partial

from isicrt.engine.channel import Channel, Stopped
from isicrt.engine.decoding import DecodeSlot
from isicrt.engine.errors import ImageError, IsicrtError
from isicrt.engine.outcome import Outcome
from isicrt.engine.pixel_budget import LARGE_PIXELS
from isicrt.engine.read_process import ReadAll, ReadProcess
from isicrt.engine.routes import Item, Route
from isicrt.engine.run_threads import RunThreads, StageSettings, damaged
from isicrt.engine.sources import Job
from isicrt.engine.task_process import MOST_AT_ONCE, MOST_ON_GPU, START_AFTER
from isicrt.engine.write_process import WriteProcess

_LOOKS = 4
"""So often the inference thread looks at what has come while a batch fills."""


class Pipeline(RunThreads):
    """The threads and the channels of a run in stages. See `RunThreads`.

    Args:
        writers: threads that finish masks, or drive the processes that do.
    """

    slot_name = "decode"

    def __init__(self, jobs: Iterable[Job], route: Route, settings: StageSettings, decoders: int, writers: int) -> None:
        super().__init__(jobs, route, settings, decoders, others=writers)
        # Room for the next batch while one is in the network.
        size = settings.batch_size
        self._decoded: Channel[Item] = Channel(size + decoders, producers=decoders, wake_at=max(1, size // _LOOKS))
        self._inferred: Channel[Item] = Channel(settings.batch_size + writers, producers=1)
        self._channels += [self._decoded, self._inferred]
        known, ledger = len(jobs) if isinstance(jobs, Sized) else 0, settings.ledger
        to_do = known if ledger is None else ledger.to_do(known)
        self._is_long = to_do >= START_AFTER * (decoders + writers)  # all of its processes are worth their start
        self._waited = 0.0
        self._in_flight: deque[list[Item]] = deque()
        # Of each decode thread and, where it is given up, its successor: jobs to be checked, and jobs to be read.
        self._ahead: list[tuple[deque[Job], deque[Job]]] = [(deque(), deque()) for _ in range(decoders)]
        self._threads += [
            self._thread("infer", self._infer, self._inferred),
            *(self._thread(f"write-{n}", partial(self._write_all, n), self._outcomes) for n in range(writers)),
        ]

    def _work(self, slot: DecodeSlot) -> None:
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
        process = ReadProcess(task, self._settings.decode_timeout, at_once=self._is_long)
        try:
            while not self._takes_no_more():
                if not unchecked and not unread:
                    unchecked.extend(self._next_jobs(process.takes))
                    if not unchecked:
                        return
                self._check(slot, unchecked, unread)
                if self._takes_no_more():
                    return
                with self.busy.stage("decode"):
                    images = process.read([job.image for job in unread])
                read: list[Item] = []
                left: list[Job] = []
                for image in images:
                    job = unread.popleft()
                    if image is None:
                        left.append(job)
                    else:
                        read.append(Item(job, image.native_size, image, image.stamp, image.note))
                unread.extendleft(reversed(left))
                self._decoded.put_all(read)
                for _ in left:
                    if self._takes_no_more():
                        return
                    job = unread.popleft()
                    slot.begin(job)
                    ended = self._read(job)
                    slot.end()
                    self._hand_on(ended)
        finally:
            process.close()

    def _check(self, slot: DecodeSlot, unchecked: deque[Job], unread: deque[Job]) -> None:
        """Find out what has ended already, and what is to be read."""
        while unchecked and not self._takes_no_more():
            job = unchecked.popleft()
            if self._is_new(job):
                unread.append(job)
                continue
            slot.begin(job)
            before = self._before(job)
            slot.end()
            if before is None:
                unread.append(job)
            else:
                self._hand_on(before)

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
                # Results come in order, so it was the oldest batch in flight that failed.
                raise self._inference_error(error, self._in_flight[0] if self._in_flight else []) from error
            self._in_flight.popleft()
            self.busy.add("infer", time.perf_counter() - started - (self._waited - waited))
            pairs = zip(batch, contents, strict=True)
            done = [Item(item.job, item.native_size, new, item.stamp, item.note) for item, new in pairs]
            if self._is_cut:
                raise Stopped
            if ledger is not None:
                ledger.announce([item.job for item in done if not isinstance(item.content, ImageError)])
            failed = [item for item in done if isinstance(item.content, ImageError)]
            if failed:
                self._end(*[(damaged(item.job, item.content), None) for item in failed])
                done = [item for item in done if not isinstance(item.content, ImageError)]
            self._inferred.put_all(done)

    def _batches(self) -> Iterator[list[Item]]:
        """Full batches, and what is left in the end; one that would have too many pixels goes before it is full."""
        size, most = self._settings.batch_size, self._route.batch_pixels
        batch: list[Item] = []
        pixels = 0
        started = time.perf_counter()
        for items in self._decoded.several(lambda: size - len(batch)):  # noqa: B023 (as it then is)
            for item in items:
                own = _pixels(item)
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

    def _write(self) -> None:
        for item in self._inferred:
            self._end(self._finish(item))

    def _write_all(self, number: int) -> None:
        """A write thread's work."""
        if not self._settings.write_in_processes:
            self._write()
            return
        most = MOST_AT_ONCE if self._settings.read_ahead is None else MOST_ON_GPU
        process = WriteProcess(self._settings.finishing, number, at_once=self._is_long, most=most)
        try:
            for items in self._inferred.several(lambda: process.takes, _pixels, LARGE_PIXELS):
                finished = process.finish([(item.job.mask, item.native_size, item.content) for item in items])
                ended = [(item, done) for item, done in zip(items, finished, strict=True) if done is not None]
                if ended:
                    self._end(*self._all_noted(ended))
                if process.error is not None:
                    raise process.error
                for item, done in zip(items, finished, strict=True):
                    if done is None:  # one after the other, so that a run that is cut off ends here
                        self._end(self._finish(item))
        finally:
            process.close()


def _pixels(item: Item) -> int:
    return item.native_size[0] * item.native_size[1]
