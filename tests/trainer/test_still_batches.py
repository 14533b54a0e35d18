"""Batches that are rows of arrays: to the bit those that DALI gives where it has nothing to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from isicrt.trainer.cache import ResizedPairs
from isicrt.trainer.dataset import Pair
from isicrt.trainer.pipelines import TrainingBatches
from isicrt.trainer.still_batches import StillPairs


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("batch_size", [3, 16])
def test_they_are_those_of_the_pipeline(soft: bool, batch_size: int) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10, 64, 64, 3), dtype=np.uint8)
    masks = (
        rng.integers(0, 256, (10, 64, 64), dtype=np.uint8) if soft else np.uint8(255) * (rng.random((10, 64, 64)) > 0.5)
    )
    resized = ResizedPairs(images, masks, soft=soft)
    pairs = [Pair(str(n), Path("image"), Path("mask")) for n in range(10)]
    ours = StillPairs(resized, "cpu").batches(batch_size, 5)
    theirs = TrainingBatches(pairs, size=64, batch_size=batch_size, augmentation=None, seed=5, resized=resized)
    assert len(ours) == len(theirs) == 10 // min(batch_size, 10)
    for (image, mask), (image_2, mask_2) in zip(ours, theirs, strict=True):
        assert torch.equal(image, image_2)
        assert torch.equal(mask, mask_2)
        assert (image.dtype, mask.dtype, mask.shape[1:]) == (torch.uint8, torch.float32, (1, 64, 64))
