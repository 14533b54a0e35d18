"""Do two models give the same masks? Image by image, at the images' own size, after each model's own clean-up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from isicrt.engine.errors import DataError, ImageError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.images import Decoded, decode_image, read_mask
from isicrt.engine.in_flight import infer_batches
from isicrt.engine.masks import Mask, restore_mask
from isicrt.engine.runtime import Runtime
from isicrt.engine.scores import score_mask

Masker = Callable[[Sequence[Path]], Iterable["Mask | ImageError"]]
"""From image files to masks, bool H x W, in their order; an image that cannot be read gives its error. They are best
made while they are looked at: of a large batch of photographs, all of them have gigabytes."""


@dataclass(frozen=True)
class ImageAgreement:
    """Two masks of one image."""

    name: str
    jaccard: float
    """Of the one mask with the other, 0..1; 1 where both are empty."""
    pixels_differing: int
    pixels: int
    score_reference: float | None = None
    """Jaccard index with the ground truth; None without one."""
    score_candidate: float | None = None


@dataclass(frozen=True)
class Limits:
    """What passes."""

    min_jaccard: float = 0.995
    """Smallest mean Jaccard index of the two masks."""
    max_change: float = 0.001
    """Mean score with the ground truth: the change, either way, must stay below this."""


@dataclass(frozen=True)
class Agreement:
    """Of two models on the same images."""

    images: tuple[ImageAgreement, ...]
    """At least one."""
    left_out: tuple[str, ...] = ()
    """Images and truths that could not be read, and why."""

    @property
    def jaccard_mean(self) -> float:
        """Mean of the images' Jaccard indices."""
        return float(np.mean([image.jaccard for image in self.images]))

    @property
    def jaccard_min(self) -> float:
        """Of the worst image."""
        return min(image.jaccard for image in self.images)

    @property
    def differing_share(self) -> float:
        """Share of the pixels whose mask differs, 0..1; mean over the images."""
        return float(np.mean([image.pixels_differing / image.pixels for image in self.images]))

    @property
    def identical(self) -> int:
        """Images whose two masks are the same to the last pixel."""
        return sum(not image.pixels_differing for image in self.images)

    @property
    def scores(self) -> tuple[float, float] | None:
        """Mean Jaccard index with the ground truth, of reference and candidate; None without any."""
        pairs = [
            (image.score_reference, image.score_candidate)
            for image in self.images
            if image.score_reference is not None and image.score_candidate is not None
        ]
        if not pairs:
            return None
        reference, candidate = np.mean(pairs, axis=0)
        return float(reference), float(candidate)

    @property
    def scored(self) -> int:
        """Images with ground truth."""
        return sum(image.score_reference is not None for image in self.images)

    @property
    def change(self) -> float | None:
        """Score of the candidate minus that of the reference."""
        return None if self.scores is None else self.scores[1] - self.scores[0]

    def worst(self, count: int) -> list[ImageAgreement]:
        """Images with the lowest Jaccard index, the worst first; none whose masks are the same."""
        differing = [image for image in self.images if image.pixels_differing]
        return sorted(differing, key=lambda image: (image.jaccard, image.name))[:count]

    def problems(self, limits: Limits) -> list[str]:
        """Which limits are passed, for people; none if the two agree."""
        found = []
        if self.jaccard_mean < limits.min_jaccard:
            found.append(
                f"mean Jaccard index of the masks {self.jaccard_mean:.5f}, at least {limits.min_jaccard} wanted"
            )
        if self.change is not None and abs(self.change) >= limits.max_change:
            found.append(f"the score changes by {self.change:+.5f}, less than {limits.max_change} wanted")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Figures first, then every image."""
        return {
            "images": len(self.images),
            "jaccard_mean": self.jaccard_mean,
            "jaccard_min": self.jaccard_min,
            "differing_share": self.differing_share,
            "identical": self.identical,
            "images_with_truth": self.scored,
            "scores": self.scores,
            "change": self.change,
            "left_out": list(self.left_out),
            "per_image": [asdict(image) for image in self.images],
        }


def cpu_masker(runtime: Runtime) -> Masker:
    """Decode on the CPU, the network on `runtime`, restore on the CPU.

    A plan gets its largest batches, as in a run; a runtime on the CPU one image at a time. All is inferred at once;
    each mask is restored when it is its turn.
    """
    card, largest = runtime.card, runtime.max_batch or 1

    def read(file: Path) -> Decoded | ImageError:
        try:
            return decode_image(file, card.input_size)
        except ImageError as error:
            return error

    def infer(images: Sequence[Decoded]) -> Iterator[UInt8Array]:
        starts = range(0, len(images), largest)
        batches = ((n, np.stack([image.pixels for image in images[n : n + largest]])) for n in starts)
        for _, probabilities in infer_batches(runtime, batches):
            yield from probabilities

    def segment(files: Sequence[Path]) -> Iterator[Mask | ImageError]:
        images = [read(file) for file in files]
        probabilities = iter(list(infer([image for image in images if not isinstance(image, ImageError)])))
        sizes = [image if isinstance(image, ImageError) else image.native_size for image in images]
        return (
            size
            if isinstance(size, ImageError)
            else restore_mask(next(probabilities), size, threshold=card.threshold, **card.clean_up)
            for size in sizes
        )

    return segment


def measure_agreement(
    reference: Masker,
    candidate: Masker,
    files: Sequence[Path],
    names: Sequence[PurePath],
    truths: dict[PurePath, Path],
    *,
    chunk: int = 8,
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> Agreement:
    """Segment the same files with both.

    Args:
        reference, candidate: what segments.
        files: the images.
        names: theirs, in the same order.
        truths: ground truth by name; not every image needs one.
        chunk: files that are given to each at a time.
        on_progress: called with 0..1.

    Raises:
        DataError: not one image could be read by both.
        ModelError: a network failed.
    """
    images: list[ImageAgreement] = []
    left_out: list[str] = []
    for start in range(0, len(files), chunk):
        some = files[start : start + chunk]
        pairs = zip(names[start : start + chunk], reference(some), candidate(some), strict=True)
        for name, expected, found in pairs:
            problem = expected if isinstance(expected, ImageError) else found
            if isinstance(expected, ImageError) or isinstance(found, ImageError):
                left_out.append(str(problem))
                continue
            images.append(_compare(name, expected, found, truths.get(name), left_out))
        on_progress(min(1.0, (start + chunk) / len(files)))
    if not images:
        raise DataError("none of the images could be read:\n" + "\n".join(left_out[:5]))
    return Agreement(tuple(images), tuple(left_out))


def _compare(name: PurePath, expected: Mask, found: Mask, truth: Path | None, left_out: list[str]) -> ImageAgreement:
    if expected.shape != found.shape:
        raise DataError(f"{name}: masks of {expected.shape} and {found.shape}: the two see different pixel grids")
    scores: list[float | None] = [None, None]
    if truth is not None:
        try:
            true = read_mask(truth)
            scores = [score_mask(mask, true).jaccard for mask in (expected, found)]
        except DataError as error:
            left_out.append(f"{truth}: {error}" if str(truth) not in str(error) else str(error))
    return ImageAgreement(
        name=name.with_suffix("").as_posix(),
        jaccard=score_mask(found, expected).jaccard,
        pixels_differing=int(np.count_nonzero(expected != found)),
        pixels=expected.size,
        score_reference=scores[0],
        score_candidate=scores[1],
    )
