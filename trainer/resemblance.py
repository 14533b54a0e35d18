"""Which images are worth registering with which: those with like features, and those that look alike from afar.

Registration is sure but slow; two cheap likenesses make up for each other. Features know textured lesions at any
rotation and crop; thumbnails know the smooth ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from isicrt.engine.geometry import UInt8Array
from isicrt.trainer.registration import Features, Float32Array, find_features

_DIMENSIONS, _WORDS = 32, 64  # principal components of descriptors, and clusters of them
_THUMBNAIL = 16  # pixels
_CROPS = (1.0, 0.84, 0.7, 0.59)  # of the side: magnifications by which one image may be the middle of the other
_ROWS = 500  # images at a time


@dataclass(frozen=True)
class Print:
    """What is kept of an image while candidates are sought."""

    features: Features
    thumbnails: Float32Array
    """One for each of the crops: 4 x 16 x 16 x 3, each of unit length over all its values."""


def take_print(image: UInt8Array) -> Print:
    """`image`: reduced, uint8, H x W x 3, RGB."""
    side = min(image.shape[:2])
    thumbnails = []
    for crop in _CROPS:
        size = round(side * crop)
        top, left = ((length - size) // 2 for length in image.shape[:2])
        square = cv2.resize(
            image[top : top + size, left : left + size], (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA
        )
        thumbnails.append(_normalised(square))
    return Print(find_features(image), np.stack(thumbnails))


def _normalised(square: npt.NDArray[Any]) -> Float32Array:
    """Pattern without the camera's colours and light; the middle counts more than the corners."""
    lab = cv2.cvtColor(square.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab -= lab.mean((0, 1))
    lab[..., 0] /= lab[..., 0].std() + 1
    lab[..., 1:] *= 0.7 / (np.sqrt((lab[..., 1:] ** 2).mean()) + 1)
    window = np.sqrt(np.hanning(_THUMBNAIL + 2)[1:-1])
    lab *= np.sqrt(window[:, None, None] * window[None, :, None])
    lab -= lab.mean((0, 1))
    return np.asarray(lab / max(float(np.linalg.norm(lab)), 1e-9), np.float32)


def resembling(prints: Sequence[Print], split: int | None, count: int) -> list[tuple[int, int]]:
    """Pairs of indices in order: each image with `count` of the most alike ones.

    Args:
        prints: of all images.
        split: None for pairs of any two; else each pair has one image before `split` and one from it on.
        count: for each image before `split` (or each): three quarters by features, the others by thumbnail.
    """
    aggregated = _aggregated([image.features for image in prints])
    plain = np.stack([image.thumbnails[0].ravel() for image in prints])
    turned = np.concatenate([_turns(np.stack([image.thumbnails[n] for image in prints])) for n in range(len(_CROPS))])
    by_thumbnail = max(1, count // 4)
    last, offset = (len(prints), 0) if split is None else (split, split)
    pairs: set[tuple[int, int]] = set()
    for begin in range(0, last, _ROWS):
        rows = slice(begin, min(begin + _ROWS, last))
        afar = np.full((rows.stop - begin, len(prints) - offset), -1, np.float32)
        for turn in turned:  # the middle of either image may be the other
            np.maximum(afar, plain[rows] @ turn[offset:].T, out=afar)
            np.maximum(afar, turn[rows] @ plain[offset:].T, out=afar)
        for likeness, wanted in (
            (aggregated[rows] @ aggregated[offset:].T, count - by_thumbnail),
            (afar, by_thumbnail),
        ):
            for index, row in enumerate(likeness, begin):
                if split is None:
                    row[index] = -np.inf
                for other in np.argsort(-row, kind="stable")[: min(wanted, len(row) - (split is None))]:
                    pairs.add((min(index, int(other) + offset), max(index, int(other) + offset)))
    return sorted(pairs)


def _turns(thumbnails: Float32Array) -> Float32Array:
    """n x 16 x 16 x 3 to 4 x n x 768: at four right angles."""
    quarters = [np.rot90(thumbnails, quarter, (1, 2)).reshape(len(thumbnails), -1) for quarter in range(4)]
    return np.stack(quarters)


def _aggregated(features: Sequence[Features]) -> Float32Array:
    """One vector for each image, of unit length, alike for images with like features wherever these lie (VLAD: Jegou
    et al., "Aggregating local descriptors into a compact image representation", CVPR 2010, on principal components).
    """
    rows = np.concatenate([image.descriptors for image in features])
    if not len(rows):
        return np.zeros((len(features), 1), np.float32)
    sample = _sample(rows, 50_000)
    mean = sample.mean(0)
    _, axes = np.linalg.eigh((sample - mean).T @ (sample - mean))
    rows = _unit((rows - mean) @ axes[:, -_DIMENSIONS:])
    words = _words(_sample(rows, 20_000))
    owner = np.repeat(np.arange(len(features)), [len(image.points) for image in features])
    nearest = np.concatenate([(part @ words.T).argmax(1) for part in np.array_split(rows, len(rows) // 50_000 + 1)])
    vectors = np.zeros((len(features) * len(words), _DIMENSIONS), np.float32)
    np.add.at(vectors, owner * len(words) + nearest, rows - words[nearest])
    # The root of each word's length: hair repeats itself and would drown the lesion.
    vectors /= np.sqrt(np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9))
    whole = _unit(vectors.reshape(len(features), -1))
    return _unit(whole - whole.mean(0))


def _words(sample: Float32Array) -> Float32Array:
    """Spherical k-means with a fixed start."""
    words = _sample(sample, _WORDS)[:_WORDS].copy()
    for _ in range(10):
        nearest = (sample @ words.T).argmax(1)
        for word in range(len(words)):
            if (nearest == word).any():
                words[word] = sample[nearest == word].mean(0)
        words = _unit(words)
    return words


def _sample(rows: Float32Array, count: int) -> Float32Array:
    return rows[:: max(1, len(rows) // count)]


def _unit(rows: npt.NDArray[Any]) -> Float32Array:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-9), np.float32)
