"""The photographs that there are in walks, and what a run makes of each."""

from __future__ import annotations

import tempfile
from pathlib import Path

import cv2
import numpy as np

from isicrt.benchmarks.rendered import render
from isicrt.engine.segmenter import Segmenter

SIZES = ((40, 60), (40, 60), (50, 70))
DAMAGED = len(SIZES)
"""What stands for a photograph that cannot be decoded, where the others are those of `SIZES`."""
BITS = (1, 8)

Pixels = tuple[tuple[int, ...], bytes]


class Photographs:
    """What photographs there are, and what a run makes of each.

    Args:
        segmenter: makes the masks.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter
        self.files = [cv2.imencode(".jpg", render(n, size)[0])[1].tobytes() for n, size in enumerate(SIZES)]
        longest = max(map(len, self.files))
        self.files = [_padded(file, longest) for file in self.files]  # lengths tell nothing
        self.files.append(self.files[0][:80])
        self.masks = {(n, bits): self._segmented(n, bits) for n in range(DAMAGED) for bits in BITS}
        """By photograph and `Command.bits`."""

    def _segmented(self, which: int, bits: int) -> Pixels:
        with tempfile.TemporaryDirectory() as folder:
            image = Path(folder, "a.jpg")
            image.write_bytes(self.files[which])
            self.segmenter.segment_folder(image, Path(folder, "out"), mask_bits=bits, processes=0)
            return pixels_of(Path(folder, "out", "a.png").read_bytes())


def pixels_of(png: bytes) -> Pixels:
    """What two files of the same mask have in common; of what is no image, all of it."""
    decoded = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    return ((), png) if decoded is None else (decoded.shape + (png[24],), decoded.tobytes())


def _padded(jpeg: bytes, size: int) -> bytes:
    """With a comment that makes it `size` bytes + 4 long."""
    missing = size + 4 - len(jpeg)
    return jpeg[:2] + b"\xff\xfe" + (missing - 2).to_bytes(2, "big") + bytes(missing - 4) + jpeg[2:]
