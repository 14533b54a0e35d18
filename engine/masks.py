"""Probabilities into masks at the image's own size, and masks into PNG files that are whole or absent."""

from __future__ import annotations

import math
import os
import secrets
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from isicrt.engine.geometry import UInt8Array, cutoff, upsample_probability

Mask = npt.NDArray[np.bool_]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class WindowMask:
    """A mask by the part of it outside of which there is no lesion: most of an image is skin."""

    size: tuple[int, int]
    """(height, width) in pixels."""
    window: tuple[slice, slice]
    """Rows and columns of the part, whose first column is a multiple of 8. There may be no lesion in it either."""
    part: Mask
    """bool, of the window's size."""

    @property
    def lesion(self) -> float:
        """Share of the pixels that are lesion."""
        return float(np.count_nonzero(self.part) / (self.size[0] * self.size[1]))

    def whole(self) -> Mask:
        """bool, height x width."""
        mask = np.zeros(self.size, np.bool_)
        mask[self.window] = self.part
        return mask


def no_lesion(size: tuple[int, int]) -> WindowMask:
    """The mask of an image of (height, width) in which nothing is lesion."""
    return WindowMask(size, (slice(0, 0), slice(0, 0)), np.zeros((0, 0), np.bool_))


def restore_mask(
    probability: UInt8Array,
    native_size: tuple[int, int],
    *,
    threshold: float,
    keep_largest: bool,
    fill_holes: bool,
    centre_sigma: float = 0.0,
) -> Mask:
    """The mask of an image from what the network says.

    Args:
        probability: uint8, h x w, 0..255.
        native_size: (height, width) of the image.
        threshold: in (0, 1); a pixel whose interpolated probability is above it is lesion.
        keep_largest: keep only the component with the most pixels (8-connectivity; of equals the topmost).
        fill_holes: fill background (4-connectivity) that what is kept encloses.
        centre_sigma: above 0, the component that is kept is the one whose pixels weigh most, see
            `isicrt.engine.card.ModelCard.centre_sigma`.

    Returns:
        bool, height x width; all false where no pixel is above the threshold.
    """
    return restore_window(
        probability,
        native_size,
        threshold=threshold,
        keep_largest=keep_largest,
        fill_holes=fill_holes,
        centre_sigma=centre_sigma,
    ).whole()


def restore_window(
    probability: UInt8Array,
    native_size: tuple[int, int],
    *,
    threshold: float,
    keep_largest: bool,
    fill_holes: bool,
    centre_sigma: float = 0.0,
) -> WindowMask:
    """`restore_mask` without the background around what is restored, which is neither compared nor made."""
    cut = cutoff(threshold)
    if (window := _window(probability >= cut, native_size)) is None:
        return no_lesion(native_size)
    part = upsample_probability(probability, native_size)[window] >= cut
    found = WindowMask(native_size, window, part)
    return clean_window(found, keep_largest=keep_largest, fill_holes=fill_holes, centre_sigma=centre_sigma)


def clean_window(mask: WindowMask, *, keep_largest: bool, fill_holes: bool, centre_sigma: float = 0.0) -> WindowMask:
    """Apply the clean-up of `restore_mask` to a mask, in place."""
    if keep_largest or fill_holes:
        weights = None if centre_sigma == 0 else _CentreWeights(mask.size, mask.window, centre_sigma)
        _clean(mask.part, keep_largest, fill_holes, weights)
    return mask


def _window(above: Mask, size: tuple[int, int]) -> tuple[slice, slice] | None:
    """Where pixels of the upsampled map can be above the threshold, with a border of others unless the image ends, its
    columns from a multiple of 8 on; None for nowhere.

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
    rows, columns = slices
    return rows, slice(columns.start & ~7, columns.stop)


class _CentreWeights:
    """Weights of the pixels of a window of an image: exp(-d^2 / (2 sigma^2)), d from the image's centre in units of its
    sides. A weight is a product of one for the row and one for the column."""

    def __init__(self, size: tuple[int, int], window: tuple[slice, slice], sigma: float) -> None:
        self._size, self._window, self._sigma = size, window, sigma

    def of(self, contours: Sequence[npt.NDArray[np.int32]]) -> Iterator[tuple[float, float, float]]:
        """For each contour the weights of the polygon's area, of its border pixels, and of one of them on average."""
        rows, columns = self._axis(0), self._axis(1)
        # What is left of the middle of a pixel, so that an integral over a row is a difference of two of these.
        left = np.cumsum(columns) - columns / 2
        for contour in contours:
            x, y = contour[:, 0].T
            border = rows[y] * columns[x]
            # Green's theorem: from one pixel of a contour to the next is a step of at most 1 along each axis.
            after = np.roll(np.arange(len(x)), -1)
            area = ((left[x] + left[x[after]]) * (rows[y] + rows[y[after]]) * (y[after] - y)).sum() / 4
            yield abs(float(area)), float(border.sum()), float(border.mean())

    def _axis(self, axis: int) -> npt.NDArray[np.float64]:
        place = (np.arange(self._window[axis].start, self._window[axis].stop) + 0.5) / self._size[axis] - 0.5
        weights: npt.NDArray[np.float64] = np.exp(-(place**2) / (2 * self._sigma**2))
        return weights


