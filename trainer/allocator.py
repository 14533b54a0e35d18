"""How the C library hands out memory while a network trains on a CPU."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
"""Of `mallopt(3)`."""


def keep_freed_memory() -> bool:
    """Make this process keep what it frees, for the rest of its life.

    A training step frees and asks again for hundreds of tensors of tens of megabytes. glibc gives each back to the
    kernel, which clears its pages and maps them again, one fault for 4 KiB: a tenth of a step on one core.

    Returns:
        Whether the C library took the settings; False where it is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**26))
    return all([mallopt(name, value) == 1 for name, value in settings])
