"""Files that are read ahead in processes where a GPU decodes, see `isicrt.engine.task_process`."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isicrt.engine.errors import ImageError
from isicrt.engine.gpu_batch import ChainImage, SourceView, gpu_image
from isicrt.engine.images import FileStamp, read_source
from isicrt.engine.jpeg_notes import joined, turned_note
from isicrt.engine.task_process import MOST_ON_GPU, START_AFTER, HandOver, ProcessLost, TaskProcess

_MOST_BYTES = 1 << 25
"""Of the files in one answer, and so of each file that is read here."""
_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
"""Of what is likely to be for the GPU. What a file is, its content decides, but a thread need not read it twice."""


ReadFile = tuple[tuple[int, int], Any, int, int, int]
"""(height, width), the bytes as a buffer, and a `FileStamp`: plain, since it is for a hundred thousand files."""


@dataclass(frozen=True)
class ReadAll:
    """What the process is asked, for a list of paths: as `read_chain_image`, but None for whatever is not for the GPU
    or cannot be read. It is then read again by a thread, which has the say on it."""

    max_pixels: int
    cpu_share: float

    def __call__(self, paths: Sequence[str]) -> list[ReadFile | None]:
        """As many as fit into an answer, at least one."""
        found: list[ReadFile | None] = []
        room = _MOST_BYTES
        for path in paths:
            image = self._read(Path(path))
            if image is None or image.source is None:
                found.append(None)
                continue
            stamp = image.source.stamp
            data = pickle.PickleBuffer(image.source.data)
            found.append((image.native_size, data, stamp.size, stamp.mtime_ns, stamp.crc))
            room -= len(image.source.data)
            if room <= 0:
                break
        return found

    def _read(self, path: Path) -> ChainImage | None:
        if path.suffix.lower() not in _SUFFIXES:
            return None
        try:
            if path.stat().st_size > _MOST_BYTES:
                return None
            return gpu_image(path, read_source(path), self.max_pixels, self.cpu_share)
        except (ImageError, OSError):
            return None


class ReadProcess:
    """One process that reads files, driven by one decode thread; close it after the last call.

    Args:
        task: see `ReadAll`.
        seconds: after which the process is given up: a file in it hangs, and the thread that reads each of them finds
            out which.
        at_once: whether the process is started now, and asked as soon as it is there; the caller does the work
            meanwhile.
        start_after: else, files that the caller reads before there is a process.
        command: see `TaskProcess`.
    """

    def __init__(
        self,
        task: ReadAll,
        seconds: float,
        *,
        at_once: bool = False,
        start_after: int = START_AFTER,
        command: Sequence[str] | None = None,
    ) -> None:
        self.process = TaskProcess(task, command, bulk="answer")
        self._seconds = seconds
        self._hand_over = HandOver(self.process, at_once=at_once, start_after=start_after)
        self._useless = False

    @property
    def takes(self) -> int:
        """Files that are to be given to it at a time: one where the caller reads it."""
        return MOST_ON_GPU if self._hand_over.is_due() and not self._useless and not self.process.is_over else 1

    def read(self, paths: Sequence[Path]) -> list[ChainImage | None]:
        """The first of these files, at least one, at most `MOST_ON_GPU`; None for each that is left to the caller."""
        is_due = self._hand_over.is_due(len(paths))
        self._hand_over.count(len(paths))
        found: list[ChainImage | None] = [None] * len(paths)
        if is_due and paths:
            with suppress(ProcessLost):
                answer = self.process.ask([str(path) for path in paths], self._seconds)
                found = [_image(path, one) for path, one in zip(paths, answer, strict=False)]
            self._useless = not any(found)
        return found

    def close(self) -> None:
        """End the process."""
        self.process.close()


def _image(path: Path, found: ReadFile | None) -> ChainImage | None:
    if found is None:
        return None
    native_size, data, *stamped = found
    stamp = FileStamp(*stamped)
    return ChainImage(path, native_size, SourceView(data, stamp), None, stamp, joined(turned_note(data)))
