"""Clocks, power and memory of the GPU while something runs, as nvidia-smi says."""

from __future__ import annotations

import shutil
import subprocess
import threading
from types import TracebackType

import numpy as np

from isicrt.engine.cuda_driver import gpu_uuid

FIELDS = ("clocks.sm", "clocks.mem", "power.draw", "memory.used", "utilization.gpu", "temperature.gpu")
"""MHz, MHz, W, MiB, percent, degrees Celsius."""
_PERIOD_MS = 100


class GpuWatch:
    """Samples ten times a second between `__enter__` and `__exit__`; nothing where there is no nvidia-smi.

    Args:
        index: of the GPU, as CUDA counts.
    """

    def __init__(self, index: int = 0) -> None:
        self._index = index
        self._rows: list[list[float]] = []
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._read, name="nvidia-smi", daemon=True)

    def __enter__(self) -> GpuWatch:
        tool = shutil.which("nvidia-smi")
        if tool is not None:
            gpu = gpu_uuid(self._index) or self._index
            query = [tool, f"--id={gpu}", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
            self._process = subprocess.Popen(
                [*query, f"--loop-ms={_PERIOD_MS}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            self._thread.start()
        return self

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._rows.append([_number(part) for part in line.split(",")])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._thread.join(10)
            if self._process.stdout is not None:
                self._process.stdout.close()

    def summary(self) -> dict[str, dict[str, float]]:
        """Median and largest of each of `FIELDS`; without those that were never a number."""
        rows = [row for row in self._rows if len(row) == len(FIELDS)]
        result = {}
        for field, values in zip(FIELDS, np.transpose(rows) if rows else [], strict=False):
            known = values[np.isfinite(values)]
            if known.size:
                result[field] = {"median": float(np.median(known)), "max": float(known.max())}
        return result


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # "[N/A]"
        return float("nan")
