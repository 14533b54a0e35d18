"""Files that are read ahead in processes where a GPU decodes, see `isicrt.engine.task_process`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from isicrt.engine.errors import ImageError
from isicrt.engine.gpu_batch import ChainImage, gpu_image
from isicrt.engine.images import read_source
from isicrt.engine.task_process import START_AFTER, ProcessLost, TaskProcess

_MOST_BYTES = 1 << 25
"""Of a file that goes through a pipe."""


@dataclass(frozen=True)
class ReadAll:
    """What the process is asked, for a list of paths: as `read_chain_image`, but None for whatever is not for the GPU
    or cannot be read. It is then read again by a thread, which has the say on it."""

    max_pixels: int
    cpu_share: float

    def __call__(self, paths: Sequence[Path]) -> list[ChainImage | None]:
        return [self._read(path) for path in paths]

    def _read(self, path: Path) -> ChainImage | None:
        try:
            source = read_source(path)
        except ImageError:
            return None
        small = len(source.data) <= _MOST_BYTES
        return gpu_image(path, source, self.max_pixels, self.cpu_share) if small else None


class ReadProcess:
    """One process that reads files, driven by one decode thread; close it after the last call.

    Args:
        task: see `ReadAll`.
        seconds: after which the process is given up: a file in it hangs, and the thread that reads each of them finds
            out which.
        start_after: files that the caller reads before there is a process.
        command: see `TaskProcess`.
    """

    def __init__(
        self, task: ReadAll, seconds: float, *, start_after: int = START_AFTER, command: Sequence[str] | None = None
    ) -> None:
        self.process = TaskProcess(task, command)
        self._seconds = seconds
        self._to_come = start_after

    def read(self, paths: Sequence[Path]) -> list[ChainImage | None]:
        """Files, at most `MOST_AT_ONCE`; None for each that is left to the caller."""
        self._to_come -= len(paths)
        if self._to_come < 0 and paths:
            try:
                found: list[ChainImage | None] = self.process.ask(list(paths), self._seconds)
            except ProcessLost:
                pass
            else:
                return found
        return [None] * len(paths)

    def close(self) -> None:
        """End the process."""
        self.process.close()
