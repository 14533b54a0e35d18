"""What is said of an image that is decoded all the same: that its JPEG looks damaged."""

from __future__ import annotations

from collections.abc import Iterable

DAMAGED = "damaged: "
"""What such a note begins with."""


def joined(notes: Iterable[str]) -> str | None:
    """The notes on one image as one; None where there is none."""
    return "; ".join(notes) or None
