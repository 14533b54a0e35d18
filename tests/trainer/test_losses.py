"""Losses: literal values, the range that the report's IoU loss left, and gradients that point the right way."""

from __future__ import annotations

import pytest
import torch

from isicrt.engine.errors import SettingsError
from isicrt.trainer.losses import LOSSES, bce, dice, iou, mix

SURE = 50.0
"""A logit whose probability is 1 in float32."""


def image(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, 1, -1)


@pytest.mark.parametrize(
    ("loss", "logits", "target", "expected"),
    [
        # One pixel of smoothing: IoU (1 + 1) / (3 + 1), Dice (2 + 1) / (4 + 1).
        (iou, image(SURE, SURE, -SURE, -SURE), image(1, 0, 1, 0), 1 - 2 / 4),
        (dice, image(SURE, SURE, -SURE, -SURE), image(1, 0, 1, 0), 1 - 3 / 5),
        (iou, image(SURE, -SURE), image(1, 0), 0.0),
        (dice, image(SURE, -SURE), image(1, 0), 0.0),
        (iou, image(-SURE, -SURE), image(0, 0), 0.0),
        (bce, image(0, 0), image(1, 0), 0.6931472),
        (bce, image(SURE, -SURE), image(1, 0), 0.0),
    ],
)
def test_literal_values(loss, logits, target, expected) -> None:
    assert float(loss(logits, target)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("weights", [{"iou": 1}, {"dice": 1}, {"iou": 2, "dice": 1}])
@pytest.mark.parametrize("scale", [0.1, 1, 30])
def test_soft_ratios_and_their_mixes_lie_in_0_to_1(weights, scale) -> None:
    torch.manual_seed(0)
    loss = mix(weights)
    for shift in (-scale, 0, scale):  # the report's loss turned negative where the sum of the logits did
        logits = torch.randn(4, 1, 8, 8) * scale + shift
        for target in (torch.rand(4, 1, 8, 8).round(), torch.zeros(4, 1, 8, 8), torch.ones(4, 1, 8, 8)):
            assert 0 <= float(loss(logits, target)) <= 1


@pytest.mark.parametrize("weights", [{"bce": 1}, {"bce": 1, "iou": 1}, {"bce": 1, "iou": 1, "dice": 3}])
def test_mixes_with_cross_entropy_are_not_negative(weights) -> None:
    logits = torch.full((2, 1, 4, 4), -9.0)
    assert float(mix(weights)(logits, torch.zeros(2, 1, 4, 4))) >= 0
    assert float(mix(weights)(logits, torch.ones(2, 1, 4, 4))) > 0.5


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_raises_lesion_and_lowers_background(name) -> None:
    logits = torch.zeros(1, 1, 1, 4, requires_grad=True)
    LOSSES[name](logits, image(1, 1, 0, 0)).backward()
    assert (logits.grad[0, 0, 0, :2] < 0).all()
    assert (logits.grad[0, 0, 0, 2:] > 0).all()


@pytest.mark.parametrize("loss", [iou, dice])
def test_soft_target_is_best_met_by_itself(loss) -> None:
    target = torch.full((1, 1, 4, 4), 0.5)
    at_target = float(loss(torch.zeros(1, 1, 4, 4), target))
    assert at_target == pytest.approx(0, abs=1e-6)
    assert float(loss(torch.full((1, 1, 4, 4), SURE), target)) > 0.2


def test_losses_are_averaged_over_images_not_pooled() -> None:
    good, bad = (image(SURE, -SURE), image(1, 0)), (image(-SURE, SURE), image(1, 0))
    both = iou(torch.cat([good[0], bad[0]]), torch.cat([good[1], bad[1]]))
    assert float(both) == pytest.approx((float(iou(*good)) + float(iou(*bad))) / 2)


def test_mix_is_the_weighted_mean() -> None:
    logits, target = torch.randn(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    expected = (3 * bce(logits, target) + iou(logits, target)) / 4
    assert float(mix({"bce": 3, "iou": 1})(logits, target)) == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"focal": 1}, "unknown loss 'focal'"),
        ({"bce": -1, "iou": 2}, ">= 0"),
        ({"bce": 0}, "positive sum"),
        ({}, "sum"),
    ],
)
def test_impossible_mixes_are_refused(weights, message) -> None:
    with pytest.raises(SettingsError, match=message):
        mix(weights)
