"""Files that a folder of strangers may hold, each with what must become of it."""

from __future__ import annotations

import base64
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from isicrt.benchmarks.rendered import render

HEIGHT, WIDTH = 48, 72
PIXELS = render(5, (HEIGHT, WIDTH))[0]
WHOLE = (HEIGHT, WIDTH)

Make = Callable[[Path], object]
Expected = tuple[int, int] | str
"""The mask's (height, width), or a word of the reason of the failure."""

# 32 x 24, arithmetic-coded by libjpeg-turbo; Pillow cannot write it.
ARITHMETIC_JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYV"
    "pQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//yQARCAAY"
    "ACADASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwDSZ6uZmQtk9Jey91iv8fINGCVOGq5SdOh7B4QUo5hlUxz7dWYAEzSQZrUQS7"
    "oVWrZjnilkgtVw+9BpvwL2HHz2e493zbRcPa1NZSsweS+nvgyWlKDxV/q1E9ZwmbmAPDoVIEIn0OWVwrf2ppGDGEpe83OdhjzstxhQWkpKM2XW"
    "9wyKWsD/2Q=="
)


def encoded(kind: str, mode: str = "RGB", **options: object) -> bytes:
    """The test image in a format and a mode."""
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, format=kind, **options)
    return file.getvalue()


JPEG = encoded("JPEG", quality=92)
PNG = encoded("PNG")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG from its parts; `rows` with their filter bytes."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body


def _ycck() -> bytes:
    """Adobe's CMYK: four components, transform 2."""
    data = bytearray(encoded("JPEG", "CMYK", quality=92))
    adobe = data.find(b"Adobe")
    assert adobe > 0
    data[adobe + 11] = 2
    return bytes(data)


def _claiming(width: int, height: int) -> bytes:
    data = bytearray(simplejpeg.encode_jpeg(PIXELS))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _with_thumbnail() -> bytes:
    small = io.BytesIO()
    Image.new("RGB", (16, 12)).save(small, format="JPEG")
    payload = b"Exif\0\0" + b"\0" * 32 + small.getvalue()
    return JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + JPEG[2:]


