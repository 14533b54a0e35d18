"""TIFFs whose layout Pillow takes for another: planes of 16 bits, white as 0, 12 bits, signed values."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from isicrt.benchmarks.rendered import render
from isicrt.engine.errors import ImageError
from isicrt.engine.images import decode_image, read_image, read_mask

HEIGHT, WIDTH = 32, 48
PIXELS = render(3, (HEIGHT, WIDTH))[0]
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2


def _write(path: Path, blocks: list[bytes], tags: dict[int, list[int]], order: str = "<", tiled: bool = False) -> Path:
    """A TIFF of one directory; each tag is of unsigned 16- or 32-bit numbers, as they need."""
    tags = {256: [WIDTH], 257: [HEIGHT], 259: [1]} | tags
    offsets, sizes = (324, 325) if tiled else (273, 279)
    tags |= {offsets: [1 << 16] * len(blocks), sizes: [len(block) for block in blocks]}
    behind = 8 + 2 + 12 * len(tags) + 4
    extra = 4 * sum(len(values) for values in tags.values())
    tags[offsets] = [behind + extra + sum(map(len, blocks[:n])) for n in range(len(blocks))]
    directory, more = struct.pack(order + "H", len(tags)), b""
    for tag, values in sorted(tags.items()):
        kind, code = (4, "I") if tag in (offsets, sizes) else (3, "H")
        data = struct.pack(f"{order}{len(values)}{code}", *values)
        place = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack(order + "I", behind + len(more))
        directory += struct.pack(order + "HHI", tag, kind, len(values)) + place
        more += data if len(data) > 4 else b""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    path.write_bytes(head + directory + bytes(4) + more.ljust(extra, b"\0") + b"".join(blocks))
    return path


def _deep(values: np.ndarray, order: str) -> bytes:
    return (values.astype(np.uint16) * 257).astype(f"{order}u2").tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("rows", [HEIGHT, 10])
@pytest.mark.parametrize("alpha", [False, True])
def test_planes_of_16_bits_in_strips(tmp_path: Path, order: str, rows: int, alpha: bool) -> None:
    planes = [PIXELS[..., n] for n in range(3)] + ([np.full((HEIGHT, WIDTH), 7)] if alpha else [])
    blocks = [_deep(plane[top : top + rows], order) for plane in planes for top in range(0, HEIGHT, rows)]
    tags = {258: [16] * len(planes), 262: [RGB], 277: [len(planes)], 278: [rows], 284: [2]}
    path = _write(tmp_path / "a.tif", blocks, tags | ({338: [2]} if alpha else {}), order)
    np.testing.assert_array_equal(read_image(path), PIXELS)
    assert decode_image(path, (HEIGHT, WIDTH)).native_size == (HEIGHT, WIDTH)


def test_planes_of_16_bits_in_tiles(tmp_path: Path) -> None:
    blocks = [_deep(PIXELS[y : y + 16, x : x + 16, n], "<") for n in range(3) for y in (0, 16) for x in (0, 16, 32)]
    tags = {258: [16] * 3, 262: [RGB], 277: [3], 284: [2], 322: [16], 323: [16]}
    np.testing.assert_array_equal(read_image(_write(tmp_path / "a.tif", blocks, tags, tiled=True)), PIXELS)


def test_planes_of_8_bits(tmp_path: Path) -> None:
    tags = {258: [8] * 3, 262: [RGB], 277: [3], 278: [HEIGHT], 284: [2]}
    path = _write(tmp_path / "a.tif", [PIXELS[..., n].tobytes() for n in range(3)], tags)
    np.testing.assert_array_equal(read_image(path), PIXELS)


def _grey(path: Path, block: bytes, bits: int, meaning: int, **more: int) -> Path:
    tags = {258: [bits], 262: [meaning], 277: [1], 278: [HEIGHT]}
    return _write(path, [block], tags | {int(tag[1:]): [value] for tag, value in more.items()})


@pytest.mark.parametrize("turned", [1, 6])
def test_16_bits_whose_white_is_0(tmp_path: Path, turned: int) -> None:
    grey = PIXELS[..., 0]
    path = _grey(tmp_path / "a.tif", _deep(255 - grey, "<"), 16, WHITE_IS_ZERO, t274=turned)
    np.testing.assert_array_equal(read_image(path)[..., 0], grey)


def test_the_white_of_12_bits(tmp_path: Path) -> None:
    grey = (PIXELS[..., 0].astype(int) * 4095 // 255).reshape(-1, 2)
    packed = b"".join((int(one) << 12 | int(two)).to_bytes(3, "big") for one, two in grey)
    read = read_image(_grey(tmp_path / "a.tif", packed, 12, BLACK_IS_ZERO))
    assert abs(read[..., 0].astype(int) - PIXELS[..., 0]).max() <= 1


@pytest.mark.parametrize(
    ("bits", "meaning", "more", "message"),
    [
        pytest.param(16, BLACK_IS_ZERO, {"t339": 2}, "signed 16-bit pixels have no defined", id="signed"),
        pytest.param(16, BLACK_IS_ZERO, {"t284": 2}, "uncompressed planes of 16 bits", id="one_plane"),
        pytest.param(8, WHITE_IS_ZERO, {"t284": 2}, "uncompressed planes of 8 bits", id="one_plane_white_0"),
    ],
)
def test_what_would_be_misread_is_refused(
    tmp_path: Path, bits: int, meaning: int, more: dict[str, int], message: str
) -> None:
    path = _grey(tmp_path / "a.tif", bytes(HEIGHT * WIDTH * bits // 8), bits, meaning, **more)
    with pytest.raises(ImageError, match=rf"a\.tif: cannot be decoded: {message}"):
        read_image(path)


@pytest.mark.parametrize("turned", [1, 6])
@pytest.mark.parametrize(("bits", "meaning"), [(16, WHITE_IS_ZERO), (16, BLACK_IS_ZERO), (12, BLACK_IS_ZERO)])
def test_masks_have_the_same_black_and_white(tmp_path: Path, bits: int, meaning: int, turned: int) -> None:
    lesion = PIXELS[..., 0] > 128
    values = np.where(lesion == (meaning == BLACK_IS_ZERO), 2**bits - 1, 0)
    block = values.astype("<u2").tobytes()
    if bits == 12:
        block = b"".join((int(a) << 12 | int(b)).to_bytes(3, "big") for a, b in values.reshape(-1, 2))
    path = _grey(tmp_path / "m.tif", block, bits, meaning, t274=turned)
    np.testing.assert_array_equal(read_mask(path), lesion)
