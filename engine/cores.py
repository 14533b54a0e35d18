"""How many CPU cores there are to use, and what they can do."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path


def available_cores() -> int:
    """Cores that this process may use: its affinity, and a container's quota where that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))


@cache
def has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor sums products of int8 in 32 bits (VNNI: Intel since Cascade Lake, AMD since Zen 4).

    False where the system does not say so, as on anything but Linux.
    """
    try:
        text = cpuinfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return "avx512_vnni" in flags or "avx_vnni" in flags
