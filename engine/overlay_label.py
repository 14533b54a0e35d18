"""What an overlay says in a comment of its JPEG: of which image and of which mask it is.

So whoever finds one knows whether it is that of the mask that stands there, wherever the two were moved, however their
folders are spelled, and whichever other runs draw there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_AT = 20
"""Bytes in front of a comment: JPEG's first marker and the JFIF header."""
_TEXT = b"isicrt drew this of image %08x and mask %08x"
_BEGIN = _TEXT[: _TEXT.index(b"%")]
_LENGTH = len(_TEXT % (0, 0))
_CRCS = re.compile(_TEXT.replace(b"%08x", b"([0-9a-f]{8})"))
_MARKER = b"\xff\xfe" + (_LENGTH + 2).to_bytes(2, "big")


def label_of(image_crc: int, mask_crc: int) -> bytes:
    """The label of an overlay, by the CRC-32 of the two files."""
    return _TEXT % (image_crc, mask_crc)


def add_label(jpeg: bytes, label: bytes) -> bytes:
    """A JPEG that has a JFIF header, as simplejpeg's have, with a label."""
    return jpeg[:_AT] + _MARKER + label + jpeg[_AT:]


def read_label(path: Path) -> bytes | None:
    """The label of an overlay; None of any other file, and where there is none."""
    try:
        if not path.is_file():  # a FIFO would hold the run
            return None
        with path.open("rb") as file:
            marker, label = file.read(_AT + len(_MARKER))[_AT:], file.read(_LENGTH)
    except OSError:
        return None
    return label if marker == _MARKER and label.startswith(_BEGIN) else None


def remove_overlay(path: Path, is_ours: Callable[[int, int], bool]) -> None:
    """Remove the overlay of a mask that is not there any more, or was changed, but not one that says that it is of a
    mask that was never there: runs with other folders of masks may draw there too.

    Args:
        path: of the overlay.
        is_ours: whether the mask at this place ever was the one with these CRC-32 of image and mask.
    """
    label = read_label(path)
    if label is not None:
        found = _CRCS.fullmatch(label)
        if found is None or not is_ours(*(int(crc, 16) for crc in found.groups())):
            return
    with suppress(OSError):
        path.unlink()
