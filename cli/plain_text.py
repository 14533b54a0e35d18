"""Text for a terminal."""

from __future__ import annotations


def printable(text: object) -> str:
    """File names may hold what a terminal would obey or could not show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
