"""What starts a process of isicrt's own, and where that is to find modules."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_OWN = str(Path(__file__).absolute().parents[2])
"""The folder that holds the isicrt which runs here; found out early, for a program may go to another folder."""

NO_PYTHON = "this program has no Python beside it that could start a process (it is frozen, or Python is within it)"


def own_python() -> str | None:
    """The Python that runs here; None where there is none that could start another: in a frozen program, whose
    ``sys.executable`` is the program itself, and in one that has Python within it."""
    return None if getattr(sys, "frozen", False) else sys.executable or None


def own_environment() -> dict[str, str]:
    """For a new process. Libraries would start a thread for every core in it, which it has no use for."""
    return {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def import_path() -> list[str]:
    """`sys.path` for a new process, so that it finds the isicrt that this one runs.

    Without what is relative: that is below the current folder, the empty entry of ``python -c`` and of an interpreter
    at a prompt among it, and a program that has gone to a folder of images would run a stranger's modules.
    """
    found = [str(entry) for entry in sys.path]
    kept = [entry for entry in found if os.path.isabs(entry)]  # noqa: PTH117 (as they are)
    return kept if len(kept) == len(found) or _OWN in kept else [_OWN, *kept]
