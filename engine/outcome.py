"""How one image ended, and how a run did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from isicrt.engine.images import FileStamp
from isicrt.engine.sources import Job

STAGES = ("decode", "infer", "restore", "write")


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
    """Whether an earlier run wrote the mask."""
    damaged: FileStamp | None = None
    """Of an image that failed because of its bytes: it will fail again while the file is the same."""


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

    @property
    def images_per_second(self) -> float:
        """Masks written a second; failures do not count."""
        return (self.images - self.failed) / self.seconds if self.seconds else 0.0

    @property
    def megapixels_per_second(self) -> float:
        """Native megapixels of masks written a second."""
        return self.megapixels / self.seconds if self.seconds else 0.0
