"""Validation: ISIC scores at each image's own size, by the official protocol."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from isicrt.engine.card import ModelCard
from isicrt.engine.geometry import UInt8Array, cutoff, resize_image, upsample_probability
from isicrt.engine.images import read_image, read_mask
from isicrt.engine.scores import ImageScores, score_mask, summarise
from isicrt.trainer.cache import nearest
from isicrt.trainer.dataset import Pair
from isicrt.trainer.losses import Loss
from isicrt.trainer.models import normalise

MAX_BYTES = 512 * 2**20
"""Of memory for masks, a bit a pixel: 2,700 of a megapixel and a half; those beyond are read in every epoch."""


class ValidationSet:
    """Images at the model's size, kept in memory, and their masks: packed in memory where they are small, else on disk.

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
        self._packed: dict[int, tuple[tuple[int, ...], UInt8Array]] = {}
        self._bytes = 0

    def _truth(self, index: int) -> npt.NDArray[np.bool_]:
        """A pair's mask at its own size."""
        if index in self._packed:
            shape, bits = self._packed[index]
            return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).astype(bool)
        truth = read_mask(self._pairs[index].mask)
        if self._bytes + truth.size // 8 <= MAX_BYTES:
            self._packed[index] = truth.shape, np.packbits(truth)
            self._bytes += truth.size // 8
        return truth

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, loss: Loss, *, device: str = "cpu", batch_size: int = 32
    ) -> dict[str, float | int]:
        """`summarise` of the masks of a model in eval mode, and its mean ``loss`` at the model's size.

        The masks are upsampled bilinearly to the image's own size and cut at the card's threshold; they are not
        cleaned, so that what is learned is what is measured.
        """

        def score(index: int, level: UInt8Array) -> tuple[ImageScores, UInt8Array]:
            truth = self._truth(index)
            prediction = upsample_probability(level, truth.shape) >= cutoff(self._card.threshold)
            return score_mask(prediction, truth), nearest(truth, self._card.input_size)

        scores, losses = [], []
        with ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="isicrt-validate") as pool:
            for start in range(0, len(self._pairs), batch_size):
                images = torch.from_numpy(self._images[start : start + batch_size]).to(device)
                logits = model(normalise(images, self._card.mean, self._card.std)).float()
                levels = (logits.sigmoid()[:, 0] * 255).round().byte().cpu().numpy()
                found = list(pool.map(score, range(start, start + len(levels)), levels))
                scores += [of_image for of_image, _ in found]
                target = torch.from_numpy(np.stack([truth for _, truth in found])[:, None]).float()
                losses.append(float(loss(logits.cpu(), target)) * len(found))
        return {"loss": sum(losses) / len(self._pairs)} | summarise(scores)
