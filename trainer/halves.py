"""What stands in both halves of a data set, so that the test shows a model what it has learned."""

from __future__ import annotations

from collections.abc import Sequence

from isicrt.trainer.dataset import DatasetReport, Pair
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


def _kept_with(pair: Pair) -> str:
    """Its group; without one, an ISIC id says which image it is wherever it lies. Other names may be there twice."""
    return pair.group or (group_of(pair.id) if isic_id(pair.image) else "")
