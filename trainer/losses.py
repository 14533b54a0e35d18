"""Losses on logits, with the sigmoid inside, averaged over images.

The report dropped the IoU loss because it turned negative. It had fed raw logits to it: a sum of logits can be
negative, so the ratio is unbounded. On probabilities the soft IoU and the soft Dice loss lie in [0, 1], and so does
any mix of them; binary cross entropy is positive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn import functional as F

from isicrt.engine.errors import SettingsError

Loss = Callable[[Tensor, Tensor], Tensor]

SMOOTH = 1.0
"""Pixels added to both sides of the ratios, so that an empty mask has a loss and a gradient."""


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy with logits.

    Args:
        logits: float N x 1 x H x W, any range.
        target: float, the same shape, in [0, 1].

    Returns:
        float scalar >= 0, mean over pixels.
    """
    return F.binary_cross_entropy_with_logits(logits, target)


def _intersection_and_sums(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Per image: the intersection in its L1 form, which is right for soft targets too (Wang et al. 2023,
    arXiv:2303.16296), and |p| + |y|."""
    probability, target = logits.sigmoid().flatten(1), target.flatten(1)
    sums = probability.sum(1) + target.sum(1)
    return (sums - (probability - target).abs().sum(1)) / 2, sums


def iou(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Jaccard index (Rahman and Wang 2016). Arguments as in `bce`; a scalar in [0, 1]."""
    intersection, sums = _intersection_and_sums(logits, target)
    return (1 - (intersection + SMOOTH) / (sums - intersection + SMOOTH)).mean()


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice coefficient (Milletari et al. 2016, arXiv:1606.04797). Arguments as in `bce`; in [0, 1]."""
    intersection, sums = _intersection_and_sums(logits, target)
    return (1 - (2 * intersection + SMOOTH) / (sums + SMOOTH)).mean()


LOSSES: Mapping[str, Loss] = {"bce": bce, "iou": iou, "dice": dice}


def mix(weights: Mapping[str, float]) -> Loss:
    """The weighted mean of losses, e.g. ``mix({"bce": 1, "iou": 1})``. The weights are scaled to a sum of 1.

    Raises:
        SettingsError: an unknown loss, a negative weight, or no positive weight.
    """
    if unknown := sorted(set(weights) - set(LOSSES)):
        raise SettingsError(f"unknown loss {unknown[0]!r}: choose from {', '.join(LOSSES)}")
    numbers = all(isinstance(weight, (int, float)) and 0 <= weight < math.inf for weight in weights.values())
    total = sum(weights.values()) if numbers else 0
    if total <= 0:
        raise SettingsError(f"loss weights must be numbers >= 0 with a positive sum, not {dict(weights)}")
    scaled = {name: weight / total for name, weight in weights.items() if weight}

    def mixed(logits: Tensor, target: Tensor) -> Tensor:
        return sum((weight * LOSSES[name](logits, target) for name, weight in scaled.items()), logits.new_zeros(()))

    return mixed