def _oriented(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(kind, exif=exif)


def _pages(kind: str, count: int = 3) -> bytes:
    file = io.BytesIO()
    size = (20, 10) if kind == "TIFF" else (WIDTH, HEIGHT)
    others = [Image.new("RGB", size, (n, n, n)) for n in range(count)]
    Image.fromarray(PIXELS).save(file, format=kind, save_all=True, append_images=others)
    return file.getvalue()


def _writes(data: bytes) -> Make:
    return lambda path: path.write_bytes(data)


def _link(target: str) -> Make:
    return lambda path: path.symlink_to(target)


def _flipped(data: bytes, position: float) -> bytes:
    changed = bytearray(data)
    changed[int(len(data) * position)] ^= 0xFF
    return bytes(changed)


_DEEP = np.random.default_rng(0).integers(0, 256, (HEIGHT, 1 + WIDTH * 6), dtype=np.uint8)
_DEEP[:, 0] = 0
_TALL = np.zeros((3000, 2), np.uint8)

# Name -> how the file is made, and what must become of it.
CASES: dict[str, tuple[Make, Expected]] = {
    "baseline.jpg": (_writes(JPEG), WHOLE),
    "progressive.jpg": (_writes(encoded("JPEG", progressive=True)), WHOLE),
    "arithmetic.jpg": (_writes(ARITHMETIC_JPEG), (24, 32)),
    "grey.jpg": (_writes(encoded("JPEG", "L")), WHOLE),
    "cmyk.jpg": (_writes(encoded("JPEG", "CMYK")), WHOLE),
    "ycck.jpg": (_writes(_ycck()), WHOLE),
    "subsampled_420.jpeg": (_writes(encoded("JPEG", subsampling="4:2:0")), WHOLE),
    "subsampled_444.jpeg": (_writes(encoded("JPEG", subsampling="4:4:4")), WHOLE),
    "restart_markers.jpg": (_writes(encoded("JPEG", restart_marker_rows=1)), WHOLE),
    "icc_profile.jpg": (_writes(encoded("JPEG", icc_profile=b"x" * 70_000)), WHOLE),
    "comment.jpg": (_writes(encoded("JPEG", comment=b"\x1b[2J" * 50)), WHOLE),
    "thumbnail.jpg": (_writes(_with_thumbnail()), WHOLE),
    "trailing_garbage.jpg": (_writes(JPEG + b"garbage" * 999), WHOLE),
    "two_images.jpg": (_writes(JPEG + encoded("JPEG", "L")), WHOLE),
    "quality_1.jpg": (_writes(encoded("JPEG", quality=1)), WHOLE),
    "one_pixel.jpg": (_writes(simplejpeg.encode_jpeg(PIXELS[:1, :1].copy())), (1, 1)),
    "one_row.jpg": (_writes(simplejpeg.encode_jpeg(np.full((1, 9000, 3), 200, np.uint8))), (1, 9000)),
    **{f"orientation_{n}.jpg": (_writes(_oriented("JPEG", n)), WHOLE) for n in range(1, 10)},
    "orientation_6.png": (_writes(_oriented("PNG", 6)), WHOLE),
    "orientation_8.webp": (_writes(_oriented("WEBP", 8)), WHOLE),
    "orientation_5.tif": (_writes(_oriented("TIFF", 5)), WHOLE),
    "rgb.png": (_writes(PNG), WHOLE),
    "grey.png": (_writes(encoded("PNG", "L")), WHOLE),
    "bit.png": (_writes(encoded("PNG", "1")), WHOLE),
    "palette.png": (_writes(encoded("PNG", "P")), WHOLE),
    "palette_alpha.png": (_writes(encoded("PNG", "P", transparency=bytes(256))), WHOLE),
    "alpha.png": (_writes(encoded("PNG", "RGBA")), WHOLE),
    "grey_alpha.png": (_writes(encoded("PNG", "LA")), WHOLE),
    "deep_grey.png": (_writes(png(4, 2, 16, 0, (b"\0" + b"\x80\0" * 4) * 2)), (2, 4)),
    "deep_rgb.png": (_writes(png(WIDTH, HEIGHT, 16, 2, _DEEP.tobytes())), WHOLE),
    "one_pixel.png": (_writes(png(1, 1, 8, 0, b"\0\x40")), (1, 1)),
    "tall.png": (_writes(png(1, 3000, 8, 0, _TALL.tobytes())), (3000, 1)),
    "very_wide.png": (_writes(png(70_000, 1, 8, 0, bytes(70_001))), (1, 70_000)),
    "gamma_and_text.png": (_writes(png(1, 1, 8, 0, b"\0\0", png_chunk(b"tEXt", b"a\0" + b"b" * 500))), (1, 1)),
    "trailing_garbage.png": (_writes(PNG + b"garbage" * 999), WHOLE),
    "animated.png": (_writes(_pages("PNG")), WHOLE),
    "animated.webp": (_writes(_pages("WEBP")), WHOLE),
    "lossy.webp": (_writes(encoded("WEBP")), WHOLE),
    "alpha.webp": (_writes(encoded("WEBP", "RGBA", lossless=True)), WHOLE),
    "plain.bmp": (_writes(encoded("BMP")), WHOLE),
    "palette.bmp": (_writes(encoded("BMP", "P")), WHOLE),
    "plain.tif": (_writes(encoded("TIFF")), WHOLE),
    "lzw.tif": (_writes(encoded("TIFF", compression="tiff_lzw")), WHOLE),
    "jpeg_inside.tif": (_writes(encoded("TIFF", compression="jpeg")), WHOLE),
    "pages.tif": (_writes(_pages("TIFF")), WHOLE),
    "cmyk.tif": (_writes(encoded("TIFF", "CMYK")), WHOLE),
    "is_a_png.jpg": (_writes(PNG), WHOLE),
    "is_a_jpeg.png": (_writes(JPEG), WHOLE),
    "is_a_tiff.jpg": (_writes(encoded("TIFF")), WHOLE),
    "UPPER.JPEG": (_writes(JPEG), WHOLE),
    "new\nline.jpg": (_writes(JPEG), WHOLE),
    os.fsdecode(b"not_utf8_\xff.jpg"): (_writes(JPEG), WHOLE),
    "x" * 251 + ".jpg": (_writes(JPEG), WHOLE),
    "zero_bytes.jpg": (_writes(b""), "empty"),
    "text.jpg": (_writes(b"hello"), "not a JPEG"),
    "html.png": (_writes(b"<!DOCTYPE html><title>404</title>"), "not a JPEG"),
    "postscript.jpg": (_writes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "not a JPEG"),
    "gif.png": (_writes(encoded("GIF", "P")), "not a JPEG"),
    "zip.jpg": (_writes(b"PK\x03\x04" + bytes(200)), "not a JPEG"),
    "zeros.jpg": (_writes(bytes(5000)), "not a JPEG"),
    "half.jpg": (_writes(JPEG[: len(JPEG) // 2]), "truncated"),
    "headless.jpg": (_writes(JPEG[:3] + JPEG[200:]), "decoded"),
    "signature.jpg": (_writes(b"\xff\xd8\xff"), "decoded"),
    "no_image.jpg": (_writes(b"\xff\xd8\xff\xd9"), "decoded"),
    "half.png": (_writes(PNG[: len(PNG) // 2]), "truncated|decoded"),
    "signature.png": (_writes(b"\x89PNG\r\n\x1a\n"), "decoded"),
    "bad_crc.png": (_writes(_flipped(PNG, 16 / len(PNG))), "decoded|megapixels"),
    "bad_data.png": (_writes(_flipped(PNG, 0.5)), "decoded|truncated|checksum|broken"),
    "no_rows.png": (_writes(png(WIDTH, HEIGHT, 8, 2, b"")), "truncated|decoded"),
    "zero_size.png": (_writes(png(0, 0, 8, 2, b"")), "decoded"),
    "odd_depth.png": (_writes(png(4, 4, 7, 2, bytes(100))), "decoded"),
    "half.bmp": (_writes(encoded("BMP")[:-2000]), "truncated"),
    "half.tif": (_writes(encoded("TIFF")[:-2000]), "truncated|decoded"),
    "loop.tif": (_writes(b"II*\0\x08\0\0\0\x01\0\0\x01\x03\0\x01\0\0\0\x01\0\0\0\x08\0\0\0"), "decoded"),
    "half.webp": (_writes(encoded("WEBP")[:-200]), "decoded|decoder"),
    "wave.webp": (_writes(b"RIFF\0\0\0\0WAVE"), "decoded"),
    "float.tif": (lambda path: Image.fromarray(np.zeros((4, 4), np.float32)).save(path), "32-bit"),
    "bomb.png": (_writes(png(60_000, 60_000, 8, 0, bytes(1000))), "megapixels"),
    "bomb.jpg": (_writes(_claiming(65_500, 65_500)), "megapixels"),
    "bomb_int.png": (_writes(png(2**31 - 1, 2**31 - 1, 8, 2, b"")), "megapixels"),
    "text_bomb.png": (
        _writes(png(1, 1, 8, 0, b"\0\0", png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000))))),
        "decoded",
    ),
    "fifo.jpg": (lambda path: os.mkfifo(path), "regular"),
    "device.jpg": (_link("/dev/zero"), "regular"),
    "terminal.jpg": (_link("/dev/tty"), "regular|No such"),
    "dangling.jpg": (_link("nowhere"), "No such"),
    "itself.jpg": (_link("itself.jpg"), "symbolic links"),
}


def make_folder(folder: Path) -> None:
    """Write every case into a folder."""
    folder.mkdir()
    for name, (make, _) in CASES.items():
        make(folder / name)
