"""A mask that lies there already: the file that isicrt wrote, somebody's correction of it, or what is left of it."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib

from isicrt.engine.errors import DataError, ImageError
from isicrt.engine.images import PNG_SIGNATURE, RISKY_SIGNATURES, decode_mask, read_image, read_source
from isicrt.engine.mask_levels import check_highest
from isicrt.engine.scores import FOREGROUND_ABOVE

_PNG_HEAD = struct.Struct(">8sI4sII")
_GREY_16_BITS = b"\x10\x00"
"""What follows a PNG's `_PNG_HEAD`: depth and kind of colour."""
_PNG_END = b"IEND\xaeB`\x82"
_CHUNK_FRAME = 12
"""Bytes of a PNG's chunk beside its data: length, name and CRC."""
_ABSENT = (FileNotFoundError, NotADirectoryError)


@dataclass(frozen=True)
class Correction:
    """A mask that was changed since isicrt wrote it."""

    native_size: tuple[int, int] | None
    """(height, width); None of a format that is not decoded in the run's process, and of what is too large for that."""
    lesion: float | None
    """Share of the pixels that it calls lesion, in [0, 1]; None as above."""


def is_as_written(path: Path, size: tuple[int, int], entry: Mapping[str, Any]) -> bool:
    """Whether a mask is the PNG that was written: length, CRC, signature, height x width and end. It may have become a
    link, as `git annex add` and DVC make of it.

    Args:
        path: of the mask.
        size: (height, width) that it must have.
        entry: the journal's line about it.

    Raises:
        ImageError: it is there and cannot be read, so that nobody knows.
    """
    try:
        if path.stat().st_size != entry.get("mask_size"):
            return False
        data = path.read_bytes()
    except OSError as error:
        if isinstance(error, _ABSENT):
            return False
        raise _unread(path, str(error.strerror)) from error
    if len(data) < _PNG_HEAD.size or isal_zlib.crc32(data) != entry.get("mask_crc"):
        return False
    head = _PNG_HEAD.unpack_from(data)
    return head == (PNG_SIGNATURE, 13, b"IHDR", size[1], size[0]) and data.endswith(_PNG_END)


def stands(path: Path) -> bool:
    """Whether anything is there, be it a link to nowhere; True also where nobody can tell."""
    try:
        path.lstat()
    except OSError as error:
        return not isinstance(error, _ABSENT)
    return True


def find_drawn(path: Path) -> Correction | None:
    """What somebody drew where isicrt could not make a mask; None where nothing stands.

    Args:
        path: of the mask.

    Raises:
        ImageError: something stands there that is no whole image, or as of `find_correction`.
    """
    if not stands(path):
        return None
    if (found := find_correction(path, None, None)) is None:
        raise ImageError(f"{path}: isicrt did not make it, and it is no whole image: move it away")
    return found


def find_correction(path: Path, size: tuple[int, int] | None, entry: Mapping[str, Any] | None) -> Correction | None:
    """What somebody made of a mask that is not as it was written; None where it is cut or damaged.

    A PNG counts only with every chunk's CRC: decoders are content with files that a power cut has torn.

    Args:
        path: of the mask, for which `is_as_written` is False.
        size: (height, width) that it must have; None for any.
        entry: the journal's line about it. One that does not say what was written cannot tell a change. None where
            isicrt wrote nothing.

    Raises:
        ImageError: it is a whole image that is no mask as it stands, and somebody's work all the same: of another
            size, as tools for annotation save at that of the display, or of 0 and 1. Or it cannot be read, or changes
            meanwhile, and may be such.
    """
    if entry is not None and not isinstance(entry.get("mask_crc"), int):
        return None
    try:
        source = read_source(path)
        data = source.data
        if data.startswith(PNG_SIGNATURE) and not _has_whole_chunks(data):
            return None
        if data.startswith(RISKY_SIGNATURES):  # nothing that isicrt wrote begins so: it is somebody's, whatever it is
            return Correction(None, None)
        pixels = read_image(path)
    except DataError as error:
        cause = error.__cause__
        # The disk's errors have a number, the decoders' have none. What cannot be read now may be whole tomorrow.
        if isinstance(cause, OSError) and cause.errno is not None and not isinstance(cause, _ABSENT):
            raise _unread(path, str(cause.strerror)) from error
        # What is too large to be looked into is not damaged for that.
        return Correction(None, None) if isinstance(cause, (OverflowError, MemoryError)) else None
    found = pixels.shape[0], pixels.shape[1]
    if size is not None and found != size:
        raise ImageError(
            f"{path}: was changed since isicrt wrote it and is {found[1]} x {found[0]} pixels, its image {size[1]} x "
            f"{size[0]}: save it at that size, or remove it to have it made again"
        )
    lesion = np.count_nonzero((pixels > FOREGROUND_ABOVE).all(axis=2))
    if not lesion:
        try:
            if data.startswith(PNG_SIGNATURE) and data.startswith(_GREY_16_BITS, _PNG_HEAD.size):
                decode_mask(path, source)  # refuses it in its own numbers
            check_highest(path, int(pixels.max()))
        except DataError as error:
            raise ImageError(f"{error}, or remove it to have it made again") from error
    return Correction(found, lesion / (found[0] * found[1]))


def _unread(path: Path, reason: str) -> ImageError:
    return ImageError(
        f"{path}: the mask that stands there cannot be read ({reason}) and is left alone: make it readable, or move it "
        "away to have it made again"
    )


def _has_whole_chunks(data: bytes) -> bool:
    """Whether a PNG's chunks have the CRCs that they say, up to its end."""
    start = len(PNG_SIGNATURE)
    while start + _CHUNK_FRAME <= len(data):
        end = start + _CHUNK_FRAME + int.from_bytes(data[start : start + 4], "big")
        body, crc = data[start + 4 : end - 4], data[end - 4 : end]
        if end > len(data) or isal_zlib.crc32(body) != int.from_bytes(crc, "big"):
            return False
        if body.startswith(b"IEND"):
            return True
        start = end
    return False
