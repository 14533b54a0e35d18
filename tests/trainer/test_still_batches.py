"""Batches that are rows of arrays: to the bit those that DALI gives where it has nothing to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from isicrt.trainer.cache import ResizedPairs
from isicrt.trainer.dataset import Pair
from isicrt.trainer.loop import Listener, RunSettings, train
from isicrt.trainer.pipelines import TrainingBatches
from isicrt.trainer.recipe import Recipe, Stage
from isicrt.trainer.run_folder import SAMPLES
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


@pytest.mark.parametrize("stages", [(64,), (32, 64)], ids=["large", "small_and_large"])
def test_a_stage_above_the_recipes_size_sees_no_enlarged_images(
    rendered_pairs: Path, tmp_path: Path, stages: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the cache and without, the last stage learns from the same pixels but for rounding; each stage has a cache
    of its size, so that a frozen one need not compute the encoder twice."""
    pictures = []
    sizes: list[int] = []

    def noted(resized: Any, device: str) -> StillPairs:
        sizes.append(resized.images.shape[1])
        return StillPairs(resized, device)

    monkeypatch.setattr("isicrt.trainer.loop.StillPairs", noted)
    for cache in (True, False):
        out = tmp_path / str(cache)
        recipe = Recipe(
            name="tiny",
            architecture="unet",
            stages=tuple(Stage(f"at{size}", 1, 1e-3, 1e-4, input_size=size) for size in stages),
            decoder_channels=(8, 8, 8, 8),
            input_size=32,
            batch_size=4,
            augmentation=None,
            folds=3,
        )
        settings = RunSettings(recipe, (rendered_pairs,), out, cache=cache, pretrained=None)

        class Last(Listener):
            """Draws the samples of the last stage."""

            def finished(self, row: Any, out: Path = out) -> None:
                if row["epoch"] < len(stages):
                    (out / SAMPLES).unlink()

        train(settings, Last())
        with Image.open(out / SAMPLES) as picture:
            pictures.append(np.asarray(picture.convert("RGB")).astype(int)[:64])  # the row without outlines
    assert sizes == list(stages)
    cached, decoded = pictures
    assert cached.shape == decoded.shape == (64, 4 * 64, 3)
    assert np.abs(cached - decoded).mean() < 1