def _clean(mask: Mask, keep_largest: bool, fill_holes: bool, weights: _CentreWeights | None) -> None:
    """In place."""
    # Contours cost a fortieth of labelling every pixel, and most masks turn out to be one component without a hole.
    contours, tree = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if len(contours) < 2:
        return
    parents = tree[0, :, 3]
    kept = [i for i, parent in enumerate(parents) if parent < 0]
    if keep_largest:
        pixels = _component_pixels(contours, parents, weights)
        kept = [min(kept, key=lambda i: (-pixels[i], *contours[i][0, 0, ::-1]))]
    if fill_holes:
        filled = np.zeros(mask.shape, np.uint8)
        cv2.drawContours(filled, [contours[i] for i in kept], -1, 1, cv2.FILLED)
        mask[:] = filled.view(np.bool_)
        return
    _, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    x, y = contours[kept[0]][0, 0]
    mask[:] = labels == labels[y, x]


def _component_pixels(
    contours: Sequence[npt.NDArray[np.int32]], parents: npt.NDArray[np.int32], weights: _CentreWeights | None
) -> dict[int, float]:
    """Pixels of each component, by the index of its outer contour, without those of its holes; or what they weigh.

    Pick's theorem: a lattice polygon of area A with B points on its border has A - B/2 + 1 points inside it. A contour
    runs through the component's own pixels, around the outside and around each hole. Weights change little from pixel
    to pixel, so that the theorem holds for them nearly.
    """
    pixels: dict[int, float] = {}
    holes: list[tuple[int, float]] = []
    measures = ((cv2.contourArea(c), len(c), 1.0) for c in contours) if weights is None else weights.of(contours)
    for i, (area, border, one) in enumerate(measures):
        border = border if len(contours[i]) > 1 else 0
        if parents[i] < 0:
            pixels[i] = area + border / 2 + one
        else:
            holes.append((int(parents[i]), area - border / 2 + one))
    for parent, hole in holes:
        pixels[parent] -= hole
    return pixels


def write_mask(mask: Mask | WindowMask, path: str | os.PathLike[str], *, bits: int = 1) -> None:
    """Write a mask as a greyscale PNG, black and white. The file appears whole or not at all.

    Args:
        mask: bool, H x W, true where there is lesion, or its window.
        path: an existing file is replaced. Its folder must exist.
        bits: 1 for a 1-bit PNG, 8 for one with the values 0 and 255. Both are read as 0 and 255.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    replace_file(path, encode_png(mask, bits))


def encode_png(mask: Mask | WindowMask, bits: int = 1) -> bytes:
    """The bytes of a greyscale PNG with 1 or 8 bits a pixel. https://www.w3.org/TR/png-3/"""
    if not isinstance(mask, WindowMask):
        mask = WindowMask((mask.shape[0], mask.shape[1]), (slice(0, mask.shape[0]), slice(0, mask.shape[1])), mask)
    height, width = mask.size
    rows, columns = mask.window
    pixels = np.packbits(mask.part, axis=1) if bits == 1 else mask.part.view(np.uint8) * np.uint8(255)
    # Each row is led by its filter. On flat areas none (0) packs better than the difference to the row above.
    filtered = np.zeros((height, 1 + (width * bits + 7) // 8), np.uint8)
    first = 1 + columns.start * bits // 8
    filtered[rows, first : first + pixels.shape[1]] = pixels
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
        OSError: it names `path`. The temporary file is removed again.
    """
    path = Path(path)
    temporary = path.with_name(f".isicrt-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None
        raise
