"""Probabilities into masks at the image's own size, and masks into PNG files that are whole or absent."""

from __future__ import annotations

import math
import os
import secrets
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from isicrt.engine.geometry import UInt8Array, cutoff, upsample_probability

Mask = npt.NDArray[np.bool_]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def restore_mask(
    probability: UInt8Array,
    native_size: tuple[int, int],
    *,
    threshold: float,
    keep_largest: bool,
    fill_holes: bool,
) -> Mask:
    """The mask of an image from what the network says.

    Args:
        probability: uint8, h x w, 0..255.
        native_size: (height, width) of the image.
        threshold: in (0, 1); a pixel whose interpolated probability is above it is lesion.
        keep_largest: keep only the component with the most pixels (8-connectivity; of equals the topmost).
        fill_holes: fill background (4-connectivity) that what is kept encloses.

    Returns:
        bool, height x width; all false where no pixel is above the threshold.
    """
    mask = np.zeros(native_size, np.bool_)
    cut = cutoff(threshold)
    if (window := _window(probability >= cut, native_size)) is None:
        return mask
    # Most of an image is skin, and all of it background: neither compared nor searched for contours.
    part = mask[window]
    np.greater_equal(upsample_probability(probability, native_size)[window], cut, out=part)
    if keep_largest or fill_holes:
        _clean(part, keep_largest, fill_holes)
    return mask


def _window(above: Mask, size: tuple[int, int]) -> tuple[slice, slice] | None:
    """Where pixels of the upsampled map can be above the threshold, with a border of others unless the image ends; None
    for nowhere.

    A pixel is a weighted mean of the four of the network's around it, so one of those is above. That of row r reaches
    the rows whose place (y + 0.5) * h / H - 0.5 lies between r - 1 and r + 1.
    """
    slices = []
    for axis, length in enumerate(size):
        (hit,) = np.nonzero(above.any(axis=1 - axis))
        if not hit.size:
            return None
        scale = length / above.shape[axis]
        first, last = (int(hit[0]) - 0.5) * scale - 0.5, (int(hit[-1]) + 1.5) * scale - 0.5
        slices.append(slice(max(0, math.floor(first) - 1), min(length, math.ceil(last) + 2)))
    return slices[0], slices[1]


def _clean(mask: Mask, keep_largest: bool, fill_holes: bool) -> None:
    """In place."""
    # Contours cost a fortieth of labelling every pixel, and most masks turn out to be one component without a hole.
    contours, tree = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if len(contours) < 2:
        return
    parents = tree[0, :, 3]
    kept = [i for i, parent in enumerate(parents) if parent < 0]
    if keep_largest:
        pixels = _component_pixels(contours, parents)
        kept = [min(kept, key=lambda i: (-pixels[i], *contours[i][0, 0, ::-1]))]
    if fill_holes:
        filled = np.zeros(mask.shape, np.uint8)
        cv2.drawContours(filled, [contours[i] for i in kept], -1, 1, cv2.FILLED)
        mask[:] = filled.view(np.bool_)
        return
    _, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    x, y = contours[kept[0]][0, 0]
    mask[:] = labels == labels[y, x]


def _component_pixels(contours: Sequence[npt.NDArray[np.int32]], parents: npt.NDArray[np.int32]) -> dict[int, float]:
    """Pixels of each component, by the index of its outer contour, without those of its holes.

    Pick's theorem: a lattice polygon of area A with B points on its border has A - B/2 + 1 points inside it. A contour
    runs through the component's own pixels, around the outside and around each hole.
    """
    pixels: dict[int, float] = {}
    holes: list[tuple[int, float]] = []
    for i, contour in enumerate(contours):
        border = len(contour) if len(contour) > 1 else 0
        area = cv2.contourArea(contour)
        if parents[i] < 0:
            pixels[i] = area + border / 2 + 1
        else:
            holes.append((int(parents[i]), area - border / 2 + 1))
    for parent, hole in holes:
        pixels[parent] -= hole
    return pixels


def write_mask(mask: Mask, path: str | os.PathLike[str], *, bits: int = 1) -> None:
    """Write a mask as a greyscale PNG, black and white. The file appears whole or not at all.

    Args:
        mask: bool, H x W, true where there is lesion.
        path: an existing file is replaced. Its folder must exist.
        bits: 1 for a 1-bit PNG, 8 for one with the values 0 and 255. Both are read as 0 and 255.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    replace_file(path, encode_png(mask, bits))


def encode_png(mask: Mask, bits: int = 1) -> bytes:
    """The bytes of a greyscale PNG with 1 or 8 bits a pixel. https://www.w3.org/TR/png-3/"""
    height, width = mask.shape
    rows = np.packbits(mask, axis=1) if bits == 1 else mask.view(np.uint8) * np.uint8(255)
    # Each row is led by its filter. On flat areas none (0) packs better than the difference to the row above.
    filtered = np.zeros((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 1:] = rows
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    packed = isal_zlib.compress(filtered, 1)
    return PNG_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", isal_zlib.crc32(body))


def replace_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file under a temporary name in the same folder, then rename it: whole or absent at any moment.

    The temporary name starts with a dot, so that nobody takes it for an image, and is unique on every machine that
    shares the folder.

    Raises:
        OSError: the temporary file is removed again.
    """
    path = Path(path)
    temporary = path.with_name(f".isicrt-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
