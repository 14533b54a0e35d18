"""What is said of an image that is decoded all the same: that its JPEG looks damaged, that a viewer would turn it, that
its file holds others."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable

DAMAGED, TURNED, FIRST = "damaged: ", "EXIF orientation ", "first of "
"""What such notes begin with."""

_EXIF = b"Exif\0\0"
_APP0, _APP1, _APP15, _COMMENT = 0xE0, 0xE1, 0xEF, 0xFE
_ORIENTATION, _SHORT = 0x0112, 3
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}


_PADDING = re.compile(r"\b(\d+) extraneous bytes before marker 0xd9")
_HARMLESS = 16
"""Bytes between the last pixels and the end marker, which some devices leave. More of them come from data that was
overwritten: what should have been pixels is left over."""


def damage(warning: str) -> str | None:
    """What libjpeg-turbo warns of, if it may concern the pixels."""
    padding = _PADDING.search(warning)
    return None if padding and int(padding[1]) <= _HARMLESS else warning


def joined(notes: Iterable[str]) -> str | None:
    """The notes on one image as one; None where there is none."""
    return "; ".join(notes) or None


def turned_note(data: bytes | memoryview) -> list[str]:
    """The note on a JPEG's orientation, if it has one that turns it. It takes microseconds: only what stands in front
    of the image's tables is looked at."""
    position = 2
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker, start = data[position + 1], position + 4
        if not (_APP0 <= marker <= _APP15 or marker == _COMMENT):
            break
        position += 2 + int.from_bytes(data[position + 2 : start], "big")
        if marker == _APP1 and data[start : start + len(_EXIF)] == _EXIF:
            return exif_note(bytes(data[start:position]))
    return []


def exif_note(exif: bytes) -> list[str]:
    """The same of a block of EXIF, whatever is wrong with it."""
    exif = exif.removeprefix(_EXIF)
    order = _BYTE_ORDERS.get(exif[:4])
    if order is None:
        return []
    try:
        (first,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, first)
        for place in range(first + 2, min(first + 2 + 12 * count, len(exif)), 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, place)
            if tag == _ORIENTATION:
                return orientation_note(value if kind == _SHORT else None)
    except struct.error:  # it ends too early
        pass
    return []


def orientation_note(value: object) -> list[str]:
    """The same of the tag's value: 2 to 8 turn or mirror an image."""
    return [f"{TURNED}{value}"] if value in range(2, 9) else []
