"""The way of an image through the stages: what the decode, infer and write threads each do with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from isicrt.engine.geometry import UInt8Array
from isicrt.engine.images import Decoded, FileStamp
from isicrt.engine.in_flight import infer_batches
from isicrt.engine.masks import Mask, restore_mask
from isicrt.engine.runtime import Runtime
from isicrt.engine.sources import Job

Decode = Callable[[Path, tuple[int, int]], Decoded]


@dataclass(frozen=True)
class Item:
    """An image on its way."""

    job: Job
    native_size: tuple[int, int]
    content: Any
    """What the next stage takes: of one `Route`, and nobody else's business."""
    stamp: FileStamp | None


class Route(Protocol):
    """One way through the stages. `read` and `restore` are called by several threads, `results` by one."""

    batch_pixels: float
    """Native pixels that the images of one batch may have together, where it is more than one image."""

    def read(self, job: Job) -> Item:
        """A decode thread's work. Raises ImageError."""
        ...

    def results(self, batches: Iterator[list[Item]]) -> Iterator[tuple[list[Item], Iterable[Any]]]:
        """The inference thread's work: for each batch, in order, the new content of each item, or its ImageError."""
        ...

    def restore(self, item: Item) -> Mask:
        """A write thread's work: the finished mask, bool, native height x width."""
        ...


class HostRoute:
    """Pixels are decoded and masks restored on the CPU; the network is wherever its runtime is.

    Args:
        runtime: see `isicrt.engine.runtime.Runtime`.
        decode: an image into pixels.
        batch_size: images in one network call.
        threshold: in (0, 1).
    """

    batch_pixels = float("inf")

    def __init__(self, runtime: Runtime, decode: Decode, batch_size: int, threshold: float) -> None:
        self._runtime, self._decode, self._batch_size, self._threshold = runtime, decode, batch_size, threshold

    def read(self, job: Job) -> Item:
        """See `Route.read`."""
        image = self._decode(job.image, self._runtime.card.input_size)
        return Item(job, image.native_size, image.pixels, image.stamp)

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

    def restore(self, item: Item) -> Mask:
        """See `Route.restore`."""
        card = self._runtime.card
        return restore_mask(
            item.content,
            item.native_size,
            threshold=self._threshold,
            keep_largest=card.keep_largest,
            fill_holes=card.fill_holes,
        )
