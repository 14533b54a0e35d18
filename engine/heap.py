"""The heaps of the C library, which keep what was freed for the next time."""

from __future__ import annotations

import ctypes
import os

_M_ARENA_MAX = -8


def share_heaps(count: int) -> bool:
    """Let all threads of this process share `count` heaps, if they have none yet. It is for a program, not a library.

    glibc gives nearly each thread a heap of its own, and each keeps the most that it ever held: in a long run all come
    to hold what one needs now and then. Half as many as cores are plenty: threads compute more than they allocate.

    Args:
        count: at least 1 is taken.

    Returns:
        Whether that was done. Not where the C library knows no such thing, or the user has set it (MALLOC_ARENA_MAX).
    """
    if "MALLOC_ARENA_MAX" in os.environ or "arena_max" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # musl, macOS; Windows has no library without a name
        return False
    return bool(mallopt(_M_ARENA_MAX, max(1, count)))
