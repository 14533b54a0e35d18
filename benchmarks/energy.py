"""Energy of the processors and the GPUs, where the system lets a user read it.

Of processors: RAPL counters under Linux, https://www.kernel.org/doc/html/latest/power/powercap/powercap.html. They are
of the whole package, so they count what other programs use too. Virtual machines seldom have them, and most systems
keep them for root.

Of GPUs: NVML's counters, which GPUs since Volta have, of each whole board. nvidia-smi does not print them, and asking
it for the power all the time would take CPU time from what is measured.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Counts from its making on.

    Args:
        folder: of the zones; another one for tests.
        gpus: reads the GPUs' counter.
    """

    def __init__(self, folder: Path = POWERCAP, gpus: Callable[[], int | None] | None = None) -> None:
        self._gpus = gpus or (lambda: gpu_millijoules(_nvml()))
        self._gpu_start = self._gpus()
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

    def gpu_joules(self) -> float | None:
        """Of all GPUs since the making; None where there is none, or one that does not count."""
        end = self._gpus()
        return None if self._gpu_start is None or end is None else (end - self._gpu_start) / 1e3


def gpu_millijoules(nvml: Any) -> int | None:
    """Sum of the counters of all GPUs since their driver was loaded.

    Args:
        nvml: the library, initialised; None where there is none.

    Returns:
        None where there is no GPU, or one whose counter cannot be read.
    """
    count = ctypes.c_uint()
    if nvml is None or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) or not count.value:
        return None
    total = 0
    for index in range(count.value):
        device, spent = ctypes.c_void_p(), ctypes.c_ulonglong()
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)):
            return None
        if nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(spent)):
            return None
        total += spent.value
    return total


@cache
def _nvml() -> Any:
    """NVIDIA's library, which comes with the driver."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return None if library.nvmlInit_v2() else library


def _microjoules(zone: Path) -> int | None:
    text = _read(zone / "energy_uj")
    return int(text) if text.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
