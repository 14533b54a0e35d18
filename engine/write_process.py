"""Masks that are finished in processes, see `isicrt.engine.task_process`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from isicrt.engine.finishing import Content, Finished, Finishing
from isicrt.engine.output import OutputError
from isicrt.engine.pixel_budget import LARGE_PIXELS
from isicrt.engine.task_process import START_AFTER, ProcessLost, TaskProcess

Todo = tuple[Path, tuple[int, int], Content]
"""As the arguments of `Finishing.finish`."""


@dataclass(frozen=True)
class _FinishAll:
    finishing: Finishing

    def __call__(self, todo: Sequence[Todo]) -> list[Finished] | str:
        """Or the message of an OutputError."""
        try:
            return [self.finishing.finish(*one) for one in todo]
        except OutputError as error:
            return str(error)


class WriteProcess:
    """One process that finishes masks, driven by one write thread; close it after the last call.

    Args:
        finishing: of the run.
        start_after: masks that the caller finishes before there is a process.
        command: see `TaskProcess`.
    """

    def __init__(
        self, finishing: Finishing, *, start_after: int = START_AFTER, command: Sequence[str] | None = None
    ) -> None:
        self.process = TaskProcess(_FinishAll(finishing), command)
        self._to_come = start_after

    def finish(self, todo: Sequence[Todo]) -> list[Finished | None]:
        """Finish masks, at most `MOST_AT_ONCE`; None for each that is left to the caller: there is no process (yet),
        or the image is so large that large ones take turns.

        Raises:
            OutputError: no mask can be written any more.
        """
        results: list[Finished | None] = [None] * len(todo)
        self._to_come -= len(todo)
        small = [n for n, (_, size, _) in enumerate(todo) if size[0] * size[1] < LARGE_PIXELS]
        if self._to_come >= 0 or not small:
            return results
        try:
            answer = self.process.ask([todo[n] for n in small])
        except ProcessLost:
            return results
        if isinstance(answer, str):
            raise OutputError(answer)
        for n, finished in zip(small, answer, strict=True):
            results[n] = finished
        return results

    def close(self) -> None:
        """End the process."""
        self.process.close()
