"""Energy of the processors, where the system lets a user read it: RAPL counters under Linux.

https://www.kernel.org/doc/html/latest/power/powercap/powercap.html. The counters are of the whole package, so they
count what other programs use too. Virtual machines seldom have them, and most systems keep them for root.
"""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Counts from its making on.

    Args:
        folder: of the zones; another one for tests.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        # One level: "intel-rapl:0" is a package, "intel-rapl:0:1" a part of it, which must not be counted twice.
        zones = [z for z in sorted(folder.glob("intel-rapl:*")) if z.name.count(":") == 1]
        self._zones = [z for z in zones if _read(z / "name").startswith("package")]
        self._start = [_microjoules(z) for z in self._zones]

    def joules(self) -> float | None:
        """Since the making; None where some counter cannot be read."""
        total = 0
        for zone, start in zip(self._zones, self._start, strict=True):
            end, most = _microjoules(zone), _read(zone / "max_energy_range_uj")
            if start is None or end is None or not most.isdigit():
                return None
            # The counter starts again at 0 after its largest value.
            total += end - start if end >= start else end - start + int(most)
        return total / 1e6 if self._zones else None


def _microjoules(zone: Path) -> int | None:
    text = _read(zone / "energy_uj")
    return int(text) if text.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
