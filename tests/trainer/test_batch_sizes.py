"""No pass through the network is larger than the recipe's batches: a GPU may have no room for more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from isicrt.trainer.loop import train
from isicrt.trainer.models.encoder import MobileNetV2Encoder
from isicrt.trainer.recipe import Stage
from tests.trainer.test_loop import settings, tiny


def test_neither_validation_nor_frozen_features_take_more_images_than_a_batch(
    rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, forward = list[int](), MobileNetV2Encoder.forward

    def counted(self: MobileNetV2Encoder, images: torch.Tensor) -> Any:
        seen.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(MobileNetV2Encoder, "forward", counted)
    frozen = tiny(stages=(Stage("frozen", 1, 2e-3),), augmentation=None, batch_size=1, input_size=32, ema_decay=0)
    train(settings(rendered_pairs, tmp_path / "run", recipe=frozen))
    # Its features once, and the validation.
    assert seen == [1] * 12
