"""The one resize rule, in both directions. Arrays are uint8, images are HWC, sizes are (height, width).

Into the network: antialiased triangle filter (Pillow's BILINEAR, DALI's antialiased INTERP_LINEAR). Out of it:
plain bilinear with half-pixel centres (``align_corners=False``), on probabilities and never on masks.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

UInt8Array = npt.NDArray[np.uint8]


def resize_image(image: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """Resize an HxWx3 uint8 image to (height, width) with an antialiased triangle filter."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


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
