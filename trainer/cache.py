"""Pre-resized images and masks on disk: a data set is decoded once for all epochs and runs.

A cache holds what training needs of a pair and no more: the image at one square size, by the resize rule that
deployment uses, and its mask by nearest neighbour. 1,800 pairs at 256 px are 450 MB, mapped into memory and shared by
parallel runs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isicrt.engine.cache_folder import cache_folder
from isicrt.engine.errors import DataError
from isicrt.engine.geometry import UInt8Array, resize_image
from isicrt.engine.images import read_image, read_mask
from isicrt.trainer.dataset import Pair

_VERSION = 1
"""Of the content: a new number leaves old caches unused."""


@dataclass(frozen=True)
class ResizedPairs:
    """Images and masks of a list of pairs, in its order.

    ``images`` is uint8 N x size x size x 3, RGB; ``masks`` uint8 N x size x size, 0 or 255. Both are read-only maps of
    files, or the chosen rows of one in memory.
    """

    images: UInt8Array
    masks: UInt8Array
    soft: bool = False
    """Whether the masks have all levels from 0 to 255, as shares of 255. They are then resampled bilinearly."""


def resized_pairs(
    pairs: Sequence[Pair], size: int, folder: Path | None = None, *, within: Sequence[Pair] | None = None
) -> ResizedPairs:
    """The pairs at `size` x `size` pixels, from the cache or decoded now.

    Args:
        pairs: at least one.
        size: pixels.
        folder: of caches; None for `cache_folder`. A cache belongs to names, sizes and times of change of its files, so
            an edited image makes a new one. Old ones may be deleted at any time.
        within: a longer list that has all of the pairs, and whose cache is read: runs that learn from parts of one
            list then share one cache.

    Raises:
        DataError: a file cannot be decoded, or the cache cannot be written.
    """
    if not pairs:
        raise DataError("there is no image to cache")
    if within is not None and len(within) > len(pairs):
        whole = resized_pairs(within, size, folder)
        number = {pair.id: i for i, pair in enumerate(within)}
        rows = [number[pair.id] for pair in pairs]
        return ResizedPairs(np.asarray(whole.images[rows]), np.asarray(whole.masks[rows]))
    place = (folder or cache_folder()) / f"pairs-{size}-{_key(pairs, size)}"
    if not place.is_dir():
        _fill(pairs, size, place)
    images, masks = (np.load(place / f"{name}.npy", mmap_mode="r") for name in ("images", "masks"))
    return ResizedPairs(images, masks)


def _key(pairs: Sequence[Pair], size: int) -> str:
    digest = hashlib.sha256(f"{_VERSION} {size}".encode())
    for pair in pairs:
        for path in (pair.image, pair.mask):
            try:
                state = path.stat()
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error.strerror}") from error
            digest.update(f"{path.absolute()}\0{state.st_size}\0{state.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:24]


def _fill(pairs: Sequence[Pair], size: int, place: Path) -> None:
    """Make the cache beside its final name, then rename: a run that is killed leaves nothing half under it."""
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        count = len(pairs)
        images = np.lib.format.open_memmap(temporary / "images.npy", "w+", np.uint8, (count, size, size, 3))
        masks = np.lib.format.open_memmap(temporary / "masks.npy", "w+", np.uint8, (count, size, size))

        def fill(index: int) -> None:
            images[index] = resize_image(read_image(pairs[index].image), (size, size))
            masks[index] = nearest(read_mask(pairs[index].mask), (size, size)) * 255

        # Decoding releases the GIL.
        with ThreadPoolExecutor() as threads:
            for _ in threads.map(fill, range(count)):
                pass
        images.flush()
        masks.flush()
        try:
            temporary.rename(place)
        except OSError:
            if not place.is_dir():  # else another run made the same one meanwhile
                raise
    except OSError as error:
        raise DataError(
            f"{place.parent}: the cache of resized images cannot be written: {error}. Name another folder with "
            "ISICRT_CACHE, or train without a cache (--no-cache)"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def nearest(mask: np.ndarray, size: tuple[int, int]) -> UInt8Array:
    """A bool or uint8 H x W mask at `size` (height, width) by nearest neighbour, as uint8."""
    rows = ((np.arange(size[0]) + 0.5) * mask.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * mask.shape[1] / size[1]).astype(int)
    return mask[np.ix_(rows, columns)].astype(np.uint8)
