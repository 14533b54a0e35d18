"""Other conditions than those of the data set: borders, light, colour and quality, put on its images with their truth.

Dermatoscopes differ by what lies around the round field of view, users by what lies around a photograph: the sides of a
slide, a screenshot's border. After Hendrycks and Dietterich 2019 (arXiv:1903.12261), who measure classifiers so.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from isicrt.engine.geometry import UInt8Array
from isicrt.engine.masks import Mask

UNCHANGED = "as it is"
_BLACK, _WHITE, _GREEN = (0, 0, 0), (255, 255, 255), (60, 140, 90)
_FloatArray = npt.NDArray[np.float32]
_Change = Callable[[UInt8Array, Mask, np.random.Generator], tuple[UInt8Array, Mask]]


@dataclass(frozen=True)
class Condition:
    """What is done to an image, and to its truth so that both still agree."""

    name: str
    title: str
    """For people."""
    change: _Change

    def apply(self, image: UInt8Array, truth: Mask, seed: str) -> tuple[UInt8Array, Mask]:
        """The changed image and its truth.

        Args:
            image: uint8, H x W x 3, RGB.
            truth: bool, H x W.
            seed: of what is random, such as the image's id: the same for every model.

        Returns:
            Both in the size that they have then.
        """
        rng = np.random.default_rng(zlib.crc32(f"{self.name}/{seed}".encode()))
        changed, true = self.change(image, truth, rng)
        return np.ascontiguousarray(changed), np.ascontiguousarray(true)


def _levels(change: Callable[[_FloatArray, np.random.Generator], npt.NDArray[np.floating]]) -> _Change:
    """Of a function of float32 levels from 0 to 255 that leaves the truth as it is."""

    def apply(image: UInt8Array, truth: Mask, rng: np.random.Generator) -> tuple[UInt8Array, Mask]:
        levels = np.asarray(change(image.astype(np.float32), rng))
        return np.clip(np.rint(levels), 0, 255).astype(np.uint8), truth

    return apply


def _border(times: float, shade: tuple[int, int, int], *, sides: bool = False) -> _Change:
    """A border that makes the width, and unless it is for two `sides` the height, so many times as large."""

    def apply(image: UInt8Array, truth: Mask, rng: np.random.Generator) -> tuple[UInt8Array, Mask]:
        height, width = truth.shape
        across = round(width * (times - 1) / 2)
        down = 0 if sides else round(height * (times - 1) / 2)
        margins = (down, down, across, across)
        framed = cv2.copyMakeBorder(image, *margins, cv2.BORDER_CONSTANT, value=shade)
        true = cv2.copyMakeBorder(truth.astype(np.uint8), *margins, cv2.BORDER_CONSTANT, value=0)
        return np.asarray(framed, dtype=np.uint8), np.asarray(true) > 0

    return apply


def _round(diameter: float) -> _Change:
    """A round field of view, in units of the shorter side; black around it, where nobody would draw a lesion."""

    def apply(image: UInt8Array, truth: Mask, rng: np.random.Generator) -> tuple[UInt8Array, Mask]:
        height, width = truth.shape
        down, across = np.ogrid[:height, :width]
        distance = np.hypot(down - (height - 1) / 2, across - (width - 1) / 2)
        inside = distance <= diameter * min(height, width) / 2
        return image * inside[..., None].astype(np.uint8), truth & inside

    return apply


def _after(first: _Change, second: _Change) -> _Change:
    def apply(image: UInt8Array, truth: Mask, rng: np.random.Generator) -> tuple[UInt8Array, Mask]:
        return second(*first(image, truth, rng), rng)

    return apply


def _blurred(share: float) -> _Change:
    """Gaussian, of a standard deviation in units of the longer side."""

    def apply(image: UInt8Array, truth: Mask, rng: np.random.Generator) -> tuple[UInt8Array, Mask]:
        sigma = share * max(truth.shape)
        return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), dtype=np.uint8), truth

    return apply


def _compressed(quality: int) -> _Change:
    def apply(image: UInt8Array, truth: Mask, rng: np.random.Generator) -> tuple[UInt8Array, Mask]:
        _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), dtype=np.uint8)[..., ::-1], truth

    return apply


def _grey(levels: _FloatArray, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    return np.repeat((levels @ weights)[..., None], 3, axis=2)


def _cast(red: float, green: float, blue: float) -> _Change:
    return _levels(lambda levels, rng: levels * np.array([red, green, blue], np.float32))


def _noisy(deviation: float) -> _Change:
    return _levels(lambda levels, rng: levels + rng.normal(0, deviation, levels.shape))


CONDITIONS = (
    Condition(UNCHANGED, "the data set's own image", lambda image, truth, rng: (image, truth)),
    Condition("round field", "black outside a circle as wide as the shorter side", _round(1.0)),
    Condition(
        "round field, 4:3",
        "the same in a black frame that is a third wider",
        _after(_round(1.0), _border(4 / 3, _BLACK, sides=True)),
    ),
    Condition("black sides", "a third wider, black left and right", _border(4 / 3, _BLACK, sides=True)),
    Condition("white sides", "a third wider, white left and right", _border(4 / 3, _WHITE, sides=True)),
    Condition("black border", "1.5 times as wide and as high, black all around", _border(1.5, _BLACK)),
    Condition("white border", "1.5 times as wide and as high, white all around", _border(1.5, _WHITE)),
    Condition("green border", "1.5 times as wide and as high, green all around", _border(1.5, _GREEN)),
    Condition("dark", "half of each level", _levels(lambda levels, rng: levels * 0.5)),
    Condition("bright", "1.4 times each level, cut at white", _levels(lambda levels, rng: levels * 1.4)),
    Condition("warm", "red x 1.2, blue x 0.75", _cast(1.2, 1, 0.75)),
    Condition("cool", "red x 0.75, blue x 1.2", _cast(0.75, 1, 1.2)),
    Condition("grey", "no colour", _levels(_grey)),
    Condition("blurred", "Gaussian, sigma 1/128 of the longer side", _blurred(1 / 128)),
    Condition("noisy", "Gaussian noise, standard deviation 25 levels", _noisy(25)),
    Condition("JPEG 12", "compressed again at quality 12", _compressed(12)),
    Condition("quarter turn", "turned by 90 degrees", lambda image, truth, rng: (np.rot90(image), np.rot90(truth))),
)
