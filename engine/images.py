"""Image files into pixels. The pixel grid is the one that is stored: EXIF orientation is ignored everywhere.

JPEG goes through libjpeg-turbo with scaling in the DCT domain, which skips most of the inverse transform of a large
photograph; where that refuses (CMYK, a stream with warnings), and for every other format, Pillow's verdict counts.
What a file is, its content decides and not its name.
"""

from __future__ import annotations

import errno
import math
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from isal import isal_zlib
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from isicrt.engine import bmp_layout, tiff_layout
from isicrt.engine.errors import DataError, ImageError
from isicrt.engine.frames import frames_note
from isicrt.engine.geometry import UInt8Array, resize_image
from isicrt.engine.jpeg_notes import DAMAGED, damage, exif_note, joined, orientation_note, turned_note
from isicrt.engine.mask_levels import check_highest, mask_levels
from isicrt.engine.pixel_budget import BUDGET, LARGE_PIXELS
from isicrt.engine.scores import FOREGROUND_ABOVE

MAX_PIXELS = 400_000_000
"""A larger image is refused before it is decoded: 20,000 x 20,000 is a slide or a bomb, not a dermoscopy image."""
MAX_BYTES = 2**31
"""A larger file is refused before it is read."""

JPEG_SIGNATURE = b"\xff\xd8\xff"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_SIZE, _PNG_SIZE_AT = struct.Struct(">II"), 16
_PNG_SIZE_END = _PNG_SIZE_AT + _PNG_SIZE.size

Admit = Callable[[int], AbstractContextManager[None]]
"""Told the pixels of an image; it is decoded inside."""

# Only these are tried: Pillow knows formats (PostScript among them) that a folder of strangers must not reach.
# The classes are called directly because `Image.open` compares sizes with a limit that is global to the process.
_FORMATS: tuple[tuple[tuple[bytes, ...], type[ImageFile.ImageFile]], ...] = (
    ((JPEG_SIGNATURE,), JpegImagePlugin.JpegImageFile),
    ((PNG_SIGNATURE,), PngImagePlugin.PngImageFile),
    ((b"BM",), BmpImagePlugin.BmpImageFile),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
    ((b"RIFF",), WebPImagePlugin.WebPImageFile),
)

_SCRUTINISED = (JpegImagePlugin.JpegImageFile, PngImagePlugin.PngImageFile)
RISKY_SIGNATURES = tuple(
    signature for signatures, kind in _FORMATS for signature in signatures if kind not in _SCRUTINISED
)
"""Of formats whose codecs `isicrt.engine.isolation` keeps out of the run's process."""

MOST_SCANS = 32
"""Of a JPEG that is sure to be decoded soon. The usual progressive one has 10; each may touch every pixel again, and a
file of 500 KB that takes minutes is easily made."""
_JPEG_SEQUENTIAL, _JPEG_SCAN, _JPEG_FILL = (0xC0, 0xC1), 0xDA, 0xFF

# A FIFO that took the file's place after it was looked at must not hold the thread.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

_ORIENTATION = 0x0112  # EXIF tag
_UNDO_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class FileStamp:
    """What tells a file from a changed one."""

    size: int
    """Bytes."""
    mtime_ns: int
    """Time of its last change, in nanoseconds since 1970."""
    crc: int
    """CRC-32 of all its bytes."""


@dataclass(frozen=True)
class Source:
    """A file that was read whole."""

    data: bytes
    stamp: FileStamp


@dataclass(frozen=True)
class Decoded:
    """An image as a model takes it."""

    pixels: UInt8Array
    """uint8, h x w x 3, RGB, at the model's input size."""
    native_size: tuple[int, int]
    """(height, width) of the stored pixel grid, which is the mask's."""
    stamp: FileStamp | None = None
    """Of the file, while it was read."""
    note: str | None = None
    """What else is to be known of it, see `isicrt.engine.jpeg_notes`: such as that it looks damaged."""


class DamagedImageError(ImageError):
    """An image whose bytes were all read and are no good: trying again does not help while the file is the same."""

    def __init__(self, message: str, stamp: FileStamp) -> None:
        super().__init__(message)
        self.stamp = stamp


def decode_image(
    path: str | os.PathLike[str], size: tuple[int, int], *, max_pixels: int = MAX_PIXELS, admit: Admit = BUDGET.admit
) -> Decoded:
    """Decode an image and resize it to a model's input.

    Args:
        path: JPEG, PNG, BMP, TIFF or WebP. The first frame or page counts; alpha is dropped; 16-bit grey is scaled.
        size: (height, width) in pixels.
        max_pixels: an image of more is refused from its header.
        admit: makes large images take turns.

    Raises:
        ImageError: not a regular file, changed while it was read, or more than `max_pixels`.
        DamagedImageError: not one of these formats, or damaged.
    """
    return decode_source(path, read_source(path), size, max_pixels=max_pixels, admit=admit)


