"""The one resize rule, in both directions. Arrays are uint8, images are HWC, sizes are (height, width).

Into the network: antialiased triangle filter (Pillow's BILINEAR, DALI's antialiased INTERP_LINEAR). Out of it:
plain bilinear with half-pixel centres (``align_corners=False``), on probabilities and never on masks.

Pillow takes a large part of the time of decoding for it. fast_image_resize has the same filter in a fraction of that;
one value in nine is rounded to the neighbouring level (benchmarks/results/decoding.json).
"""

from __future__ import annotations

import threading

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

try:
    import cykooz_resizer
except (ImportError, OSError):  # it has no wheels for Linux on ARM, or its library does not load
    cykooz_resizer = None

UInt8Array = npt.NDArray[np.uint8]


def resize_image(image: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """Resize an HxWx3 uint8 image to (height, width) with an antialiased triangle filter."""
    if image.shape[:2] == size:
        return image
    return resize_by_pillow(image, size) if cykooz_resizer is None else _resize_fast(image, size)


def resize_by_pillow(image: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """`resize_image`, to the bit as Pillow does it."""
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


_own = threading.local()


def _resize_fast(image: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    if not hasattr(_own, "resizer"):  # it keeps buffers between calls
        _own.resizer = cykooz_resizer.Resizer()
        triangle = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear)
        _own.options = cykooz_resizer.ResizeOptions(resize_alg=triangle)
    pixels = cykooz_resizer.PixelType.U8x3
    source = cykooz_resizer.ImageData(image.shape[1], image.shape[0], pixels, image.tobytes())
    result = cykooz_resizer.ImageData(size[1], size[0], pixels)
    _own.resizer.resize(source, result, _own.options)
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(*size, 3)


def upsample_probability(probability: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """Resize an hxw uint8 probability map (0..255) to (height, width), bilinearly."""
    height, width = size
    if probability.shape == (height, width):
        return probability
    return np.asarray(cv2.resize(probability, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def cutoff(threshold: float) -> int:
    """The smallest uint8 probability that counts as lesion: the first level above ``threshold * 255``.

    >>> cutoff(0.5)
    128
    """
    return int(np.floor(threshold * 255.0)) + 1
