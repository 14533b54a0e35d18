"""Scores of masks that lie in a folder, against ground truth that is found by ISIC id."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from isicrt.engine.errors import DataError
from isicrt.engine.images import read_mask
from isicrt.engine.mask_levels import has_corners, say_inverted, say_without_lesion
from isicrt.engine.scores import ImageScores, score_mask, summarise, without_point_interval

_OFFICIAL = "_segmentation"
_ENDINGS = (_OFFICIAL, "_lesion", "_mask", "_seg", "_gt")
"""Of ground truth in data sets of others too, such as PH2."""
_FORMATS = frozenset({".png", ".bmp", ".tif", ".tiff"})
"""Of ground truth: all that lose nothing."""


@dataclass(frozen=True)
class Accuracy:
    """Scores of one model's masks."""

    per_image: Mapping[str, ImageScores]
    """By the mask's path in its folder."""
    problems: tuple[str, ...] = ()
    """Masks that could not be scored, and why: a truth of another size or of 0 and 1, an unreadable file."""
    without_lesion: tuple[str, ...] = ()
    """Those of `per_image` whose truth is empty; none in results that did not note it."""
    corners: int = 0
    """How many truths of them are lesion in all four corners."""

    @cached_property
    def summary(self) -> dict[str, float | int]:
        """See `isicrt.engine.scores.summarise`.

        Raises:
            DataError: nothing was scored.
        """
        return summarise(list(self.per_image.values()))

    @property
    def noted(self) -> dict[str, float | int | None]:
        """The summary as it is written down, see `isicrt.engine.scores.without_point_interval`.

        Raises:
            DataError: nothing was scored.
        """
        return without_point_interval(self.summary)

    @property
    def truth_notes(self) -> list[str]:
        """What is odd about the truth, in the words of `isicrt evaluate`."""
        found = []
        if self.without_lesion:
            empty = say_without_lesion(self.without_lesion)
            found.append(f"{empty}. There an empty prediction scores 1, and any other 0")
        inverted = say_inverted(self.corners, len(self.per_image))
        return found if inverted is None else [*found, inverted]

    def mean(self, name: str) -> float:
        """Of one of the fields of `ImageScores`; something must be scored."""
        return float(np.mean([getattr(scores, name) for scores in self.per_image.values()]))

    def to_dict(self) -> dict[str, Any]:
        """The summary first, then every image."""
        return {
            "summary": self.noted if self.per_image else None,
            "problems": list(self.problems),
            "without_lesion": list(self.without_lesion),
            "corners": self.corners,
            "per_image": {name: asdict(s) for name, s in self.per_image.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Accuracy:
        """The inverse of `to_dict`, from its images."""
        return cls(
            {name: ImageScores(**s) for name, s in data["per_image"].items()},
            tuple(data["problems"]),
            tuple(data.get("without_lesion", ())),
            int(data.get("corners", 0)),
        )


def on_both(old: Accuracy, new: Accuracy) -> tuple[Accuracy, Accuracy]:
    """The scores of those images alone that both have, in one order."""
    shared = sorted(old.per_image.keys() & new.per_image.keys())
    first, second = (Accuracy({name: found.per_image[name] for name in shared}) for found in (old, new))
    return first, second


def find_truths(names: Sequence[PurePath], masks: Path) -> dict[PurePath, Path]:
    """The ground truth of each image that has one.

    The truth of ``a/ISIC_0000000.png`` is ``ISIC_0000000_Segmentation.png``, or one that ends in ``_lesion``,
    ``_mask``, ``_seg`` or ``_gt``, or ``ISIC_0000000.png``, in the same sub-folder ``a`` of `masks`
    or, where there is none, anywhere below `masks`.

    Args:
        names: the masks to score, relative to their folder.
        masks: the folder of truth masks (PNG, BMP or TIFF).

    Returns:
        Truth files by name; a name without a truth is not in it.

    Raises:
        DataError: no truth for any name, or two that fit equally well.
    """
    by_id: defaultdict[str, list[Path]] = defaultdict(list)
    known = {name.stem.lower() for name in names}
    for path in sorted(masks.rglob("*")):
        if (identifier := _identifier(path, known)) is not None:
            by_id[identifier].append(path)
    truths: dict[PurePath, Path] = {}
    for name in names:
        found = by_id[name.stem.lower()]
        found = [p for p in found if p.parent == masks / name.parent] or found
        # The official name wins over others, and any ending over none: the bare name may be the image's.
        for endings in (_OFFICIAL, _ENDINGS):
            found = [p for p in found if p.stem.lower().endswith(endings)] or found
        found = [p for p in found if p.suffix.lower() == ".png"] or found
        if len(found) > 1:
            raise DataError(f"{name.stem}: two ground truths fit: {found[0]} and {found[1]}. Keep one of them.")
        if found:
            truths[name] = found[0]
    if not truths:
        example = names[0].stem if names else "ISIC_0000000"
        raise DataError(f"{masks}: no ground truth for any image (looked for {example}_Segmentation.png and the like)")
    return truths


def _identifier(path: Path, known: Container[str]) -> str | None:
    """Of which image a file may be the truth; None where it is none. `known` are the images' own names: one of them may
    end as truths do."""
    stem, kind = path.stem.lower(), path.suffix.lower()
    if kind not in _FORMATS:
        return None
    ending = next((ending for ending in _ENDINGS if stem.endswith(ending)), None)
    if ending == _OFFICIAL or (ending is not None and stem not in known):
        return stem.removesuffix(ending)
    return stem if kind == ".png" else None


def score_masks(folder: Path, truths: Mapping[PurePath, Path]) -> Accuracy:
    """Score the masks below `folder` that have a truth. A mask that is not there (its image failed) is a problem too.

    Args:
        folder: where the masks were written.
        truths: what `find_truths` returned for them.
    """
    per_image: dict[str, ImageScores] = {}
    problems: list[str] = []
    without_lesion: list[str] = []
    corners = 0
    for name, truth in truths.items():
        if not (folder / name).is_file():
            problems.append(f"{name.as_posix()}: no mask, its image failed")
            continue
        try:
            true = read_mask(truth)
            per_image[name.as_posix()] = score_mask(read_mask(folder / name), true)
        except DataError as error:
            problems.append(f"{name.as_posix()}: {error}")
            continue
        corners += has_corners(true)
        if not true.any():
            without_lesion.append(name.as_posix())
    return Accuracy(per_image, tuple(problems), tuple(without_lesion), corners)
