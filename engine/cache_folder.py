"""Where isicrt keeps what would take long to make again. All of it may be deleted at any time."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """``ISICRT_CACHE``, else ``isicrt`` in the user's cache folder. It need not exist.

    Raises:
        RuntimeError: the user has no home.
    """
    if chosen := os.environ.get("ISICRT_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "isicrt"


def cache_file(name: str) -> Path | None:
    """That file in `cache_folder`; None where the user has no home: then nothing is kept. It need not exist."""
    try:
        return cache_folder() / name
    except RuntimeError:
        return None
