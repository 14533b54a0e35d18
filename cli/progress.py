"""How far a command is."""

from __future__ import annotations

import time
from types import TracebackType

import click

_PLAIN_SECONDS = 10.0


class Progress:
    """A bar on a terminal; elsewhere a line now and then, which a log can hold.

    Args:
        total: images.
        title: what is done with them, before the bar.
        label: what they are done with, before a line.
    """

    def __init__(self, total: int, title: str = "Segmenting", label: str = "") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        self._total, self._done, self._computed = total, 0, 0
        self._label = f"{label}: " if label else ""
        self._started = self._spoken = time.monotonic()
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(title, total=total, speed="")

    def advance(self, *, computed: bool = True) -> None:
        """An image has ended; not `computed`: an earlier run did it, and it says nothing of the speed."""
        self._done += 1
        self._computed += computed
        now = time.monotonic()
        speed = f"{self._computed / max(now - self._started, 1e-9):.1f} images/s"
        self._bar.update(self._task, completed=self._done, speed=speed)
        if self._bar.disable and now - self._spoken >= _PLAIN_SECONDS:
            self._spoken = now
            click.echo(f"{self._label}{self._done} of {self._total} images, {speed}", err=True)

    def close(self) -> None:
        self._bar.stop()

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