def decode_source(
    path: str | os.PathLike[str],
    source: Source,
    size: tuple[int, int],
    *,
    max_pixels: int = MAX_PIXELS,
    admit: Admit = BUDGET.admit,
) -> Decoded:
    """`decode_image` of a file that `read_source` has read; `path` is for messages."""
    try:
        with _image_errors(path):
            notes: list[str] = []
            pixels, native_size = decode_data(source.data, size, max_pixels, admit, notes)
            return Decoded(resize_image(pixels, size), native_size, source.stamp, joined(notes))
    except ImageError as error:
        if isinstance(
            error.__cause__, (OverflowError, MemoryError, Image.DecompressionBombError)
        ):  # another limit, another day
            raise
        raise DamagedImageError(str(error), source.stamp) from error


def read_image(path: str | os.PathLike[str]) -> UInt8Array:
    """The whole image: uint8, H x W x 3, RGB, at its stored pixel grid. Raises ImageError as `decode_image`."""
    with _image_errors(path):
        return decode_data(read_source(path).data, None, MAX_PIXELS, BUDGET.admit)[0]


def read_mask(path: str | os.PathLike[str]) -> npt.NDArray[np.bool_]:
    """A ground truth or a predicted mask: bool, H x W, true where the value is above 128 of 255.

    Raises:
        DataError: one that cannot be decoded, or see `mask_levels` and `check_highest`.
    """
    pixels = decode_mask(path, read_source(path))
    mask: npt.NDArray[np.bool_] = pixels > FOREGROUND_ABOVE
    if not mask.any():
        check_highest(path, int(pixels.max()))
    return mask


def decode_mask(path: str | os.PathLike[str], source: Source) -> UInt8Array:
    """The `mask_levels` of a file that `read_source` has read; `path` is for messages.

    Raises:
        DataError: it cannot be decoded, or see `mask_levels`.
    """
    with _image_errors(path):
        image = _open(source.data, MAX_PIXELS)
        return mask_levels(path, _stored_grid(image, palette=True), tiff_layout.grey_levels(image))


