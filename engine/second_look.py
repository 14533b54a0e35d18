"""A second look at the images that a network is in doubt about: the mean over turned views, of those images alone.

A dermoscopy image may be turned as one likes, and the mean over several views of it is steadier than any of them
(test-time augmentation). It costs as many calls as there are views, and most of what it brings it brings to the few
images that the network is in doubt about. So these alone are looked at again (docs/speed-accuracy.md).

A model's card may ask for one more view, which zooms in on what was found. It is made of the network's own pixels: it
is the lesion's scale that makes the difference, and not detail (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from isicrt.engine.card import ModelCard
from isicrt.engine.geometry import UInt8Array, cutoff
from isicrt.engine.masks import restore_window

VIEWS = 4
"""Of an image that is looked at again: as it is, and turned by 90, 180 and 270 degrees."""
LEAST_SQUARE, MOST_SQUARE = 1 / 8, 0.95
"""Of an image's side: a smaller square would show blocks of pixels, and a larger one nothing new."""


class Square(NamedTuple):
    """A part of a square image, in its pixels."""

    top: int
    left: int
    side: int

    @property
    def place(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return slice(self.top, self.top + self.side), slice(self.left, self.left + self.side)


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


def square_around(probability: UInt8Array, card: ModelCard) -> Square | None:
    """What the zoom of a card's second look shows: a square around the cleaned mask, `ModelCard.second_look_zoom` times
    as large as its longer side and moved inside the image.

    Args:
        probability: uint8, N x N.
        card: of the model.

    Returns:
        None where the card asks for no zoom, nothing was found, or the square would be nearly all of the image.
    """
    if not card.second_look_zoom:
        return None
    size = len(probability)
    found = restore_window(probability, (size, size), threshold=card.threshold, **card.clean_up).whole()
    extents = [np.flatnonzero(found.any(axis=1 - axis)) for axis in (0, 1)]
    if not all(map(len, extents)):
        return None
    bounds = [(int(places[0]), int(places[-1]) + 1) for places in extents]
    side = max(round(max(end - start for start, end in bounds) * card.second_look_zoom), round(LEAST_SQUARE * size))
    if side > MOST_SQUARE * size:
        return None
    top, left = (min(max((start + end - side) // 2, 0), size - side) for start, end in bounds)
    return Square(top, left, side)


def zoomed(image: UInt8Array, square: Square) -> UInt8Array:
    """The square of an image at the image's size: uint8, N x N x 3."""
    enlarged = cv2.resize(image[square.place], image.shape[:2], interpolation=cv2.INTER_LINEAR)
    return np.asarray(enlarged, dtype=np.uint8)


def with_zoom(probability: UInt8Array, view: UInt8Array, square: Square) -> UInt8Array:
    """Probabilities of an image whose square has the mean of them and of those of `zoomed`, made smaller again."""
    inside = cv2.resize(view, (square.side, square.side), interpolation=cv2.INTER_AREA)
    mean = np.array(probability)
    mean[square.place] = (mean[square.place].astype(np.uint16) + inside + 1) // 2
    return mean


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
        squares = {n: square_around(found[n], card) for n in doubtful}
        views = np.concatenate([_further_views(images[n], squares[n]) for n in doubtful])
        step = at_once or len(images)
        further = np.concatenate([call(views[n : n + step]) for n in range(0, len(views), step)])
        found = np.array(found)  # a runtime's may be read-only
        for n in doubtful:
            turns, further = further[: VIEWS - 1], further[VIEWS - 1 :]
            found[n] = mean_of(found[n], turns)
            if (square := squares[n]) is not None:
                found[n], further = with_zoom(found[n], further[0], square), further[1:]
        return found

    return look


def _further_views(image: UInt8Array, square: Square | None) -> UInt8Array:
    turns = turned(image)
    return turns if square is None else np.concatenate([turns, zoomed(image, square)[None]])
