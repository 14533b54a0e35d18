"""ISIC Task 1 scores: per image, then averaged. Equal to `isic-challenge-scoring` to the last bit.

Jaccard index and Dice coefficient as in Codella et al. 2018 (arXiv:1710.05006), section on evaluation; degenerate
cases as the official scorer decides them. This module is on the lowest floor because validation during training,
the parity gate of an export and `bench` must agree on what a score is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from isicrt.engine.errors import DataError

FOREGROUND_ABOVE = 128
"""The official scorer binarises masks and truth with ``value > 128``."""
FAILURE_JACCARD = 0.65
"""Below this the challenge of 2018 counts an image as failed: its threshold Jaccard is 0."""


@dataclass(frozen=True)
class ImageScores:
    """Scores of one image, each in [0, 1]."""

    jaccard: float
    dice: float
    threshold_jaccard: float
    accuracy: float
    sensitivity: float
    specificity: float


def score_mask(prediction: npt.NDArray[Any], truth: npt.NDArray[Any]) -> ImageScores:
    """Score one mask against its ground truth.

    Args:
        prediction: HxW, bool, or uint8 with foreground above 128.
        truth: the same shape; bool, or uint8 with foreground above 128.

    Raises:
        DataError: the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise DataError(f"a mask of {prediction.shape} cannot be scored against a truth of {truth.shape}")
    p = prediction if prediction.dtype == bool else prediction > FOREGROUND_ABOVE
    t = truth if truth.dtype == bool else truth > FOREGROUND_ABOVE
    tp = int(np.count_nonzero(p & t))
    fp = int(np.count_nonzero(p)) - tp
    fn = int(np.count_nonzero(t)) - tp
    tn = p.size - tp - fp - fn
    # An absent class cannot be missed: the official scorer gives these cases 1.
    union = tp + fp + fn
    jaccard = tp / union if union else 1.0
    return ImageScores(
        jaccard=jaccard,
        dice=2 * tp / (2 * tp + fp + fn) if union else 1.0,
        threshold_jaccard=jaccard if jaccard >= FAILURE_JACCARD else 0.0,
        accuracy=(tp + tn) / p.size,
        sensitivity=tp / (tp + fn) if tp + fn else 1.0,
        specificity=tn / (tn + fp) if tn + fp else 1.0,
    )


def summarise(scores: Sequence[ImageScores], *, resamples: int = 10_000, seed: int = 0) -> dict[str, float | int]:
    """Mean of every score over the images, with the spread of the Jaccard index.

    Returns:
        ``images``, the mean of each field of `ImageScores`, ``jaccard_median``, ``jaccard_p5`` (5th percentile),
        ``failures`` (images with a Jaccard index below 0.65), and ``jaccard_low`` / ``jaccard_high``, the 95 %
        percentile bootstrap interval of the mean (Efron 1979).

    Raises:
        DataError: there are no scores.
    """
    if not scores:
        raise DataError("there is nothing to score: no image has both a mask and a ground truth")
    names = ImageScores.__dataclass_fields__
    result: dict[str, float | int] = {"images": len(scores)}
    result |= {name: float(np.mean([getattr(s, name) for s in scores])) for name in names}
    jaccard = np.array([s.jaccard for s in scores])
    rng = np.random.default_rng(seed)
    # In blocks, so that 10,000 resamples of many images do not need gigabytes.
    means = np.concatenate(
        [jaccard[rng.integers(0, len(jaccard), (100, len(jaccard)))].mean(axis=1) for _ in range(resamples // 100)]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return result | {
        "jaccard_median": float(np.median(jaccard)),
        "jaccard_p5": float(np.quantile(jaccard, 0.05)),
        "failures": int(np.count_nonzero(jaccard < FAILURE_JACCARD)),
        "jaccard_low": float(low),
        "jaccard_high": float(high),
    }
