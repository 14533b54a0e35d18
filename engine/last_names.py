"""What a card or a result says of where something lay."""

from __future__ import annotations

from pathlib import Path


def last_names(path: Path) -> str:
    """The last two names of a path: they tell files and data sets apart and tell nothing of the machine."""
    return "/".join(path.absolute().parts[-2:])
