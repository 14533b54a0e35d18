"""What is to be known of a data set that can be used, in lines for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isicrt.engine.mask_levels import say_inverted, say_without_lesion

if TYPE_CHECKING:
    from isicrt.trainer.dataset import DatasetReport

SHOWN = 10
"""Images that look damaged and are named."""


def count_of(number: int, noun: str) -> str:
    """Such as ``1 image`` and ``2 images``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def notes_on(report: DatasetReport) -> list[str]:
    """All of them. Names of files in them may be no text."""
    lines = []
    if report.left_out:
        lines.append(say_left_out(report.left_out, report.pairs))
    if report.without_lesion:
        lines.append(say_without_lesion(report.without_lesion))
    if inverted := say_inverted(report.corners, report.pairs):
        lines.append(inverted)
    if report.damaged:
        lines.append(say_damaged(report.damaged))
    if report.turned:
        lines.append(say_turned(report.turned))
    if report.copies:
        lines.append(say_copies(report.copies))
    lines += report.groups
    return lines


def say_left_out(count: int, kept: int) -> str:
    """Pairs that are left out, at least one, in one line for people, with how many there are beside them."""
    are = "is left out: it is a test image" if count == 1 else "are left out: they are test images"
    show = "shows" if count == 1 else "show"
    return f"{count} of {count + kept} {are} of ISIC 2016, or {show} a lesion of one (docs/data.md)"


def say_damaged(images: Sequence[Path]) -> str:
    """JPEGs that look damaged, at least one, in one line for people: how many they are, and some of them."""
    names = ", ".join(map(str, images[:SHOWN])) + (", ..." if len(images) > SHOWN else "")
    looks = "1 image looks" if len(images) == 1 else f"{len(images)} images look"
    return f"{looks} damaged, though decoders take {'it' if len(images) == 1 else 'them'}: {names}"


def say_copies(copies: Sequence[tuple[Path, Path]]) -> str:
    """Images that are there under another name too, at least one, in one line for people."""
    are = "1 image is a copy of another" if len(copies) == 1 else f"{len(copies)} images are copies of others"
    return (
        f"{are}, such as {copies[0][0]} of {copies[0][1].name}: a model may learn from one and be validated on the "
        "other. Remove one, or keep them together with a groups.csv (docs/data.md#groups)"
    )


def say_turned(images: Sequence[Path]) -> str:
    """Images with an EXIF orientation, at least one, in one line for people."""
    have = "1 image has" if len(images) == 1 else f"{len(images)} images have"
    return (
        f"{have} an EXIF orientation, such as {images[0]}: viewers and tools for labels turn it, and its mask must lie "
        "on the image as it is stored. Look whether it does (docs/data.md#orientation)"
    )
