"""Images that show one lesion, within a data set and between two: a second photograph, another magnification, a copy.

A model that has learned from one of them knows the other, so a score on it, or a validation fold with it, flatters.
`find_twins` proposes pairs that resemble each other (`isicrt.trainer.resemblance`) and proves each by registration
(`isicrt.trainer.registration`). What it found in the ISIC data stands in `isicrt.trainer.twins`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from isicrt.engine.errors import DataError
from isicrt.engine.images import read_image
from isicrt.trainer.registration import Features, Registration, correlate, reduce, register
from isicrt.trainer.resemblance import Print, resembling, take_print

CANDIDATES = 40
"""Images that are registered with each image."""

_NEIGHBOURS = 4  # by name, on either side
_ENOUGH, _CORRELATED = 8, 0.65
_MANY, _HARDLY_CORRELATED = 30, 0.45  # many places agree, and still the light or the skin has changed

Progress = Callable[[str, int, int], None]
"""Told the stage, how many images or pairs are done and how many there are."""


@dataclass(frozen=True)
class Twin:
    """Two images of one lesion."""

    a: Path
    b: Path
    inliers: int
    """Places of the skin that lie on each other by one magnification, rotation and shift."""
    correlation: float
    """Of the details where the registered images overlap, up to 1."""
    registration: Registration
    """From a to b, between reduced images."""


def find_twins(
    images: Sequence[Path],
    against: Sequence[Path] = (),
    *,
    candidates: int = CANDIDATES,
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> list[Twin]:
    """Find the pairs of images that show one lesion. The same files give the same pairs.

    Args:
        images: files. Without `against`, each is compared with each.
        against: files that `images` are compared with instead: nothing is looked for within either.
        candidates: how many images are registered with each image: the most alike ones. Those whose names come next
            to its own are too: photographs of one lesion are often numbered in a row.
        threads: None for one a core. OpenCV's and BLAS's own threads are not counted.
        on_progress: told about each image that is read and each pair that is registered.

    Returns:
        Pairs, a before b as they were given, the surest first. With `against`, a is one of `images`.

    Raises:
        ImageError: a file cannot be decoded.
        DataError: there is nothing to compare, or one file is on both sides.
    """
    if not images or (not against and len(images) < 2):
        raise DataError("finding duplicates needs two images at least")
    if both := {path.resolve() for path in images} & {path.resolve() for path in against}:
        raise DataError(f"{min(both)}: would be compared with itself; name each image on one side")
    paths = [*images, *against]
    report: Progress = on_progress or (lambda stage, done, total: None)
    with ThreadPoolExecutor(threads) as pool:
        prints = list(_counted(pool.map(_print_of, paths), "read", len(paths), report))
        split = len(images) if against else None
        pairs = sorted({*resembling(prints, split, candidates), *_neighbours(paths, split)})
        work = [(paths[i], paths[j], prints[i].features, prints[j].features) for i, j in pairs]
        found = _counted(pool.map(_compare, work), "register", len(work), report)
        twins = [twin for twin in found if twin is not None]
    return sorted(twins, key=lambda twin: (-twin.inliers, -twin.correlation, twin.a, twin.b))


def is_twin(inliers: int, correlation: float) -> bool:
    """Whether a registration proves that two images show one lesion.

    The thresholds lie between the pairs of the ISIC data that are one lesion to the eye and those that are not: see
    docs/data.md.
    """
    return inliers >= _ENOUGH and correlation >= (_HARDLY_CORRELATED if inliers >= _MANY else _CORRELATED)


def _print_of(path: Path) -> Print:
    return take_print(reduce(read_image(path)))


def _neighbours(paths: Sequence[Path], split: int | None) -> list[tuple[int, int]]:
    order = sorted(range(len(paths)), key=lambda index: (paths[index].name, index))
    near = (
        (min(a, b), max(a, b)) for step in range(1, _NEIGHBOURS + 1) for a, b in zip(order, order[step:], strict=False)
    )
    return [(a, b) for a, b in near if split is None or a < split <= b]


def _compare(work: tuple[Path, Path, Features, Features]) -> Twin | None:
    a, b, features_a, features_b = work
    registration = register(features_a, features_b)
    if registration.inliers < _ENOUGH:
        return None
    correlation = correlate(reduce(read_image(a)), reduce(read_image(b)), registration)
    if not is_twin(registration.inliers, correlation):
        return None
    return Twin(a, b, registration.inliers, correlation, registration)


_Item = TypeVar("_Item")


def _counted(items: Iterable[_Item], stage: str, total: int, report: Progress) -> Iterator[_Item]:
    for done, item in enumerate(items, 1):
        report(stage, done, total)
        yield item
