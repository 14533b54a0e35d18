"""The batches of an epoch where nothing is done to the resized pairs: rows of arrays, on the device where they fit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from isicrt.trainer.cache import ResizedPairs
from isicrt.trainer.pipelines import FOREGROUND_ABOVE

_SHARE = 0.25
"""Of the GPU's free memory that data may take which could stay in the computer's; several runs may share a GPU."""


def fits_on_device(size: float, device: str) -> bool:
    """Whether so many bytes may be kept on the device; a CPU's memory is where they are already."""
    return device == "cuda" and size <= _SHARE * torch.cuda.mem_get_info()[0]


class StillPairs:
    """Resized pairs for epochs without augmentation at their own size.

    What `StillBatches` gives of them is to the bit what `TrainingBatches` gives without augmentation: DALI's resize to
    the same size changes nothing. On a GPU nothing but the order of the pairs is copied in an epoch.

    Args:
        resized: N pairs at the network's input size.
        device: of the network.
    """

    def __init__(self, resized: ResizedPairs, device: str) -> None:
        self.device, self.soft = device, resized.soft
        self.images, self.masks = resized.images, resized.masks
        self.kept: tuple[Tensor, Tensor] | None = None
        """Images and masks on the GPU."""
        if fits_on_device(resized.images.nbytes + resized.masks.nbytes, device):
            # A copy, because a map of a file is read-only, which torch warns of.
            self.kept = (
                torch.from_numpy(np.array(resized.images)).to(device),
                torch.from_numpy(np.array(resized.masks)).to(device),
            )

    def batches(self, batch_size: int, seed: int) -> StillBatches:
        """One shuffled epoch."""
        return StillBatches(self, min(batch_size, len(self.images)), seed)


class StillBatches:
    """The shuffled batches of one epoch, as `TrainingBatches` gives them: the last incomplete one is dropped.

    Iterating gives ``(images, masks)``: uint8 N x size x size x 3, RGB, and float32 N x 1 x size x size, 0 or 1 or,
    where the masks are soft, between.
    """

    def __init__(self, pairs: StillPairs, batch_size: int, seed: int) -> None:
        self._pairs, self.batch_size = pairs, batch_size
        self.order = np.random.default_rng(seed).permutation(len(pairs.images))

    def __len__(self) -> int:
        return len(self.order) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        pairs = self._pairs
        order = None if pairs.kept is None else torch.from_numpy(self.order).to(pairs.device)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            part = slice(start, start + self.batch_size)
            if pairs.kept is not None and order is not None:
                images, levels = (kept[order[part]] for kept in pairs.kept)
            else:
                chosen = self.order[part]
                # Indexing with an array copies, also from a map of a file.
                images = torch.from_numpy(np.asarray(pairs.images[chosen])).to(pairs.device)
                levels = torch.from_numpy(np.asarray(pairs.masks[chosen])).to(pairs.device)
            target = levels.float() / 255 if pairs.soft else (levels > FOREGROUND_ABOVE).float()
            yield images, target[:, None]
