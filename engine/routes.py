"""The way of an image through the stages: what the decode threads and the inference thread do with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from isicrt.engine.geometry import UInt8Array
from isicrt.engine.images import Decoded, FileStamp
from isicrt.engine.in_flight import infer_batches
from isicrt.engine.runtime import ConcurrentRuntime, Runtime
from isicrt.engine.sources import Job

Decode = Callable[[Path, tuple[int, int]], Decoded]


@dataclass(frozen=True)
class Item:
    """An image on its way."""

    job: Job
    native_size: tuple[int, int]
    content: Any
    """What the next stage takes: between `read` and `results` the route's own business, then a
    `isicrt.engine.finishing.Content`."""
    stamp: FileStamp | None
    note: str | None = None
    """See `isicrt.engine.images.Decoded`."""


class Route(Protocol):
    """One way through the stages. `read` is called by several threads, `results` by one."""

    batch_pixels: float
    """Native pixels that the images of one batch may have together, where it is more than one image."""

    def read(self, job: Job) -> Item:
        """A decode thread's work. Raises ImageError."""
        ...

    def results(self, batches: Iterator[list[Item]]) -> Iterator[tuple[list[Item], Iterable[Any]]]:
        """The inference thread's work: for each batch, in order, the new content of each item, or its ImageError."""
        ...


class HostRoute:
    """Pixels are decoded and masks restored on the CPU; the network is wherever its runtime is.

    Args:
        runtime: see `isicrt.engine.runtime.Runtime`.
        decode: an image into pixels.
        batch_size: images in one network call.
    """

    batch_pixels = float("inf")

    def __init__(self, runtime: Runtime, decode: Decode, batch_size: int) -> None:
        self._runtime, self._decode, self._batch_size = runtime, decode, batch_size

    def read(self, job: Job) -> Item:
        """See `Route.read`."""
        image = self._decode(job.image, self._runtime.card.input_size)
        return Item(job, image.native_size, image.pixels, image.stamp, image.note)

    def results(self, batches: Iterator[list[Item]]) -> Iterator[tuple[list[Item], UInt8Array]]:
        """See `Route.results`."""
        return infer_batches(self._runtime, self._stacked(batches))

    def _stacked(self, batches: Iterator[list[Item]]) -> Iterator[tuple[list[Item], UInt8Array]]:
        # Written over for the next batch, which `infer_batches` allows.
        buffer = np.empty((self._batch_size, *self._runtime.card.input_size, 3), np.uint8)
        for batch in batches:
            for row, item in enumerate(batch):
                buffer[row] = item.content
            yield batch, buffer[: len(batch)]


class BlockRoute(HostRoute):
    """As `HostRoute`, on a runtime that several threads may call.

    Args:
        runtime: computes on the thread that calls it.
        decode, batch_size: see `HostRoute`.
    """

    def __init__(self, runtime: ConcurrentRuntime, decode: Decode, batch_size: int) -> None:
        super().__init__(runtime, decode, batch_size)
        self._concurrent = runtime

    @property
    def at_once(self) -> int:
        """Images in one call of the network; fewer cost as much."""
        return min(self._concurrent.at_once, self._concurrent.max_batch or self._concurrent.at_once)

    def turn(self) -> AbstractContextManager[None]:
        """See `ConcurrentRuntime.turn`."""
        return self._concurrent.turn()

    def segment(self, items: list[Item]) -> UInt8Array:
        """Probability maps of images that were read, uint8 N x h x w, on the calling thread. Raises as
        `ConcurrentRuntime.infer_alone`."""
        return self._concurrent.infer_alone(np.stack([item.content for item in items]))
