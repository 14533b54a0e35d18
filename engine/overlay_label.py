"""What an overlay says in a comment of its JPEG: of which image and of which mask it is.

So whoever finds one knows whether it is that of the mask that stands there, wherever the two were moved, however their
folders are spelled, and whichever other runs draw there.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_AT = 20
"""Bytes in front of a comment: JPEG's first marker and the JFIF header."""
_TEXT = b"isicrt drew this of image %08x and mask %08x"
_BEGIN = _TEXT[: _TEXT.index(b"%")]
_LENGTH = len(_TEXT % (0, 0))
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


def remove_overlay(path: Path, entry: Mapping[str, Any]) -> None:
    """Remove the overlay of a mask that is not there any more, but not one that says that it is of another mask, or of
    one where there never was any: runs with other folders of masks may draw there too.

    Args:
        path: of the overlay.
        entry: the journal's line of that mask, or of the failure that it was removed for. Of one that a killed run had
            announced any overlay may be; of one that was never made none with a label is.
    """
    label = read_label(path)
    pairs = [(entry.get(f"{when}image_crc"), entry.get(f"{when}mask_crc")) for when in ("", "former_")]
    ours = any(all(isinstance(crc, int) for crc in crcs) and label == _TEXT % crcs for crcs in pairs)
    if label is None or ours or "writing" in entry:
        with suppress(OSError):
            path.unlink()
