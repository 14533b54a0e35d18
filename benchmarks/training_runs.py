"""Training processes side by side, and what their run folders say of them."""

from __future__ import annotations

import csv
import json
import math
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_TAIL = 12
"""Last lines of output that are kept of a process that failed."""
_TURN_SECONDS = 0.2
_NOTED_SECONDS = 10.0


class Child:
    """A training process and its run folder.

    Args:
        name: of the run.
        command: words.
        folder: of the run, in which the process leaves its metrics.
        variables: that are added to the environment.
    """

    def __init__(self, name: str, command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> None:
        self.name, self.folder = name, folder
        self._command, self._variables = command, variables
        self._log = folder.parent / f"{folder.name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._file: IO[bytes] | None = None
        self._begun = self.seconds = 0.0
        self.code: int | None = None
        """Exit code; None before the end."""

    def start(self) -> None:
        """Begin; output goes to a file beside the folder."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._log.open("wb")
        environment = os.environ | {"PYTHONUNBUFFERED": "1", **self._variables}
        self._begun = time.monotonic()
        self._process = subprocess.Popen(
            self._command, stdout=self._file, stderr=subprocess.STDOUT, env=environment, stdin=subprocess.DEVNULL
        )

    def ended(self) -> bool:
        """Whether it has just ended, or has before."""
        if self.code is None and self._process is not None and self._process.poll() is not None:
            self._close(self._process.returncode)
        return self.code is not None

    def stop(self) -> None:
        """End it, if it runs; it is given no time, for all that it has is lost with it."""
        if self._process is not None and self.code is None:
            self._process.kill()
            self._close(self._process.wait())

    def _close(self, code: int) -> None:
        self.code, self.seconds = code, time.monotonic() - self._begun
        if self._file is not None:
            self._file.close()

    def output(self) -> list[str]:
        """Lines by now."""
        try:
            return self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []


def run_side_by_side(
    children: Sequence[Child],
    end: float,
    *,
    on_end: Callable[[Child], None] = lambda child: None,
    on_turn: Callable[[], None] = lambda: None,
) -> None:
    """Start all, and wait until each has ended or the time is up; then those that are left are ended.

    Args:
        children: none of them started.
        end: on `time.monotonic`'s clock.
        on_end: called for each when it has ended.
        on_turn: called every ten seconds.
    """
    noted = time.monotonic()
    waiting = list(children)
    try:
        for child in children:
            child.start()
        while waiting and time.monotonic() < end:
            for child in [child for child in waiting if child.ended()]:
                waiting.remove(child)
                on_end(child)
            if time.monotonic() - noted > _NOTED_SECONDS:
                noted = time.monotonic()
                on_turn()
            time.sleep(_TURN_SECONDS)
    finally:
        for child in waiting:
            child.stop()
        for child in waiting:
            on_end(child)


def summarise_run(child: Child) -> dict[str, Any]:
    """What a run folder says of its run, in JSON's types.

    Returns:
        ``code`` (None while it runs), ``epochs``, ``hours`` of these; by stage, ``seconds_per_epoch`` and
        ``images_per_second``: medians without the stage's first epoch, where it has another; ``seconds_beside_epochs``,
        what the process took beside so many epochs of such a length; ``gpu_memory_peak_bytes``, as torch counts it,
        None where it did not; ``output``, the last lines of a process that failed.
    """
    rows = _rows(child.folder / "metrics.csv")
    seconds: dict[str, float] = {}
    rates: dict[str, float] = {}
    steady = 0.0
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row for row in rows if row["stage"] == stage]
        timed = own[1:] or own
        seconds[stage] = statistics.median(float(row["seconds"]) for row in timed)
        rates[stage] = statistics.median(float(row["images_per_second"]) for row in timed)
        steady += len(own) * seconds[stage]
    return {
        "code": child.code,
        "epochs": len(rows),
        "hours": math.fsum(float(row["seconds"]) for row in rows) / 3600,
        "wall_seconds": round(child.seconds, 1),
        "seconds_per_epoch": {stage: round(value, 3) for stage, value in seconds.items()},
        "images_per_second": {stage: round(value, 1) for stage, value in rates.items()},
        "seconds_beside_epochs": round(max(0.0, child.seconds - steady), 1),
        "gpu_memory_peak_bytes": _peak(child.folder / "run.json"),
        "output": [] if child.code == 0 else child.output()[-_TAIL:],
    }


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError:
        return []


def _peak(path: Path) -> int | None:
    try:
        found: int | None = json.loads(path.read_text(encoding="utf-8")).get("gpu_memory_peak_bytes")
    except (OSError, ValueError):
        return None
    return found


def longest_epochs(costs: Sequence[tuple[float, float]], seconds: float, most: int) -> int:
    """The largest even number of epochs, up to `most`, that every run finishes.

    Args:
        costs: of each run: seconds beside its epochs, and seconds an epoch.
        seconds: that there are.
        most: epochs.

    Returns:
        0 where not even two fit.
    """
    fits = min((seconds - beside) / max(each, 1e-9) for beside, each in costs)
    return max(0, min(most, math.floor(fits)) // 2 * 2)
