"""Pre-resized images and masks on disk: a data set is decoded once for all epochs and runs.

A cache holds what training needs of a pair and no more: the image at one square size, by the resize rule that
deployment uses, and its mask by nearest neighbour. 1,800 pairs at 256 px are 450 MB, mapped into memory and shared by
parallel runs.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from isicrt.engine.cache_folder import cache_file
from isicrt.engine.errors import DataError
from isicrt.engine.geometry import UInt8Array, resize_image
from isicrt.engine.images import read_image, read_mask
from isicrt.engine.lock import lock
from isicrt.trainer.dataset import Pair

_VERSION = 1
"""Of the content: a new number leaves old caches unused."""
_LOCKED = "images.npy"
"""The file of a cache that is locked while it is made."""
_LEFTOVER = re.compile(r"\.pairs-\d+-[0-9a-f]{24}\.([0-9a-f]{8})\.(\d+)\.[0-9a-f]{8}")
"""A cache that is being made, or was; with its machine and the number of its process."""


class Rows:
    """Some rows of an array, in place of a copy of them: a map of a file stays one, which parallel runs share.

    It is indexed along its first dimension, by a number, a slice or an array of numbers.
    """

    def __init__(self, array: UInt8Array, rows: Sequence[int]) -> None:
        self._array, self._rows = array, np.asarray(rows)
        self.shape = (len(rows), *array.shape[1:])
        self.nbytes = math.prod(self.shape) * array.itemsize

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> UInt8Array:
        chosen: UInt8Array = self._array[self._rows[index]]
        return chosen

    def __iter__(self) -> Iterator[UInt8Array]:
        return (self[i] for i in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> UInt8Array:
        if copy is False:
            raise ValueError("rows of an array are no array without a copy of them")
        return np.asarray(self[:], dtype)


@dataclass(frozen=True)
class ResizedPairs:
    """Images and masks of a list of pairs, in its order.

    ``images`` is uint8 N x size x size x 3, RGB; ``masks`` uint8 N x size x size, 0 or 255. Both are read-only maps of
    files, or the chosen rows of one.
    """

    images: UInt8Array | Rows
    masks: UInt8Array | Rows
    soft: bool = False
    """Whether the masks have all levels from 0 to 255, as shares of 255. They are then resampled bilinearly."""


def resized_pairs(
    pairs: Sequence[Pair],
    size: int,
    folder: Path | None = None,
    *,
    within: Sequence[Pair] | None = None,
    sha256: str = "",
) -> ResizedPairs:
    """The pairs at `size` x `size` pixels, from the cache or decoded now.

    Args:
        pairs: at least one.
        size: pixels.
        folder: of caches; None for the user's, see `cache_file`. A cache belongs to names, sizes and times of change of
            its files, and to `sha256`, so an edited image makes a new one. Old ones may be deleted at any time; one
            that has lost files is made again.
        within: a longer list that has all of the pairs, and whose cache is read: runs that learn from parts of one
            list then share one cache.
        sha256: of the data, see `DatasetReport`, where it is known: of two files that change places, names, sizes and
            times of change stay what they were.

    Raises:
        DataError: a file cannot be decoded, or the cache has no place, cannot be written, or is damaged and stays so.
    """
    if not pairs:
        raise DataError("there is no image to cache")
    if within is not None and len(within) > len(pairs):
        whole = resized_pairs(within, size, folder, sha256=sha256)
        number = {pair.id: i for i, pair in enumerate(within)}
        rows = [number[pair.id] for pair in pairs]
        return ResizedPairs(Rows(np.asarray(whole.images), rows), Rows(np.asarray(whole.masks), rows))
    name = f"pairs-{size}-{_key(pairs, size, sha256)}"
    place = cache_file(name) if folder is None else folder / name
    if place is None:
        raise DataError(
            "the cache of resized images has no place, because the user has no home folder. Name a folder with "
            "ISICRT_CACHE, or train without a cache (--no-cache)"
        )
    if place.is_dir():
        try:
            return _read(place, len(pairs), size)
        except (FileNotFoundError, ValueError, EOFError):  # something else has cut it or taken files from it
            with suppress(OSError):  # if it stays, reading it says so
                shutil.rmtree(place)
        except OSError as error:
            raise DataError(
                f"{place}: the cache of resized images cannot be read: {error.strerror or error}. Name another place "
                "with ISICRT_CACHE, or train without a cache (--no-cache)"
            ) from error
    if not place.is_dir():
        _fill(pairs, size, place)
    try:
        return _read(place, len(pairs), size)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{place}: the cache of resized images is damaged ({error}). Remove that folder, name another place with "
            "ISICRT_CACHE, or train without a cache (--no-cache)"
        ) from error


def _read(place: Path, count: int, size: int) -> ResizedPairs:
    """Map a cache. Raises OSError, ValueError or EOFError where it is not whole."""
    images, masks = (np.load(place / f"{name}.npy", mmap_mode="r") for name in ("images", "masks"))
    if images.shape != (count, size, size, 3) or masks.shape != (count, size, size):
        raise ValueError(f"its images are {images.shape}, its masks {masks.shape}")
    return ResizedPairs(images, masks)


def _key(pairs: Sequence[Pair], size: int, sha256: str) -> str:
    digest = hashlib.sha256(f"{_VERSION} {size} {sha256}".encode())
    for pair in pairs:
        for path in (pair.image, pair.mask):
            try:
                state = path.stat()
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error.strerror}") from error
            digest.update(f"{path.absolute()}\0{state.st_size}\0{state.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:24]


def _fill(pairs: Sequence[Pair], size: int, place: Path) -> None:
    """Make the cache beside its final name, then rename: a run that is killed leaves nothing half under it.

    The files are written and not mapped: to write into a map on a full disk ends the process.
    """
    temporary = place.with_name(f".{place.name}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}")
    count = len(pairs)

    def pixels(index: int) -> tuple[UInt8Array, UInt8Array]:
        image = resize_image(read_image(pairs[index].image), (size, size))
        return image, nearest(read_mask(pairs[index].mask), (size, size)) * np.uint8(255)

    try:
        temporary.mkdir(parents=True)
        _remove_leftovers(place.parent)
        with (temporary / _LOCKED).open("wb") as images, (temporary / "masks.npy").open("wb") as masks:
            with suppress(BlockingIOError):  # somebody looks whether it is a leftover
                lock(images.fileno())
            _begin(images, (count, size, size, 3))
            _begin(masks, (count, size, size))
            # Decoding releases the GIL.
            with ThreadPoolExecutor() as threads:
                for image, mask in threads.map(pixels, range(count)):
                    images.write(image.tobytes())
                    masks.write(mask.tobytes())
            for file in (images, masks):
                file.flush()
                os.fsync(file.fileno())
            if os.name == "posix":  # while it is locked; Windows renames no folder with open files
                _put(temporary, place)
        if os.name != "posix":
            _put(temporary, place)
    except OSError as error:
        raise DataError(
            f"{place.parent}: the cache of resized images cannot be written: {error}. Name another folder with "
            "ISICRT_CACHE, or train without a cache (--no-cache)"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put(temporary: Path, place: Path) -> None:
    try:
        temporary.rename(place)
    except OSError:
        if not place.is_dir():  # else another run made the same one meanwhile
            raise


def _host() -> str:
    """Of this machine, for names: its processes' numbers mean nothing on another."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _begin(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """The header of a ``.npy`` of bytes, and room for them: a disk that is too full says so before anything is decoded.

    Where there is no such reservation, writing says so.
    """
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), file.tell(), math.prod(shape))
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise


def _remove_leftovers(folder: Path) -> None:
    """Half-made caches of this user's processes on this machine that were killed.

    A locked file may look free to another machine, so those of others stay. Containers may share the machine's name,
    and number their processes themselves: no process here may have the number, and nobody may hold the lock. Where
    there are no locks, nothing is removed.
    """
    if os.name != "posix":  # on Windows, asking whether a process is there would end it
        return
    for leftover in folder.glob(".pairs-*"):
        number = _LEFTOVER.fullmatch(leftover.name)
        with suppress(OSError, OverflowError):
            state = leftover.lstat()
            if number is None or number[1] != _host() or not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid():
                continue
            if int(number[2]) != os.getpid():  # what this process makes is locked
                with suppress(ProcessLookupError):
                    os.kill(int(number[2]), 0)
                    continue
            with (leftover / _LOCKED).open("r+b") as file:
                if lock(file.fileno()):
                    shutil.rmtree(leftover, ignore_errors=True)


def nearest(mask: np.ndarray, size: tuple[int, int]) -> UInt8Array:
    """A bool or uint8 H x W mask at `size` (height, width) by nearest neighbour, as uint8."""
    rows = ((np.arange(size[0]) + 0.5) * mask.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * mask.shape[1] / size[1]).astype(int)
    return mask[np.ix_(rows, columns)].astype(np.uint8)
