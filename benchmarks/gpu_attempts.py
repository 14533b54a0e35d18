"""A report that is written again after each of its sections, so that whatever ends the run costs what it interrupts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from isicrt.benchmarks.gpu_watch import GpuWatch
from isicrt.benchmarks.result_file import write_whole


class Attempts:
    """Sections of a JSON report, measured one after the other.

    Args:
        file: the report.
        head: what stands in it from the start.
        conclude: looks at the report after each section; what it returns is merged into it.
        seconds: after which no further section is begun.
    """

    def __init__(
        self,
        file: Path,
        head: dict[str, Any],
        *,
        conclude: Callable[[dict[str, Any]], dict[str, Any]] = lambda report: {},
        seconds: float = float("inf"),
    ) -> None:
        self._file, self._conclude = file, conclude
        self._end = time.perf_counter() + seconds
        self.report: dict[str, Any] = {**head, "notes": []}

    @property
    def left(self) -> float:
        """Seconds in which a section may still begin; below 0 when the time is up."""
        return self._end - time.perf_counter()

    def __call__(self, path: tuple[str, ...], work: Callable[[], Any]) -> bool:
        """Measure one section. One that fails is noted, and the caller goes on.

        Args:
            path: the keys under which it stands, from the outermost.
            work: gives its result, as JSON has it.

        Returns:
            Whether there is a result.
        """
        name = " / ".join(path)
        if self.left < 0:
            self.note(f"{name}: not begun, the time was up")
            return False
        click.echo(f"{name} ...", err=True)
        started = time.perf_counter()
        problem = None
        with GpuWatch() as watch:
            try:
                result = work()
            except Exception as error:
                problem = f"{name}: {type(error).__name__}: {error}"[:2000]
        if problem is not None:
            self.note(problem)
            return False
        seconds = round(time.perf_counter() - started, 2)
        place = self.report
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = {"result": result, "seconds": seconds, "gpu": watch.summary()}
        self.write()
        return True

    def note(self, text: str) -> None:
        """Something that a reader of the report should know. Twice the same is one note."""
        if text in self.report["notes"]:
            return
        click.echo(f"  {text}", err=True)
        self.report["notes"].append(text)
        self.write()

    def write(self) -> None:
        """The file is whole at any moment, also where the process is killed while it is written."""
        self.report.update(self._conclude(self.report))
        write_whole(self._file, json.dumps(self.report, indent=1) + "\n")
