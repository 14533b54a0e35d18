"""The frozen encoder's features of every training image, computed once: the stage then trains the decoder alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from isicrt.engine.card import ModelCard
from isicrt.trainer.cache import ResizedPairs, Rows
from isicrt.trainer.models import SegmentationModel, normalise
from isicrt.trainer.models.encoder import Features
from isicrt.trainer.still_batches import fits_on_device

MAX_BYTES = 6 * 2**30
"""Of memory for features; a data set that needs more trains its frozen stage the ordinary way."""


class FrozenFeatures:
    """Features and masks of resized pairs, as float16, on the GPU where they fit and else in memory.

    Right only while the encoder is frozen (its batch norms too) and nothing is augmented online.

    Args:
        model: whose encoder is frozen.
        resized: N pairs at the network's input size.
        card: says how images are normalised.
        device: of the model.
        batch_size: of the pass through the encoder.
    """

    @torch.no_grad()
    def __init__(
        self, model: SegmentationModel, resized: ResizedPairs, card: ModelCard, *, device: str, batch_size: int = 32
    ) -> None:
        self._device = device
        self._masks: np.ndarray | Rows | Tensor = resized.masks
        count = len(resized.images)
        parts: list[Tensor] = []
        kept = device if fits_on_device(self.bytes_of(count, resized.images.shape[1]), device) else "cpu"
        for start in range(0, count, batch_size):
            images = torch.from_numpy(np.array(resized.images[start : start + batch_size])).to(device)
            features = model.encode(normalise(images, card.mean, card.std))
            if not parts:
                parts = [
                    torch.empty(
                        (count, *f.shape[1:]), dtype=torch.float16, device=kept, memory_format=torch.channels_last
                    )
                    for f in features
                ]
            for part, feature in zip(parts, features, strict=True):
                part[start : start + len(images)] = feature.to(kept)
        self._parts = parts
        if kept != "cpu":
            self._masks = torch.from_numpy(np.array(resized.masks)).to(kept)

    @staticmethod
    def fit(count: int, size: int) -> bool:
        """Whether features of `count` images of `size` px stay under `MAX_BYTES`."""
        return FrozenFeatures.bytes_of(count, size) <= MAX_BYTES

    @staticmethod
    def bytes_of(count: int, size: int) -> float:
        """Bytes of the features of `count` images of `size` px with 1,280 top channels."""
        values = size * size * (16 / 4 + 24 / 16 + 32 / 64 + 96 / 256 + 1280 / 1024)
        return count * values * 2

    def batches(self, batch_size: int, seed: int) -> FeatureBatches:
        """One shuffled epoch."""
        return FeatureBatches(self._parts, self._masks, min(batch_size, len(self._masks)), seed, self._device)


class FeatureBatches:
    """The shuffled batches of one epoch; the last incomplete one is dropped, as in `TrainingBatches`.

    Iterating gives ``(features, masks)``: `Features` in float32, and float32 N x 1 x size x size, 0 or 1 or, where the
    masks are soft, between.
    """

    def __init__(
        self, parts: list[Tensor], masks: np.ndarray | Rows | Tensor, batch_size: int, seed: int, device: str
    ) -> None:
        self._parts, self._masks, self._size, self._device = parts, masks, batch_size, device
        self.order = np.random.default_rng(seed).permutation(len(masks))

    def __len__(self) -> int:
        return len(self.order) // self._size

    def __iter__(self) -> Iterator[tuple[Features, Tensor]]:
        if isinstance(self._masks, Tensor):
            yield from self._on_gpu(self._masks)
            return
        for start in range(0, len(self) * self._size, self._size):
            chosen = self.order[start : start + self._size]
            features = Features(*(part[torch.from_numpy(chosen)].to(self._device).float() for part in self._parts))
            masks = torch.from_numpy(self._masks[np.sort(chosen)][np.argsort(np.argsort(chosen))])
            yield features, masks[:, None].to(self._device).float() / 255

    def _on_gpu(self, masks: Tensor) -> Iterator[tuple[Features, Tensor]]:
        """The same where all of it is there; an epoch copies the order of the pairs and nothing else."""
        order = torch.from_numpy(self.order).to(masks.device)
        for start in range(0, len(self) * self._size, self._size):
            chosen = order[start : start + self._size]
            parts = (part[chosen].float().contiguous(memory_format=torch.channels_last) for part in self._parts)
            yield Features(*parts), masks[chosen][:, None].float() / 255
