"""Text for a terminal."""

from __future__ import annotations

import os
import re
import shlex

from isicrt._command import spelled_out


def printable(text: object) -> str:
    """A line that names files, whatever is in their names."""
    return spelled_out(text)


def shell_word(path: object) -> str:
    """A path in a command that is offered to be pasted: quoted where a shell would take it apart."""
    text = printable(path)
    if os.name != "nt":
        return shlex.quote(text)
    # Double quotes are what cmd and PowerShell have in common; no file name there has one.
    return text if re.fullmatch(r"[\w:./\\-]+", text) else f'"{text}"'
