"""Images into masks: decode workers -> one inference thread -> restore-and-write workers, between bounded channels.

Memory does not depend on the number of images: jobs are taken from their iterable as they are needed, and a stage
that is ahead waits. The work is done in native code that releases the GIL, so threads are enough. The calling thread
only collects outcomes; when it is interrupted, every channel is cut off and the threads end after their current item.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from isicrt.engine.errors import ImageError, IsicrtError, ModelError, SettingsError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.images import decode_image
from isicrt.engine.masks import Mask, restore_mask, write_mask
from isicrt.engine.runtime import Runtime
from isicrt.engine.sources import Job

STAGES = ("decode", "infer", "restore", "write")
THREAD_PREFIX = "isicrt-"
STOP_SECONDS = 1.5
"""How long a run that stops early waits for its threads, so that Ctrl-C takes less than 2 s whatever they are doing."""

Overlay = Callable[[Job, Mask], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """How one image ended."""

    job: Job
    error: str | None
    """None where the mask was written; else what went wrong, with the file."""
    native_size: tuple[int, int] | None
    """(height, width) of image and mask in pixels; None where the image could not be decoded."""
    lesion_fraction: float | None
    """Share of the pixels that the mask calls lesion, in [0, 1]; None where there is no mask."""


@dataclass(frozen=True)
class RunSummary:
    """What a run did."""

    images: int
    """Masks and failures together."""
    failed: int
    seconds: float
    """Wall clock, from the first image read to the last mask written."""
    megapixels: float
    """Native pixels of the masks that were written, in millions."""
    stage_seconds: Mapping[str, float]
    """Busy seconds of each of `STAGES`, summed over its threads. Overlays count as written."""

    @property
    def images_per_second(self) -> float:
        """Masks written a second; failures do not count."""
        return (self.images - self.failed) / self.seconds if self.seconds else 0.0

    @property
    def megapixels_per_second(self) -> float:
        """Native megapixels of masks written a second."""
        return self.megapixels / self.seconds if self.seconds else 0.0


def run_jobs(
    jobs: Iterable[Job],
    runtime: Runtime,
    *,
    batch_size: int = 8,
    threshold: float | None = None,
    decode_threads: int | None = None,
    write_threads: int | None = None,
    mask_bits: int = 1,
    overlay: Overlay | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> RunSummary:
    """Segment images into mask files. An image that cannot be read, or whose mask cannot be written, costs itself only.

    Args:
        jobs: taken as they are needed, by a thread of the run; each ends in one outcome.
        runtime: used by one thread of the run and by nobody else meanwhile.
        batch_size: images in one network call.
        threshold: in (0, 1); None for the model card's.
        decode_threads, write_threads: None for a choice that fits `available_cores`.
        mask_bits: 1 or 8, see `write_mask`.
        overlay: called with the job and its mask, bool H x W, after the mask was written, by several threads.
        on_outcome: called for each image as it ends, in no fixed order, in the calling thread.

    Raises:
        SettingsError: an argument out of its range, or a batch that the model was not built for.
        ModelError: the network failed on a batch. Masks that were written stay.
        DataError: from `jobs`.
    """
    if not 1 <= batch_size <= (runtime.max_batch or batch_size):
        limit = "at least 1" if runtime.max_batch is None else f"1 to {runtime.max_batch}"
        raise SettingsError(f"batch size {batch_size}: model '{runtime.card.name}' takes {limit}")
    threshold = runtime.card.threshold if threshold is None else threshold
    if not 0 < threshold < 1:
        raise SettingsError(f"threshold {threshold}: must lie between 0 and 1")
    if mask_bits not in (1, 8):
        raise SettingsError(f"mask bits {mask_bits}: must be 1 or 8")
    decoders, writers = default_threads(available_cores())
    decoders = decoders if decode_threads is None else decode_threads
    writers = writers if write_threads is None else write_threads
    if decoders < 1 or writers < 1:
        raise SettingsError("decode and write threads: at least 1 of each is needed")

    pipeline = _Pipeline(jobs, runtime, batch_size, threshold, mask_bits, overlay, decoders, writers)
    images = failed = pixels = 0
    started = time.perf_counter()
    try:
        pipeline.start()
        for outcome in pipeline.outcomes:
            images += 1
            if outcome.error is None and outcome.native_size is not None:
                pixels += outcome.native_size[0] * outcome.native_size[1]
            else:
                failed += 1
            if on_outcome is not None:
                on_outcome(outcome)
    except Stopped:  # a stage failed, and its error says how
        pass
    finally:
        pipeline.stop()
    if pipeline.error is not None:
        raise pipeline.error
    return RunSummary(images, failed, time.perf_counter() - started, pixels / 1e6, pipeline.busy.seconds)


def available_cores() -> int:
    """Cores that this process may use: its affinity, and a container's quota where that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))


