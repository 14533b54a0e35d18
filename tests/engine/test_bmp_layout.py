"""BMPs of few greys, whose palette Pillow leaves away: their pixels are the numbers of colours all the same."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from isicrt.engine.errors import DataError
from isicrt.engine.images import read_image, read_mask

INDICES = np.array([[0, 1, 1, 0, 1], [0, 0, 1, 1, 1]])
BLACK_WHITE, WHITE_BLACK = [0, 255], [255, 0]


def write_bmp(path: Path, indices: np.ndarray, bits: int, greys: list[int], header: int = 40) -> Path:
    """A BMP of so many `bits` a pixel, each the number of a grey; a `header` of 12 bytes is that of OS/2."""
    rows = b""
    for row in indices[::-1]:
        number = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]
        packed = np.packbits(number.ravel()).tobytes()
        rows += packed + bytes(-len(packed) % 4)
    height, width = indices.shape
    if header == 12:
        head = struct.pack("<IHHHH", 12, width, height, 1, bits)
        palette = b"".join(bytes([grey] * 3) for grey in greys).ljust(3 << bits, b"\0")
    else:
        head = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, 0, 0, 0, 0, len(greys), 0)
        head, palette = head.ljust(header, b"\0"), b"".join(bytes([grey] * 3 + [0]) for grey in greys)
    start = 14 + len(head) + len(palette)
    path.write_bytes(b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + head + palette + rows)
    return path


@pytest.mark.parametrize("header", [12, 40, 124])
@pytest.mark.parametrize("greys", [BLACK_WHITE, WHITE_BLACK])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_masks_of_two_colours(tmp_path: Path, bits: int, greys: list[int], header: int) -> None:
    path = write_bmp(tmp_path / "IMD002_lesion.bmp", INDICES, bits, greys, header)
    np.testing.assert_array_equal(read_mask(path), np.array(greys)[INDICES] > 128)


@pytest.mark.parametrize(("bits", "greys"), [(4, 4), (4, 16), (8, 1), (8, 3), (8, 256)])
def test_greys_that_are_their_own_numbers(tmp_path: Path, bits: int, greys: int) -> None:
    indices = np.arange(26).reshape(2, 13) % greys
    path = write_bmp(tmp_path / "a.bmp", indices, bits, list(range(greys)))
    np.testing.assert_array_equal(read_image(path)[..., 0], indices)


def test_classes_are_refused_as_in_other_formats(tmp_path: Path) -> None:
    path = write_bmp(tmp_path / "a.bmp", INDICES, 8, [0, 1])
    with pytest.raises(DataError, match="its highest value is 1, and lesion is above 128: multiply by 255"):
        read_mask(path)


def test_numbers_of_colours_that_are_not_there_are_refused(tmp_path: Path) -> None:
    """To decoders such pixels are black: every lesion would be lost."""
    path = write_bmp(tmp_path / "a.bmp", INDICES * 255, 8, BLACK_WHITE)
    with pytest.raises(DataError, match=r"a\.bmp: cannot be decoded: it uses more than the 2 colours that it has"):
        read_mask(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="truncated"):
        read_mask(path)
