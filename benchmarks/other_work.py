"""CPU time that other programs took meanwhile, which is in every measured time and in no fault of what was measured."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from isicrt.engine.cores import available_cores

PROC_STAT = Path("/proc/stat")


class OtherWork:
    """Counts from its making on.

    Args:
        own_seconds: CPU seconds so far of what is measured.
        stat: of the kernel, https://www.kernel.org/doc/html/latest/filesystems/proc.html; another one for tests.
        cores: by their numbers; None for those that this process may use. Where a container's quota that
            `available_cores` knows of is of fewer, none of them is its own, and nothing is known.
    """

    def __init__(
        self, own_seconds: Callable[[], float], stat: Path = PROC_STAT, cores: frozenset[int] | None = None
    ) -> None:
        self._own_seconds, self._stat = own_seconds, stat
        if cores is None and hasattr(os, "sched_getaffinity"):
            affinity = frozenset(os.sched_getaffinity(0))
            cores = affinity if len(affinity) == available_cores() else None
        self._cores = cores or frozenset()
        self._start = self._busy_seconds(), own_seconds()

    def cpu_seconds(self) -> float | None:
        """Of other programs, of the kernel for itself, and of other machines on the same processor, on these cores
        since the making. The kernel counts in ticks, of 10 ms mostly. None where it does not tell, as on anything but
        Linux."""
        (start, own_start), end = self._start, self._busy_seconds()
        if start is None or end is None:
            return None
        busy, own = end - start, self._own_seconds() - own_start
        if busy == 0 and own > 0.1:  # a kernel that has the file and does not count
            return None
        return max(0.0, busy - own)

    def _busy_seconds(self) -> float | None:
        try:
            lines = self._stat.read_text(encoding="ascii").splitlines()
        except OSError:
            return None
        names = {f"cpu{core}" for core in self._cores}
        found = [line.split()[1:] for line in lines if line.partition(" ")[0] in names]
        if not found or len(found) != len(names) or not hasattr(os, "sysconf"):
            return None
        # user nice system idle iowait irq softirq steal; what comes behind is in user and nice already.
        ticks = sum(int(value) for row in found for place, value in enumerate(row[:8]) if place not in (3, 4))
        return ticks / os.sysconf("SC_CLK_TCK")