@contextmanager
def _image_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever goes wrong inside is an ImageError that names the file."""
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        reason = error.strerror or f"cannot be decoded: {error}"  # the codecs' own have no number
        raise ImageError(f"{os.fspath(path)}: {reason}") from error
    except Image.DecompressionBombError as error:  # Pillow looks at a WebP, and at the tiles of a TIFF, by itself
        most = f"{(Image.MAX_IMAGE_PIXELS or 0) * 2 / 1e6:g}"
        raise ImageError(f"{os.fspath(path)}: it, or one of its tiles, is more than {most} megapixels") from error
    except MemoryError as error:
        raise ImageError(f"{os.fspath(path)}: cannot be decoded: not enough memory") from error
    except Exception as error:  # on damaged bytes the decoders raise whatever they run into
        raise ImageError(f"{os.fspath(path)}: cannot be decoded: {str(error) or type(error).__name__}") from error


def read_source(path: str | os.PathLike[str]) -> Source:
    """Read a whole file.

    Raises:
        ImageError: not a regular file, empty, more than `MAX_BYTES`, or changed while it was read.
    """
    with _image_errors(path):
        _check_regular(path, os.stat(path))  # noqa: PTH116 (a Path costs more than the call); opening may wait for ever
        file = os.open(path, _OPEN_FLAGS)
        try:
            before = os.fstat(file)
            _check_regular(path, before)
            data = _read_all(file, before.st_size)
            after = os.fstat(file)
        finally:
            os.close(file)
        if len(data) != after.st_size or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise OSError(errno.EBUSY, "changed while it was read")
        return Source(data, FileStamp(len(data), after.st_mtime_ns, isal_zlib.crc32(data)))


def read_signature(path: str | os.PathLike[str]) -> bytes:
    """The first 16 bytes of a file, by which `RISKY_SIGNATURES` are known.

    Raises:
        ImageError: as `read_source`.
    """
    with _image_errors(path):
        _check_regular(path, os.stat(path))  # noqa: PTH116 (as above)
        file = os.open(path, _OPEN_FLAGS)
        try:
            _check_regular(path, os.fstat(file))
            return os.read(file, 16)
        finally:
            os.close(file)


def _check_regular(path: str | os.PathLike[str], status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{os.fspath(path)}: not a regular file")
    if status.st_size > MAX_BYTES:
        raise ImageError(f"{os.fspath(path)}: {status.st_size / 2**30:.1f} GiB is more than isicrt reads")
    if not status.st_size:
        raise ImageError(f"{os.fspath(path)}: the file is empty")


def _read_all(file: int, size: int) -> bytes:
    """Up to one byte more than `size`, which would show that the file grew."""
    data = os.read(file, size + 1)
    while 0 < len(data) <= size and (more := os.read(file, size + 1 - len(data))):
        data += more
    return data


def decode_data(
    data: bytes, size: tuple[int, int] | None, max_pixels: int, admit: Admit, notes: list[str] | None = None
) -> tuple[UInt8Array, tuple[int, int]]:
    """RGB pixels, at least of `size` on both sides where the image has them, and the native (height, width); what
    `Decoded.note` is to say is appended to `notes`."""
    notes = [] if notes is None else notes
    if data.startswith(JPEG_SIGNATURE):
        notes += turned_note(data)
        if fast := _decode_jpeg(data, size, max_pixels, admit, notes):
            return fast
    image = _open(data, max_pixels)
    notes += frames_note(image, data)
    with admit(image.size[0] * image.size[1]):
        pixels = _to_rgb(_stored_grid(image, notes), *tiff_layout.grey_levels(image))
    return pixels, (pixels.shape[0], pixels.shape[1])


def _decode_jpeg(
    data: bytes, size: tuple[int, int] | None, max_pixels: int, admit: Admit, notes: list[str]
) -> tuple[UInt8Array, tuple[int, int]] | None:
    """The fast path; None where it does not apply and Pillow has to look. Pillow passes over what libjpeg-turbo warns
    of, such as a file that was cut and yet has its end marker: so that is noted."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        _check_pixels(width, height, max_pixels)
        if colours not in ("Gray", "RGB", "YCbCr"):
            return None
        smallest = (0, 0)
        if size is not None:
            # Halves, quarters and eighths have vectorised transforms; 3/8, 5/8 and so on take longer than the whole.
            for divisor in (8, 4, 2):
                scaled = -(-height // divisor), -(-width // divisor)
                if scaled[0] >= size[0] and scaled[1] >= size[1]:
                    smallest = scaled
                    break
            else:
                smallest = (height, width)
        with admit(width * height):
            pixels: UInt8Array = simplejpeg.decode_jpeg(data, "RGB", min_height=smallest[0], min_width=smallest[1])
    except ValueError as error:  # an error, or a warning, from libjpeg-turbo
        notes += [f"{DAMAGED}{found}"] if (found := damage(str(error))) else []
        return None
    return pixels, (height, width)


def may_take_long(data: bytes) -> bool:
    """Whether a JPEG or a PNG could keep its decoder busy for long, as far as that can be told without decoding it."""
    if data.startswith(PNG_SIGNATURE):
        return len(data) >= _PNG_SIZE_END and math.prod(_PNG_SIZE.unpack_from(data, _PNG_SIZE_AT)) >= LARGE_PIXELS
    return data.startswith(JPEG_SIGNATURE) and not _has_one_scan(data) and data.count(b"\xff\xda") > MOST_SCANS


def _has_one_scan(data: bytes) -> bool:
    """Whether a JPEG is sequential and its first scan has all components: libjpeg reads no other. False in doubt."""
    position, components = 2, None
    while position + 10 <= len(data) and data[position] == _JPEG_FILL:
        marker = data[position + 1]
        if marker in _JPEG_SEQUENTIAL:
            components = data[position + 9]
        elif marker == _JPEG_SCAN:
            return data[position + 4] == components
        position += 1 if marker == _JPEG_FILL else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False


def _open(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    for signatures, kind in _FORMATS:
        if data.startswith(signatures):
            image = kind(BytesIO(data))
            _check_pixels(*image.size, max_pixels)
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                tiff_layout.mend(image)
            elif isinstance(image, BmpImagePlugin.BmpImageFile):
                bmp_layout.mend(image, data)
            return image
    raise ValueError("it is not a JPEG, PNG, BMP, TIFF or WebP image")


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise OverflowError(
            f"{width} x {height} is more than {max_pixels / 1e6:g} megapixels, the limit (isicrt segment "
            "--max-megapixels, or max_pixels of Segmenter.segment_folder and decode_image, sets another)"
        )


def _stored_grid(image: ImageFile.ImageFile, notes: list[str] | None = None, *, palette: bool = False) -> Image.Image:
    """The loaded image, not turned. Pillow turns a TIFF while it loads it, and only a TIFF. `palette`: a BMP is refused
    where a pixel has a colour that it lacks, which in a photograph is one black pixel and in a mask the lesion."""
    turned = image.getexif().get(_ORIENTATION) if isinstance(image, TiffImagePlugin.TiffImageFile) else None
    if palette and isinstance(image, BmpImagePlugin.BmpImageFile):
        bmp_layout.load(image)
    else:
        image.load()
    if notes is not None and not isinstance(image, JpegImagePlugin.JpegImageFile):
        exif = image.info.get("exif")  # of a PNG or a WebP
        notes += orientation_note(turned) or (exif_note(exif) if isinstance(exif, bytes) else [])
    return image.transpose(_UNDO_ORIENTATION[turned]) if turned in _UNDO_ORIENTATION else image


def _to_rgb(image: Image.Image, black: int, white: int) -> UInt8Array:
    """uint8, H x W x 3; `black` and `white` of 16-bit grey."""
    # Before Pillow 11 a 16-bit greyscale PNG has mode I.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        deep: npt.NDArray[Any] = abs(np.asarray(image).astype(np.int32) - black)
        most = abs(white - black)
        grey = ((deep * 255 + most // 2) // most).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no defined white; save it with 8 or 16 bits")
    image.info.pop("transparency", None)  # alpha is dropped, and `convert` must not warn of it
    return np.asarray(image.convert("RGB"))
