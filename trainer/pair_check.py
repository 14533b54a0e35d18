"""One image and its mask, read as training reads them: what is wrong, and what is to be known all the same."""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from isicrt.engine.errors import DataError
from isicrt.engine.images import Source, decode_mask, decode_source, read_source
from isicrt.engine.jpeg_notes import DAMAGED, TURNED
from isicrt.engine.mask_levels import check_highest, has_corners
from isicrt.engine.scores import FOREGROUND_ABOVE

_LOOK = (1, 1)
"""(height, width) to which an image is decoded: all of its bytes are looked at, and few pixels are made."""


@dataclass
class PairCheck:
    """What was found."""

    hashes: list[bytes] = field(default_factory=list)
    """SHA-256 of the image and of the mask, as far as they could be read."""
    problems: list[str] = field(default_factory=list)
    """One line for each, with the file and what to do."""
    levels: frozenset[int] = frozenset()
    """Values of the mask; none where it is no mask."""
    corners: bool = False
    """Whether the mask is lesion in all four corners."""
    damaged: bool = False
    """Whether the image is decoded and looks damaged."""
    orientation: str | None = None
    """The image's EXIF orientation, for people, where that turns it."""


def check_pair(image: Path, mask: Path) -> PairCheck:
    """Read and decode both, and compare their sizes. Problems are reported, not raised."""
    found = PairCheck()
    sources: list[Source] = []
    for path in (image, mask):
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # a FIFO would be waited for, and /dev/zero never ends
                raise DataError(f"{path}: is not a regular file; remove it")
            sources.append(read_source(path))
        except DataError as error:
            found.problems.append(str(error))
            return found
        except OSError as error:
            found.problems.append(f"{path}: cannot be read: {error.strerror}")
            return found
        found.hashes.append(hashlib.sha256(sources[-1].data).digest())
    size = _look_at(image, sources[0], found)
    try:
        pixels = decode_mask(mask, sources[1])
        found.levels = frozenset(np.unique(pixels).tolist())
        found.corners = has_corners(pixels > FOREGROUND_ABOVE)
        if size and size != pixels.shape:
            found.problems.append(_say_sizes(mask, (pixels.shape[0], pixels.shape[1]), size, found.orientation))
        check_highest(mask, max(found.levels, default=0))
    except DataError as error:
        found.problems.append(str(error))
    return found


def _look_at(image: Path, source: Source, found: PairCheck) -> tuple[int, int] | None:
    """(height, width); None where it cannot be decoded."""
    try:
        decoded = decode_source(image, source, _LOOK)
    except DataError as error:
        found.problems.append(str(error))
        return None
    for note in (decoded.note or "").split("; "):
        found.damaged |= note.startswith(DAMAGED)
        if note.startswith(TURNED):
            found.orientation = note
    return decoded.native_size


def _say_sizes(mask: Path, size: tuple[int, int], wanted: tuple[int, int], orientation: str | None) -> str:
    sizes = f"{mask}: is {size[1]} x {size[0]}, its image {wanted[1]} x {wanted[0]}"
    if orientation is None or size != wanted[::-1]:
        return sizes
    return (
        f"{sizes} before its {orientation} turns it: draw the mask on the image as it is stored, or save the image "
        "turned and without the tag"
    )
