"""The protocol of the report's published code: 128 px in, 64 px out, a truth that is grown on the way.

Kept for one purpose, to set our numbers beside the report's table. It is lenient and harsh at once: at 64 px fine
errors vanish, and the truth is grown by up to a pixel all round, so that even a perfect mask scores about 0.9 only.

Read in the published code (`segmentation_code.py`, 2025), and followed to the bit: image and mask are resized to
128 x 128 by Pillow's bilinear filter, which antialiases, and rounded to 8 bits; the mask goes on to 64 x 64 by bilinear
interpolation without antialiasing (``align_corners=False``), which at this factor is the mean of 2 x 2 pixels; every
pixel of it that is not zero is truth (``.bool()``); a pixel is lesion where its probability is above 0.5; IoU and Dice
of each image as float32; the mean over the images. Nothing is cleaned up.

Inferred, because our models differ from its networks:

* Its networks see [0, 1] without ImageNet's mean and standard deviation; ours normalise inside the graph.
* Its networks answer at 64 x 64. Ours answer at their input's size: the probabilities are averaged over the pixels that
  fall into each of the 64 x 64 (2 x 2 of them at 128 px) before they are cut at 0.5.
* A model whose input is not 128 px is fed the image resized to *its* size in the same way. The result says so.
* Its code pairs images and masks in the order in which the file system lists two folders. Here they are paired by id.
* Truth and mask both empty is 0/0 there, which spoils its mean. Here it is 1, as the official scorer has it.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from isicrt.benchmarks.scoring_protocol import own_size
from isicrt.engine.card import ModelCard
from isicrt.engine.errors import DataError
from isicrt.engine.geometry import UInt8Array, resize_by_pillow
from isicrt.engine.images import Decoded, read_image
from isicrt.engine.mask_levels import check_highest
from isicrt.engine.masks import Mask
from isicrt.engine.scores import Overlap

INPUT_SIDE = 128
"""Pixels. The result is half of it."""
THRESHOLD = 0.5


class ReportProtocol:
    """See the module. Follows `isicrt.benchmarks.scoring_protocol.ScoringProtocol`."""

    name = "report"
    title = "as the report's code: 128 px in, 64 x 64 px scored, truth grown by resizing, mean over the images"

    def decode(self, image: Path, size: tuple[int, int]) -> Decoded:
        """The whole image, resized once: no scaling while the JPEG is decoded."""
        pixels = read_image(image)
        return Decoded(resize_by_pillow(pixels, size), (pixels.shape[0], pixels.shape[1]))

    def read_truth(self, truth: Path) -> tuple[Mask, tuple[int, int]]:
        """See `grown_truth`.

        Raises:
            DataError: not a greyscale image, or see `check_highest`: all that is not 0 is lesion by this protocol, so a
                mask of 0 and 1 would do here, and would not by the other.
        """
        pixels = read_image(truth)
        levels = pixels[..., 0]
        if not (np.array_equal(levels, pixels[..., 1]) and np.array_equal(levels, pixels[..., 2])):
            raise DataError(f"{truth}: a mask must be greyscale, and this image has colours")
        check_highest(truth, int(levels.max()))
        return grown_truth(levels), (levels.shape[0], levels.shape[1])

    def mask(self, probability: UInt8Array, native_size: tuple[int, int], card: ModelCard) -> Mask:
        """See `coarse_mask`."""
        return coarse_mask(probability)

    def score(self, prediction: Mask, truth: Mask) -> Overlap:
        """See `coarse_overlap`."""
        return coarse_overlap(prediction, truth)

    def describe_input(self, card: ModelCard) -> str:
        """The model's own size, and the report's where it is another."""
        own = own_size(card)
        return own if card.input_size == (INPUT_SIDE, INPUT_SIDE) else f"{own} in place of the report's {INPUT_SIDE}"

    def threshold(self, card: ModelCard) -> float:
        """0.5, whatever the card says."""
        return THRESHOLD

    def clean_up(self, card: ModelCard) -> tuple[str, ...]:
        """Nothing, whatever the card says."""
        return ()


def grown_truth(levels: UInt8Array, side: int = INPUT_SIDE) -> Mask:
    """The report's truth: every pixel that any foreground has a part in.

    Args:
        levels: uint8, H x W, the mask's file as greyscale.
        side: of the square that the mask is resized to, an even number of pixels.

    Returns:
        bool, side / 2 x side / 2.
    """
    small = np.asarray(Image.fromarray(levels).resize((side, side), Image.Resampling.BILINEAR))
    # The mean of 2 x 2 values that are not negative is zero where all of them are.
    return np.asarray(small.reshape(side // 2, 2, side // 2, 2).max(axis=(1, 3)) > 0)


def coarse_mask(probability: UInt8Array, side: int = INPUT_SIDE) -> Mask:
    """The predicted mask at half of `side`: mean probability above 0.5.

    Args:
        probability: uint8, h x w, 0..255, at the model's size.
        side: as for `grown_truth`.

    Returns:
        bool, side / 2 x side / 2.
    """
    half = side // 2
    # Area averaging is defined only downwards.
    shrinks = min(probability.shape) >= half
    levels = cv2.resize(
        probability.astype(np.float32), (half, half), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    return np.asarray(levels > THRESHOLD * 255)


def coarse_overlap(prediction: Mask, truth: Mask) -> Overlap:
    """IoU and Dice of the foreground, rounded to float32 as torch does it; 1 where both masks are empty.

    Args:
        prediction: bool, h x w.
        truth: the same shape.
    """
    both = np.count_nonzero(prediction & truth)
    either = np.count_nonzero(prediction | truth)
    if not either:
        return Overlap(1.0, 1.0)
    sizes = np.count_nonzero(prediction) + np.count_nonzero(truth)
    return Overlap(float(np.float32(both) / np.float32(either)), float(np.float32(2 * both) / np.float32(sizes)))
