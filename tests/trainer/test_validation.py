"""Validation is the official protocol: native size, threshold, per image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from isicrt.engine.card import ModelCard
from isicrt.engine.geometry import resize_image, upsample_probability
from isicrt.engine.scores import score_mask
from isicrt.trainer.dataset import find_pairs
from isicrt.trainer.losses import iou
from isicrt.trainer.validation import ValidationSet

CARD = ModelCard(name="m", architecture="unet", input_height=64, input_width=64, mean=(0, 0, 0), std=(1, 1, 1))


class Darkness(nn.Module):
    """Logit from the green channel: 10 * (0.5 - green)."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 10 * (0.5 - images[:, 1:2])


def test_scores_are_those_of_masks_made_by_hand(rendered_pairs: Path) -> None:
    pairs = find_pairs(rendered_pairs)[:5]
    result = ValidationSet(pairs, CARD).evaluate(Darkness(), iou, batch_size=2)
    expected = []
    for pair in pairs:
        small = resize_image(np.asarray(Image.open(pair.image).convert("RGB")), (64, 64))
        probability = 1 / (1 + np.exp(-10 * (0.5 - small[..., 1] / 255)))
        truth = np.asarray(Image.open(pair.mask))
        native = upsample_probability(np.round(probability * 255).astype(np.uint8), truth.shape)
        expected.append(score_mask(native >= 128, truth).jaccard)
    assert result["jaccard"] == pytest.approx(np.mean(expected), abs=2e-3)
    assert result["images"] == 5
    assert 0 < result["loss"] < 1
