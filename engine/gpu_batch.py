"""What goes into a batch of the GPU chain, an image, and what comes out of it, a mask of one bit a pixel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from isicrt.engine.geometry import UInt8Array
from isicrt.engine.gpu_decode import suits_gpu
from isicrt.engine.images import MAX_PIXELS, Decoded, FileStamp, Source, decode_image, may_take_long, read_source
from isicrt.engine.jpeg_notes import joined, turned_note
from isicrt.engine.masks import WindowMask, clean_window, no_lesion
from isicrt.engine.pixel_budget import LARGE_PIXELS

BATCH_PIXELS = 1 << 28
"""Native pixels of the images of one batch: 0.8 GB of RGB on the GPU. One image alone may have more."""

Decode = Callable[[Path, tuple[int, int]], Decoded]


@dataclass(frozen=True)
class SourceView:
    """A `Source` whose bytes lie in memory between those of others that were read with it."""

    data: memoryview
    stamp: FileStamp

    def whole(self) -> Source:
        """The same by itself: a copy."""
        return Source(bytes(self.data), self.stamp)


@dataclass(frozen=True)
class ChainImage:
    """An image on its way into the chain: a whole JPEG for the GPU, or pixels that the CPU decoded."""

    path: Path
    native_size: tuple[int, int]
    """(height, width) in pixels."""
    source: Source | SourceView | None
    """The file, for the GPU."""
    pixels: UInt8Array | None
    """uint8, h x w x 3, RGB, at the network's size, where `source` is None."""
    stamp: FileStamp | None
    note: str | None = None
    """See `isicrt.engine.images.Decoded`. The GPU's decoder does not say which files look damaged."""


@dataclass(frozen=True)
class PackedMask:
    """A mask as the GPU gives it: what is above the threshold, not cleaned."""

    bits: UInt8Array
    """uint8, height x ceil(width / 8); the first pixel of a row is the highest bit of its first byte."""
    native_size: tuple[int, int]
    """(height, width) in pixels."""

    def clean(self, *, keep_largest: bool, fill_holes: bool, centre_sigma: float = 0.0) -> WindowMask:
        """The finished mask; see `isicrt.engine.masks.restore_mask`."""
        rows = _within(np.any(self.bits, axis=1))
        columns = _within(np.bitwise_or.reduce(self.bits[rows], axis=0))
        if rows.start == rows.stop:
            return no_lesion(self.native_size)
        window = rows, slice(8 * columns.start, min(8 * columns.stop, self.native_size[1]))
        part = np.unpackbits(self.bits[rows, columns], axis=1, count=window[1].stop - window[1].start)
        found = WindowMask(self.native_size, window, part.view(np.bool_))
        return clean_window(found, keep_largest=keep_largest, fill_holes=fill_holes, centre_sigma=centre_sigma)


def _within(any_set: npt.NDArray[Any]) -> slice:
    """From the first that is not 0 to the last; empty where there is none."""
    (hit,) = np.nonzero(any_set)
    return slice(int(hit[0]), int(hit[-1]) + 1) if hit.size else slice(0, 0)


def within_bounds(images: Sequence[ChainImage], most: int = BATCH_PIXELS) -> Iterator[Sequence[ChainImage]]:
    """Parts of `images`, in order, of at most so many native pixels each; one image alone may have more."""
    start = pixels = 0
    for n, image in enumerate(images):
        own = image.native_size[0] * image.native_size[1]
        if n > start and pixels + own > most:
            yield images[start:n]
            start, pixels = n, 0
        pixels += own
    if start < len(images):
        yield images[start:]


def read_chain_image(
    path: str | os.PathLike[str],
    size: tuple[int, int],
    *,
    decode: Decode = decode_image,
    max_pixels: int = MAX_PIXELS,
    cpu_share: float = 0.0,
) -> ChainImage:
    """Read an image for the chain. Any thread; an ordinary JPEG is not decoded here but on the GPU.

    Args:
        path: the file.
        size: (height, width) of the network's input.
        decode: of everything that the GPU does not decode. Large images are among it: they are scaled while they are
            decoded on the CPU, and would take the GPU's memory. So are those that may take long: nothing could stop a
            decoder that works on a whole batch.
        max_pixels: `decode` has the say on a JPEG of more.
        cpu_share: of the JPEGs, in [0, 1], that are decoded here all the same, beside the GPU. The CRC of a file
            decides, so that the same file takes the same way in every run.

    Raises:
        ImageError: as `decode`.
    """
    path = Path(path)
    if (image := gpu_image(path, read_source(path), max_pixels, cpu_share)) is not None:
        return image
    decoded = decode(path, size)
    return ChainImage(path, decoded.native_size, None, decoded.pixels, decoded.stamp, decoded.note)


def gpu_image(path: Path, source: Source, max_pixels: int, cpu_share: float) -> ChainImage | None:
    """A file that was read, if it is for the GPU to decode. Arguments as of `read_chain_image`."""
    native_size = suits_gpu(source.data)
    if native_size is None or native_size[0] * native_size[1] > min(max_pixels, LARGE_PIXELS):
        return None
    if source.stamp.crc < cpu_share * 2**32 or may_take_long(source.data):
        return None
    return ChainImage(path, native_size, source, None, source.stamp, joined(turned_note(source.data)))
