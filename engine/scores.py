"""ISIC Task 1 scores: per image, then averaged. Equal to `isic-challenge-scoring` to the last bit.

Jaccard index and Dice coefficient as in Codella et al. 2018 (arXiv:1710.05006), section on evaluation; degenerate
cases as the official scorer decides them. This module is on the lowest floor because validation during training,
the parity gate of an export and `bench` must agree on what a score is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from isicrt.engine.errors import DataError

FOREGROUND_ABOVE = 128
"""The official scorer binarises masks and truth with ``value > 128``."""
FAILURE_JACCARD = 0.65
"""Below this the challenge of 2018 counts an image as failed: its threshold Jaccard is 0."""
FEWEST_COMPARED = 10
"""A bootstrap interval of the differences of fewer images is too narrow, and of one image it is a point."""


@dataclass(frozen=True)
class Overlap:
    """How far a mask and its truth overlap, each score in [0, 1]. All that the report measured."""

    jaccard: float
    dice: float


@dataclass(frozen=True)
class ImageScores(Overlap):
    """Scores of one image, each in [0, 1]."""

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


def summarise(scores: Sequence[Overlap]) -> dict[str, float | int]:
    """Mean of every score over the images, with the spread of the Jaccard index.

    Args:
        scores: `ImageScores`, or another kind of `Overlap`, but all of one kind.

    Returns:
        ``images``, the mean of each field of the scores, ``jaccard_median``, ``jaccard_p5`` (5th percentile),
        ``failures`` (images with a Jaccard index below 0.65), and ``jaccard_low`` / ``jaccard_high``, see
        `bootstrap_interval`.

    Raises:
        DataError: there are no scores.
    """
    if not scores:
        raise DataError("there is nothing to score: no image has both a mask and a ground truth")
    result: dict[str, float | int] = {"images": len(scores)}
    result |= {f.name: float(np.mean([getattr(s, f.name) for s in scores])) for f in fields(scores[0])}
    jaccard = np.array([s.jaccard for s in scores])
    low, high = bootstrap_interval(jaccard)
    return result | {
        "jaccard_median": float(np.median(jaccard)),
        "jaccard_p5": float(np.quantile(jaccard, 0.05)),
        "failures": int(np.count_nonzero(jaccard < FAILURE_JACCARD)),
        "jaccard_low": low,
        "jaccard_high": high,
    }


def without_point_interval(summary: Mapping[str, float | int]) -> dict[str, float | int | None]:
    """A result of `summarise` as it is written down: one image has no interval, and that of the bootstrap would be a
    point."""
    none = dict.fromkeys(("jaccard_low", "jaccard_high")) if summary["images"] < 2 else {}
    return {**summary, **none}


def difference_interval(differences: npt.NDArray[np.float64]) -> tuple[float, float] | tuple[None, None]:
    """The `bootstrap_interval` of differences image by image; of fewer than `FEWEST_COMPARED` images there is none."""
    return bootstrap_interval(differences) if len(differences) >= FEWEST_COMPARED else (None, None)


def bootstrap_interval(
    values: npt.NDArray[np.float64], *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of a mean (Efron 1979).

    Of the differences of two models image by image it is the paired bootstrap: both are drawn on the same images.

    Args:
        values: at least one.
        resamples: at least one.
        seed: the same values and seed give the same interval.
    """
    rng = np.random.default_rng(seed)
    # In blocks, so that 10,000 resamples of many images do not need gigabytes.
    blocks = [min(100, resamples - done) for done in range(0, resamples, 100)]
    means = np.concatenate([values[rng.integers(0, len(values), (n, len(values)))].mean(axis=1) for n in blocks])
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
