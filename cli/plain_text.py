"""Text for a terminal."""

from __future__ import annotations

import os
import re
import shlex


def printable(text: object) -> str:
    """File names may hold what a terminal would obey or could not show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def shell_word(path: object) -> str:
    """A path in a command that is offered to be pasted: quoted where a shell would take it apart."""
    text = printable(path)
    if os.name != "nt":
        return shlex.quote(text)
    # Double quotes are what cmd and PowerShell have in common; no file name there has one.
    return text if re.fullmatch(r"[\w:./\\-]+", text) else f'"{text}"'
