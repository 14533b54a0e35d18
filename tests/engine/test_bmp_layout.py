"""BMPs of few greys, whose palette Pillow leaves away: their pixels are the numbers of colours all the same."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from isicrt.engine.errors import DataError
from isicrt.engine.images import decode_data, read_image, read_mask

INDICES = np.array([[0, 1, 1, 0, 1], [0, 0, 1, 1, 1]])
BLACK_WHITE, WHITE_BLACK = [0, 255], [255, 0]


def write_bmp(
    path: Path, indices: np.ndarray, bits: int, greys: list[int], header: int = 40, *, run_lengths: bool = False
) -> Path:
    """A BMP of so many `bits` a pixel, each the number of a grey; a `header` of 12 bytes is that of OS/2.
    `run_lengths`: RLE8 or RLE4, not for that header."""
    rows = b""
    for row in indices[::-1]:
        number = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]
        packed = np.packbits(number.ravel()).tobytes()
        rows += packed + bytes(-len(packed) % 4)
    compression = {4: 2, 8: 1}[bits] if run_lengths else 0
    if run_lengths:
        runs = (b"".join(bytes([1, value << (8 - bits)]) for value in row) for row in indices[::-1].tolist())
        rows = b"\0\0".join(runs) + b"\0\1"
    height, width = indices.shape
    if header == 12:
        head = struct.pack("<IHHHH", 12, width, height, 1, bits)
        palette = b"".join(bytes([grey] * 3) for grey in greys).ljust(3 << bits, b"\0")
    else:
        head = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, compression, 0, 0, 0, len(greys), 0)
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


def test_a_photograph_with_a_pixel_of_no_colour_is_read(tmp_path: Path) -> None:
    indices = np.full((6, 7), 3, np.uint8)
    indices[2, 2] = 255
    path = write_bmp(tmp_path / "a.bmp", indices, 8, [10, 20, 30, 200])
    assert (read_image(path)[..., 0] == 200).sum() == 41


@pytest.mark.parametrize("greys", [BLACK_WHITE, [0, 254]])
@pytest.mark.parametrize(
    ("bits", "run_lengths", "cut"),
    [(8, False, 0), (8, False, 1), (8, False, 2), (8, False, 3), (8, True, 0), (4, False, 0), (4, True, 0)],
)
def test_numbers_of_colours_that_are_not_there_are_refused(
    tmp_path: Path, bits: int, run_lengths: bool, cut: int, greys: list[int]
) -> None:
    """To decoders such pixels are black: every lesion would be lost. The last row may lack its padding."""
    path = write_bmp(tmp_path / "a.bmp", INDICES * ((1 << bits) - 1), bits, greys, run_lengths=run_lengths)
    path.write_bytes(path.read_bytes()[: -cut or None])
    with pytest.raises(DataError, match=r"a\.bmp: cannot be decoded: it uses more than the 2 colours that it has"):
        read_mask(path)


@pytest.mark.parametrize("bits", [4, 8])
def test_masks_of_two_colours_in_run_lengths(tmp_path: Path, bits: int) -> None:
    path = write_bmp(tmp_path / "a.bmp", INDICES, bits, BLACK_WHITE, run_lengths=True)
    np.testing.assert_array_equal(read_mask(path), INDICES == 1)


def test_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    path = write_bmp(tmp_path / "a.bmp", INDICES, 8, BLACK_WHITE)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="truncated"):
        read_mask(path)


def test_pixels_are_not_touched_before_the_budget_admits_them(tmp_path: Path) -> None:
    data = write_bmp(tmp_path / "a.bmp", np.zeros((1024, 1024), np.uint8), 8, BLACK_WHITE).read_bytes()
    peaks: list[int] = []

    @contextmanager
    def admit(pixels: int) -> Iterator[None]:
        peaks.append(tracemalloc.get_traced_memory()[1])
        yield

    decode_data(data, None, 1 << 20, admit)  # imports what it needs
    tracemalloc.start()
    try:
        decode_data(data, None, 1 << 20, admit)
    finally:
        tracemalloc.stop()
    assert peaks[1] < len(data) // 4
