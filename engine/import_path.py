"""Where a process of isicrt's own is to find modules."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_OWN = str(Path(__file__).absolute().parents[2])
"""The folder that holds the isicrt which runs here; found out early, for a program may go to another folder."""


def import_path() -> list[str]:
    """`sys.path` for a new process, so that it finds the isicrt that this one runs.

    Without what is relative: that is below the current folder, the empty entry of ``python -c`` and of an interpreter
    at a prompt among it, and a program that has gone to a folder of images would run a stranger's modules.
    """
    found = [str(entry) for entry in sys.path]
    kept = [entry for entry in found if os.path.isabs(entry)]  # noqa: PTH117 (as they are)
    return kept if len(kept) == len(found) or _OWN in kept else [_OWN, *kept]
