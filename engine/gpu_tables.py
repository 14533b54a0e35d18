"""What the kernels are told of a batch: a row of 64-bit integers for each axis, image and mask, uploaded at once.

The columns are those that `isicrt.engine.gpu_kernels.SOURCE` describes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isicrt.engine.gpu_decode import DeviceImage
from isicrt.engine.gpu_kernels import taps

Table = npt.NDArray[np.int64]

BETWEEN_BYTES = 1 << 25
"""Of what lies between the two passes of resizing, for all images that one launch is for; one image may have more. So
much is still in the cache of a data-centre GPU when the second pass reads it."""
_ALIGNMENT = 256


def aligned(size: int) -> int:
    """A size, rounded up so that what lies behind it begins where memory reads well from."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True)
class Part:
    """Images that are resized by one launch of each kernel."""

    first: int
    """Row of the first one in `ResizePlan.images`."""
    images: int
    tallest: int
    """Pixels."""


class ResizePlan:
    """Which images of a batch are resized together, and the memory that this needs.

    Args:
        images: by their place in the batch.
        size: (height, width) of the network's input.
    """

    def __init__(self, images: Mapping[int, DeviceImage], size: tuple[int, int]) -> None:
        self._images, self._size = images, size
        self._weights: dict[tuple[int, int], int] = {}  # of (pixels in, pixels out), where they begin
        self.weight_bytes = 0
        """Of the weights of all axes; most images of a folder have one size."""
        self.between_bytes = 0
        """Of what lies between the two passes, of the largest part."""
        self.parts: list[Part] = []
        self._between: list[int] = []
        first = used = tallest = 0
        for row, image in enumerate(images.values()):
            for axis in zip(image.size, size, strict=True):
                if axis not in self._weights:
                    self._weights[axis] = self.weight_bytes
                    self.weight_bytes += aligned(4 * axis[1] * (2 + taps(*axis)))
            own = aligned(image.size[0] * size[1] * 3)
            if row > first and used + own > BETWEEN_BYTES:
                self.parts.append(Part(first, row - first, tallest))
                first, used, tallest = row, 0, 0
            self._between.append(used)
            used, tallest = used + own, max(tallest, image.size[0])
            self.between_bytes = max(self.between_bytes, used)
        if images:
            self.parts.append(Part(first, len(images) - first, tallest))

    def axes(self, weights: int) -> Table:
        """For ``triangle_weights``; `weights` is the address of `weight_bytes`."""
        rows = [(*axis, taps(*axis), weights + offset) for axis, offset in self._weights.items()]
        return np.array(rows, np.int64).reshape(-1, 4)

    def images(self, weights: int, between: int, target: int) -> Table:
        """For ``resize_rows`` and ``resize_columns``, in the order of the parts.

        Args:
            weights: see `axes`.
            between: address of `between_bytes`.
            target: address of the network's input.
        """
        h, w = self._size
        rows = []
        for (place, image), offset in zip(self._images.items(), self._between, strict=True):
            height, width = image.size
            across, down = (width, w), (height, h)
            rows.append(
                (
                    *(image.address, image.pitch, height, taps(*across), weights + self._weights[across]),
                    *(between + offset, taps(*down), weights + self._weights[down], target + place * h * w * 3),
                )
            )
        return np.array(rows, np.int64).reshape(-1, 9)


def mask_table(sizes: Mapping[int, tuple[int, int]], offsets: Sequence[int], packed: int, network: MapStack) -> Table:
    """For ``restore_mask``.

    Args:
        sizes: (height, width) of the masks, by their place in the batch.
        offsets: of the packed masks, in bytes, by place.
        packed: their address.
        network: its output.
    """
    h, w = network.size
    rows = [(network.address + n * h * w, *size, packed + offsets[n]) for n, size in sizes.items()]
    return np.array(rows, np.int64).reshape(-1, 4)


@dataclass(frozen=True)
class MapStack:
    """The network's probability maps in device memory."""

    address: int
    size: tuple[int, int]
    """(height, width) of each."""
