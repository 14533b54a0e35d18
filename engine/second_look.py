"""A second look at the images that a network is in doubt about: the mean over turned views, of those images alone.

A dermoscopy image may be turned as one likes, and the mean over several views of it is steadier than any of them
(test-time augmentation). It costs as many calls as there are views, and most of what it brings it brings to the few
images that the network is in doubt about. So these alone are looked at again (docs/speed-accuracy.md).
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from isicrt.engine.card import ModelCard
from isicrt.engine.geometry import UInt8Array, cutoff

VIEWS = 4
"""Of an image that is looked at again: as it is, and turned by 90, 180 and 270 degrees."""


def confidence(probability: UInt8Array, threshold: float) -> float:
    """About the Dice coefficient that a mask is expected to have before it is cleaned, if each pixel is as likely to be
    lesion as the network says: the expected overlap over the expected sizes.

    Args:
        probability: uint8, h x w, in 255ths.
        threshold: in (0, 1); of the mask.

    Returns:
        2 S / (N + T) with the sum S of the probabilities inside the mask, its number of pixels N, and the sum T of all
        probabilities, as shares of 1. 0 where the mask is empty.
    """
    _, inside = cv2.threshold(probability, cutoff(threshold) - 1, 0, cv2.THRESH_TOZERO)
    whole = cv2.countNonZero(inside) + cv2.sumElems(probability)[0] / 255
    return float(2 * cv2.sumElems(inside)[0] / 255 / whole) if whole else 0.0


def turned(image: UInt8Array) -> UInt8Array:
    """The further views of a square image: uint8, (`VIEWS` - 1) x H x W x 3."""
    return np.stack([np.rot90(image, quarters) for quarters in range(1, VIEWS)])


def mean_of(first: UInt8Array, further: UInt8Array) -> UInt8Array:
    """The mean of an image's probabilities and those of the views of `turned`, turned back and rounded.

    Args:
        first: uint8, h x w.
        further: uint8, (`VIEWS` - 1) x h x w.
    """
    back = [np.rot90(view, -quarters) for quarters, view in enumerate(further, start=1)]
    total = np.sum([first, *back], axis=0, dtype=np.uint16)
    return np.asarray((total + VIEWS // 2) // VIEWS, dtype=np.uint8)


def looking_again(
    call: Callable[[UInt8Array], UInt8Array], card: ModelCard, at_once: int | None = None
) -> Callable[[UInt8Array], UInt8Array]:
    """A call of the network that looks again where it is in doubt; the same call for a model that never does.

    What an image gets does not depend on the others of its batch.

    Args:
        call: uint8 N x H x W x 3 to uint8 N x H x W.
        card: of the model.
        at_once: images that a call takes at most; None for any number. Views go in calls of no more than that, or than
            there were images.
    """
    if not card.second_look:
        return call

    def look(images: UInt8Array) -> UInt8Array:
        found = call(images)
        doubtful = [n for n, seen in enumerate(found) if confidence(seen, card.threshold) < card.second_look]
        if not doubtful:
            return found
        views = np.concatenate([turned(images[n]) for n in doubtful])
        step = at_once or len(images)
        further = np.concatenate([call(views[n : n + step]) for n in range(0, len(views), step)])
        found = np.array(found)  # a runtime's may be read-only
        for place, n in enumerate(doubtful):
            found[n] = mean_of(found[n], further[place * (VIEWS - 1) : (place + 1) * (VIEWS - 1)])
        return found

    return look
