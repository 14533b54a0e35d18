"""The heaps of the C library, which keep what was freed for the next time."""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Of `mallopt(3)`."""
_KEPT_BYTES = 32 << 20
"""The most that glibc takes on 64 bits; larger buffers go back to the kernel as before."""


def share_heaps(count: int) -> bool:
    """Let all threads of this process share `count` heaps, if they have none yet. It is for a program, not a library.

    glibc gives nearly each thread a heap of its own, and each keeps the most that it ever held: in a long run all come
    to hold what one needs now and then. With many threads half as many heaps as cores are plenty; with few threads,
    which then wait for each other, that costs up to a tenth of a run's time, and sharing saves little memory.

    Args:
        count: at least 1 is taken.

    Returns:
        Whether that was done. Not where the C library knows no such thing, or the user has set it (MALLOC_ARENA_MAX).
    """
    return _set(_M_ARENA_MAX, max(1, count), "ARENA_MAX")


def keep_buffers() -> bool:
    """Let the heaps of this process keep the buffers of one image for the next. It is for a program, not a library.

    glibc gives a large buffer back to the kernel when it is freed, until it has learned better; the kernel then clears
    the pages of the next one, 4 KiB at a time, and the threads of a process wait for each other there.

    Returns:
        As `share_heaps` (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_).
    """
    kept = _set(_M_MMAP_THRESHOLD, _KEPT_BYTES, "MMAP_THRESHOLD")
    return _set(_M_TRIM_THRESHOLD, 2 * _KEPT_BYTES, "TRIM_THRESHOLD") and kept


def give_back() -> bool:
    """Give the kernel what the heaps of this process keep and nobody uses. It is for a program, not a library.

    Each heap comes to keep the most that its thread ever held, and no two threads hold the most at once. A call takes
    milliseconds, and what is needed again is cleared by the kernel: it is for now and then.

    Returns:
        Whether anything was given back. Not where the C library knows no such thing.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # as in `_set`
        return False
    return bool(trim(0))


def _set(setting: int, value: int, name: str) -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if f"MALLOC_{name}" in os.environ or f"MALLOC_{name}_" in os.environ or name.lower() in tunables:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # musl, macOS; Windows has no library without a name
        return False
    return bool(mallopt(setting, value))
