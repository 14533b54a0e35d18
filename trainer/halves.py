"""What stands in both halves of a data set, so that the test shows a model what it has learned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from isicrt.engine.errors import DataError
from isicrt.trainer.dataset import DatasetReport, Pair, find_folders, find_pairs
from isicrt.trainer.twins import group_of, isic_id

Half = tuple[Sequence[Pair], DatasetReport]
"""What `isicrt.trainer.dataset.survey` finds of it."""


def notes_on_halves(train: Half, test: Half) -> list[str]:
    """Copies by what is in the files, and groups by their names, in lines for people. What training leaves out is not
    looked at."""
    lines = []
    learned = {digest: image for image, digest in train[1].contents.items()}
    copies = {image: learned[digest] for image, digest in test[1].contents.items() if digest in learned}
    if copies:
        are = "image of test is a copy of one" if len(copies) == 1 else "images of test are copies of some"
        image, original = next(iter(copies.items()))
        lines.append(f"{len(copies)} {are} in train, such as {image} of {original}: remove one of the two")
    known = {name: pair for pair in train[0] if (name := _kept_with(pair))}
    # Where a copy alone makes a group stand in both, the line above says enough.
    both = {name: pair for pair in test[0] if (name := _kept_with(pair)) in known and pair.image not in copies}
    if both:
        are = "1 group is" if len(both) == 1 else f"{len(both)} groups are"
        name, pair = next(iter(both.items()))
        lines.append(
            f"{are} in train and in test, such as {name} with {known[name].image} and {pair.image}: move all images of "
            "a group to one side"
        )
    return lines


def notes_on_test(roots: Sequence[Path], contents: Mapping[Path, bytes] = MappingProxyType({})) -> list[str]:
    """Whether training shows images of the test halves to a model, in one line for people, as far as that is seen in a
    moment: groups by their names, and copies of `contents`, of which a file is read that is as long as one of them.

    Args:
        roots: data sets. What cannot be read or paired of them is passed over.
        contents: SHA-256 of the training images' files, where they are known.
    """
    learned: dict[str, tuple[Path, Path]] = {}
    test: list[tuple[Path, Pair]] = []
    for root in roots:
        with suppress(DataError, OSError):  # most have no test half
            learned |= {name: (root, pair.image) for pair in find_pairs(root, "train") for name in _names(pair)}
            if find_folders(root, "test") != find_folders(root, "train"):
                test += [(root, pair) for pair in find_pairs(root, "test")]
    found: list[tuple[Path, Path]] = []
    by_name_alone = False
    with suppress(OSError):
        lengths = {image.stat().st_size for image in contents}
        copied = {digest: image for image, digest in contents.items()}
        for root, pair in test:
            name = next((name for name in _names(pair) if name in learned), None)
            at, known = (None, None) if name is None else learned[name]
            by_name_alone |= at not in (None, root) and name == pair.group
            if known is None and pair.image.stat().st_size in lengths:
                known = copied.get(hashlib.sha256(pair.image.read_bytes()).digest())
            if known is not None:
                found.append((pair.image, known))
    if not found:
        return []
    are = "1 image of test is" if len(found) == 1 else f"{len(found)} images of test are"
    return [
        f"{are} in train too, or in a group with what is, such as {found[0][0]} with {found[0][1]}: scores on test "
        "flatter a model that learns from train. Move them to one side"
        + (", or give groups of different data sets different names: of one name they are one" if by_name_alone else "")
    ]


def _names(pair: Pair) -> list[str]:
    """What tells that two images are of one lesion, or one patient."""
    names = [] if pair.group is None else [pair.group]
    return [*names, group_of(pair.id)] if isic_id(pair.image) else names


def _kept_with(pair: Pair) -> str:
    """Its group; without one, an ISIC id says which image it is wherever it lies. Other names may be there twice."""
    return pair.group or (group_of(pair.id) if isic_id(pair.image) else "")
