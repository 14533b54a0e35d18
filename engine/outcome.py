"""How one image ended, and how a run did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from isicrt.engine.images import FileStamp
from isicrt.engine.left_out import LeftOut
from isicrt.engine.sources import Job

FAILURES_NAMED = 100
"""At most, in a `RunSummary`: there may be a million."""

STAGES = ("decode", "infer", "restore", "write")

KEPT = "changed since isicrt wrote it"
KEPT_OUTDATED = "changed since isicrt wrote it; its model, its settings or its image are others now"
KEPT_DRAWN = "not made by isicrt, which had failed on its image"


@dataclass(frozen=True)
class Outcome:
    """How one image ended: a mask, a failure, or skipped because its mask is there already."""

    job: Job
    error: str | None
    """None where the mask was written or is there; else what went wrong, with the file."""
    native_size: tuple[int, int] | None
    """(height, width) of image and mask in pixels; None where the image could not be decoded."""
    lesion_fraction: float | None
    """Share of the pixels that the mask calls lesion, in [0, 1]; None where there is no mask."""
    skipped: bool = False
    """Whether the mask was there already: an earlier run wrote it."""
    damaged: FileStamp | None = None
    """Of an image that failed because of its bytes: it will fail again while the file is the same."""
    untried: bool = False
    """Of such a failure: whether an earlier run found it, and this one took its word for it."""
    kept: str | None = None
    """Of one that was skipped although its mask is not the one that isicrt wrote: `KEPT`, `KEPT_OUTDATED` or
    `KEPT_DRAWN`."""
    confidence: float | None = None
    """About the Dice coefficient that the mask may be expected to have before it is cleaned, by the network's own
    probabilities (`isicrt.engine.second_look.confidence`), in [0, 1]. None where there is no mask, or where the GPU,
    somebody else or an older isicrt made it."""
    note: str | None = None
    """What else is to be known of an image that has a mask: that its JPEG looks damaged, where no GPU was
    asked to decode it, that its EXIF orientation turns it, that there are more. See `isicrt.engine.jpeg_notes`."""

    @property
    def found_nothing(self) -> bool:
        """Whether there is a mask of isicrt's without any lesion."""
        return self.error is None and self.kept is None and self.lesion_fraction == 0


@dataclass(frozen=True)
class DecodeCounts:
    """Where the images of a run over the GPU's way were decoded; those that could not be decoded are not among them."""

    gpu: int = 0
    cpu: int = 0
    refused: int = 0
    """Of those on the CPU: JPEGs that the GPU was given and did not decode, each or a whole batch for want of memory.
    The others were for the CPU from the start: no JPEG, too large, too slow, or its share."""

    @property
    def falls_back(self) -> bool:
        """Whether the GPU refused so many that a run's speed is not the GPU's: 1 %, and more than a few or all."""
        given = self.gpu + self.refused
        return self.refused > given / 100 and (self.refused > 3 or not self.gpu)

    def __add__(self, other: DecodeCounts) -> DecodeCounts:
        return DecodeCounts(self.gpu + other.gpu, self.cpu + other.cpu, self.refused + other.refused)

    def __sub__(self, other: DecodeCounts) -> DecodeCounts:
        return DecodeCounts(self.gpu - other.gpu, self.cpu - other.cpu, self.refused - other.refused)


@dataclass(frozen=True)
class RunSummary:
    """What a run did."""

    images: int
    """Masks and failures together."""
    failed: int
    seconds: float
    """Wall clock, from the first image read to the last mask written."""
    megapixels: float
    """Native pixels of the masks that were written, in millions."""
    stage_seconds: Mapping[str, float]
    """Busy seconds of each of `STAGES`, summed over its threads. Overlays count as written."""
    skipped: int = 0
    """Images whose mask an earlier run wrote; they are not in `images`."""
    decoded: DecodeCounts | None = None
    """Of a run that decoded on the GPU; None where the CPU decoded everything."""
    without_lesion: int = 0
    """Masks in which isicrt found no lesion, those among them that an earlier run wrote."""
    failures: tuple[tuple[Path, str], ...] = ()
    """The image and the reason of the first `FAILURES_NAMED` that failed."""
    left_out: LeftOut = field(default_factory=LeftOut)
    """What the search for the images came upon and did not take; ``left_out.lines()`` says it for people. Empty where
    somebody else searched."""

    @property
    def images_per_second(self) -> float:
        """Masks written a second; failures do not count."""
        return (self.images - self.failed) / self.seconds if self.seconds else 0.0

    @property
    def megapixels_per_second(self) -> float:
        """Native megapixels of masks written a second."""
        return self.megapixels / self.seconds if self.seconds else 0.0
