"""The report's offline augmentation: as many augmented copies as originals, made once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from isicrt.engine.errors import TrainingError
from isicrt.trainer.dataset import Pair
from isicrt.trainer.pipelines import TrainingBatches, epoch_seed
from isicrt.trainer.recipe import Augmentation


def augment_offline(
    pairs: Sequence[Pair], out: Path, *, copies: int, size: int, augmentation: Augmentation, seed: int
) -> list[Pair]:
    """Write augmented copies of every pair as PNG at the network's size; those that are there already are kept.

    Args:
        pairs: the originals.
        out: a folder that gets ``images/`` and ``masks/``.
        copies: of each pair; copy k has random numbers of its own.
        size: pixels; the side of the copies.
        augmentation: as for online augmentation.
        seed: of the run: the same seed makes the same copies.

    Returns:
        The copies, with ids ``ID_copyK``.

    Raises:
        DataError: a file cannot be decoded.
        TrainingError: the copies cannot be written, such as on a full disk; those that were stay for the next try.
    """
    images, masks = out / "images", out / "masks"
    made = []
    try:
        images.mkdir(parents=True, exist_ok=True)
        masks.mkdir(exist_ok=True)
        for copy in range(copies):
            names = [f"{pair.id}_copy{copy}" for pair in pairs]
            wanted = [Pair(n, images / f"{n}.png", masks / f"{n}_Segmentation.png") for n in names]
            made += wanted
            if all(pair.mask.is_file() for pair in wanted):
                continue
            batches = TrainingBatches(
                pairs, size=size, batch_size=1, augmentation=augmentation, seed=epoch_seed(seed, 1_000_000 + copy)
            )
            for index, (image, mask) in zip(batches.order, batches, strict=True):
                target = wanted[index]
                Image.fromarray(image[0].numpy()).save(target.image)
                # The mask last: a copy whose mask is there is whole.
                partial = target.mask.with_suffix(".part")
                Image.fromarray((mask[0, 0].numpy() * 255).astype(np.uint8)).save(partial, format="PNG")
                partial.replace(target.mask)
    except OSError as error:
        raise TrainingError(f"{out}: the augmented copies could not be saved: {error}") from error
    return made