def default_threads(cores: int) -> tuple[int, int]:
    """Decode and write threads for a number of cores. Restoring and writing takes less time than decoding."""
    return max(1, cores), max(1, cores // 2)


class Stopped(Exception):
    """The channel was cut off."""


class Channel(Generic[T]):
    """A bounded queue from some producers to some consumers, which ends when the last producer closes it.

    Iterating takes items until the end. After `stop` every waiting or later call raises `Stopped`.
    """

    def __init__(self, capacity: int, producers: int) -> None:
        self._items: deque[T] = deque()
        self._capacity = capacity
        self._producers = producers
        self._stopped = False
        self._changed = threading.Condition()

    def put(self, item: T) -> None:
        """Append an item; waits while the channel is full."""
        with self._changed:
            while len(self._items) >= self._capacity and not self._stopped:
                self._changed.wait()
            if self._stopped:
                raise Stopped
            self._items.append(item)
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                while not self._items and self._producers and not self._stopped:
                    # Windows delivers Ctrl-C to a waiting main thread only when the wait ends.
                    self._changed.wait(0.5)
                if self._stopped:
                    raise Stopped
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item

    def close(self) -> None:
        """One producer has finished."""
        with self._changed:
            self._producers -= 1
            self._changed.notify_all()

    def stop(self) -> None:
        """Cut off producers and consumers, now."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


class BusyTime:
    """Seconds that threads spent working in each stage."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time inside to a stage, also when it raises."""
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[name] += time.perf_counter() - started


@dataclass(frozen=True)
class _Item:
    """An image on its way."""

    job: Job
    native_size: tuple[int, int]
    array: UInt8Array
    """Pixels before inference, probability after it."""


class _Pipeline:
    """The threads and the channels of one run."""

    def __init__(
        self,
        jobs: Iterable[Job],
        runtime: Runtime,
        batch_size: int,
        threshold: float,
        mask_bits: int,
        overlay: Overlay | None,
        decoders: int,
        writers: int,
    ) -> None:
        self._jobs = iter(jobs)
        self._jobs_lock = threading.Lock()
        self._runtime = runtime
        self._batch_size = batch_size
        self._threshold = threshold
        self._mask_bits = mask_bits
        self._overlay = overlay
        # Room for the next batch while one is in the network.
        self._decoded: Channel[_Item] = Channel(batch_size + decoders, producers=decoders)
        self._inferred: Channel[_Item] = Channel(batch_size + writers, producers=1)
        self.outcomes: Channel[Outcome] = Channel(64, producers=decoders + writers)
        self.busy = BusyTime()
        self.error: BaseException | None = None
        self._threads = [
            *(self._thread(f"decode-{n}", self._decode, self._decoded, self.outcomes) for n in range(decoders)),
            self._thread("infer", self._infer, self._inferred),
            *(self._thread(f"write-{n}", self._write, self.outcomes) for n in range(writers)),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Cut off every channel and wait for the threads. After the end of the outcomes none is left to wait for."""
        self._cut()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _cut(self) -> None:
        for channel in (self._decoded, self._inferred, self.outcomes):
            channel.stop()

    def _thread(
        self, name: str, work: Callable[[], None], *into: Channel[_Item] | Channel[Outcome]
    ) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except Stopped:
                pass
            except BaseException as error:
                self.error = self.error or error
                self._cut()
            finally:
                for channel in into:
                    channel.close()

        # A daemon: a decoder that hangs on a file must not keep an interrupted process alive.
        return threading.Thread(target=run, name=THREAD_PREFIX + name, daemon=True)

    def _next_job(self) -> Job | None:
        with self._jobs_lock:
            return next(self._jobs, None)

    def _decode(self) -> None:
        size = self._runtime.card.input_size
        while (job := self._next_job()) is not None:
            try:
                with self.busy.stage("decode"):
                    image = decode_image(job.image, size)
            except ImageError as error:
                self.outcomes.put(Outcome(job, str(error), None, None))
            else:
                self._decoded.put(_Item(job, image.native_size, image.pixels))

    def _infer(self) -> None:
        buffer = np.empty((self._batch_size, *self._runtime.card.input_size, 3), np.uint8)
        batch: list[_Item] = []
        for item in self._decoded:
            buffer[len(batch)] = item.array
            batch.append(item)
            if len(batch) == self._batch_size:
                self._infer_batch(buffer, batch)
                batch = []
        if batch:
            self._infer_batch(buffer[: len(batch)], batch)

    def _infer_batch(self, pixels: UInt8Array, batch: list[_Item]) -> None:
        try:
            with self.busy.stage("infer"):
                probabilities = self._runtime.infer(pixels)
        except IsicrtError:
            raise
        except Exception as error:  # runtimes have no common root of their errors
            names = f"{batch[0].job.image} and {len(batch) - 1} more" if len(batch) > 1 else str(batch[0].job.image)
            raise ModelError(
                f"model '{self._runtime.card.name}' failed on a batch of {len(batch)} ({names}): {error}"
            ) from error
        for item, probability in zip(batch, probabilities, strict=True):
            self._inferred.put(_Item(item.job, item.native_size, probability))

    def _write(self) -> None:
        for item in self._inferred:
            self.outcomes.put(self._finish(item))

    def _finish(self, item: _Item) -> Outcome:
        card, job = self._runtime.card, item.job
        try:
            with self.busy.stage("restore"):
                mask = restore_mask(
                    item.array,
                    item.native_size,
                    threshold=self._threshold,
                    keep_largest=card.keep_largest,
                    fill_holes=card.fill_holes,
                )
                lesion = np.count_nonzero(mask) / mask.size
            with self.busy.stage("write"):
                job.mask.parent.mkdir(parents=True, exist_ok=True)
                write_mask(mask, job.mask, bits=self._mask_bits)
                if self._overlay is not None:
                    self._overlay(job, mask)
        except IsicrtError as error:
            return Outcome(job, str(error), item.native_size, None)
        except OSError as error:
            return Outcome(job, f"{job.mask}: {error.strerror or error}", item.native_size, None)
        except Exception as error:  # whatever it was, it was about this image: the others go on
            return Outcome(job, f"{job.mask}: {type(error).__name__}: {error}", item.native_size, None)
        return Outcome(job, None, item.native_size, lesion)
