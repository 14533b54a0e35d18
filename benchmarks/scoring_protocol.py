"""What a scoring protocol is, and the official one. The report's own is in `isicrt.benchmarks.report_protocol`.

A protocol says how an image is read for the model, what is made of the model's probabilities, what counts as truth,
and which scores are taken. Scores of two protocols must never stand in one column.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from isicrt.engine.card import ModelCard
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.images import Decoded, decode_image, read_mask
from isicrt.engine.masks import Mask, restore_mask
from isicrt.engine.scores import ImageScores, Overlap, score_mask

NEVER_COMPARE = "Scores of the official and of the report's protocol must not be compared."


def own_size(card: ModelCard) -> str:
    """A model's input size, for people."""
    return f"{card.input_height} x {card.input_width} px"


class ScoringProtocol(Protocol):
    """From files to scores. Called by several threads at once."""

    name: str
    title: str
    """What is measured, for people."""

    def decode(self, image: Path, size: tuple[int, int]) -> Decoded:
        """The image at the model's input `size` (height, width). Raises ImageError."""
        ...

    def read_truth(self, truth: Path) -> tuple[Mask, tuple[int, int]]:
        """The true mask on the grid that is scored, and (height, width) of the file. Raises DataError."""
        ...

    def mask(self, probability: UInt8Array, native_size: tuple[int, int], card: ModelCard) -> Mask:
        """The predicted mask, on the grid that is scored, of uint8 probabilities at the model's size."""
        ...

    def score(self, prediction: Mask, truth: Mask) -> Overlap:
        """Scores of two masks on the grid that is scored."""
        ...

    def describe_input(self, card: ModelCard) -> str:
        """What the model is fed, for people."""
        ...

    def threshold(self, card: ModelCard) -> float:
        """A pixel whose probability is above it is lesion."""
        ...

    def clean_up(self, card: ModelCard) -> tuple[str, ...]:
        """What is done to the predicted mask: ``keep_largest`` or ``keep_central`` (with the card's `centre_sigma`),
        ``fill_holes``, both or neither."""
        ...


class OfficialProtocol:
    """Task 1 of the ISIC challenge: each image at its own size, truth above 128, mean over the images.

    The masks are those of `isicrt segment`, made by the same functions. See `isicrt.engine.scores`.

    Args:
        threshold: in (0, 1); None for the card's.
        clean: False leaves the mask as the threshold cut it, whatever the card says.
    """

    name = "official"
    title = "each image at its own size, truth above 128 of 255, mean over the images"

    def __init__(self, *, threshold: float | None = None, clean: bool = True) -> None:
        self._threshold = threshold
        self._clean = clean

    def decode(self, image: Path, size: tuple[int, int]) -> Decoded:
        """See `decode_image`."""
        return decode_image(image, size)

    def read_truth(self, truth: Path) -> tuple[Mask, tuple[int, int]]:
        """See `read_mask`."""
        mask = read_mask(truth)
        return mask, (mask.shape[0], mask.shape[1])

    def mask(self, probability: UInt8Array, native_size: tuple[int, int], card: ModelCard) -> Mask:
        """See `restore_mask`."""
        rules = card.clean_up if self._clean else {"keep_largest": False, "fill_holes": False}
        return restore_mask(probability, native_size, threshold=self.threshold(card), **rules)

    def score(self, prediction: Mask, truth: Mask) -> ImageScores:
        """See `score_mask`."""
        return score_mask(prediction, truth)

    def describe_input(self, card: ModelCard) -> str:
        """See `own_size`."""
        return own_size(card)

    def threshold(self, card: ModelCard) -> float:
        """The one that was given, else the card's."""
        return card.threshold if self._threshold is None else self._threshold

    def clean_up(self, card: ModelCard) -> tuple[str, ...]:
        """What the card asks for, unless it is switched off."""
        if not self._clean:
            return ()
        keep = "keep_central" if card.centre_sigma else "keep_largest"
        return (keep,) * card.keep_largest + ("fill_holes",) * card.fill_holes
