"""Validation: ISIC scores at each image's own size, by the official protocol."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from isicrt.engine.card import ModelCard
from isicrt.engine.geometry import cutoff, resize_image, upsample_probability
from isicrt.engine.images import read_image, read_mask
from isicrt.engine.scores import score_mask, summarise
from isicrt.trainer.cache import nearest
from isicrt.trainer.dataset import Pair
from isicrt.trainer.losses import Loss
from isicrt.trainer.models import normalise


class ValidationSet:
    """Images at the model's size, kept in memory, with their masks on disk.

    Args:
        pairs: to validate on.
        card: says how the images are resized and normalised.

    Raises:
        DataError: an image or a mask cannot be decoded.
    """

    def __init__(self, pairs: Sequence[Pair], card: ModelCard) -> None:
        self._pairs = pairs
        self._card = card
        # 192 x 192 x 3 bytes an image: a hundred of them are 11 MB.
        self._images = np.stack([resize_image(read_image(p.image), card.input_size) for p in pairs])

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, loss: Loss, *, device: str = "cpu", batch_size: int = 32
    ) -> dict[str, float | int]:
        """`summarise` of the masks of a model in eval mode, and its mean ``loss`` at the model's size.

        The masks are upsampled bilinearly to the image's own size and cut at the card's threshold; they are not
        cleaned, so that what is learned is what is measured.
        """
        scores, losses = [], []
        for start in range(0, len(self._pairs), batch_size):
            images = torch.from_numpy(self._images[start : start + batch_size]).to(device)
            logits = model(normalise(images, self._card.mean, self._card.std)).float()
            truths = [read_mask(p.mask) for p in self._pairs[start : start + batch_size]]
            target = np.stack([nearest(t, self._card.input_size) for t in truths])[:, None]
            losses.append(float(loss(logits.cpu(), torch.from_numpy(target).float())) * len(truths))
            levels = (logits.sigmoid()[:, 0] * 255).round().byte().cpu().numpy()
            for level, truth in zip(levels, truths, strict=True):
                prediction = upsample_probability(level, truth.shape) >= cutoff(self._card.threshold)
                scores.append(score_mask(prediction, truth))
        return {"loss": sum(losses) / len(self._pairs)} | summarise(scores)
