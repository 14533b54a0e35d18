"""Masks that are finished in processes, see `isicrt.engine.task_process`."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from isicrt.engine.finishing import Content, Finished, Finishing
from isicrt.engine.gpu_batch import PackedMask
from isicrt.engine.output import OutputError, OutputFolder
from isicrt.engine.pixel_budget import LARGE_PIXELS
from isicrt.engine.task_process import MOST_AT_ONCE, START_AFTER, HandOver, ProcessLost, TaskProcess, end_with_run

Todo = tuple[Path, tuple[int, int], Content]
"""As the arguments of `Finishing.finish`."""

Sent = tuple[str, tuple[int, int], Any, "int | None"]
"""The same on its way, plain: path, size, and a probability map, or the buffer of a packed mask and the bytes of a
row."""

Answer = tuple[list[Finished], "str | None"]
"""What a process has finished, and the message of the OutputError that was the end of it."""


def finish_all(finishing: Finishing, run: int, todo: Iterable[Todo]) -> Answer:
    """In a process: finish masks until the process of the run, `run`, is gone or nothing can be written any more."""
    finished: list[Finished] = []
    for one in todo:
        end_with_run(run)
        try:
            finished.append(finishing.finish(*one))
        except OutputError as error:
            return finished, str(error)
    return finished, None


def ask_to_finish(
    process: TaskProcess, question: object, output: OutputFolder | None, masks: Iterable[Path]
) -> tuple[list[Finished], OutputError | None]:
    """In the run: ask a process that answers with an `Answer`. Where it is lost (ProcessLost), what it has left beside
    these masks in its `output` is removed."""
    try:
        finished, problem = process.ask(question)
    except ProcessLost:
        if output is not None:
            output.remove_temporary({mask.parent for mask in masks})
        raise
    return finished, None if problem is None else OutputError(problem)


@dataclass(frozen=True)
class _FinishAll:
    finishing: Finishing
    run: int
    """The process of the run."""

    def __call__(self, sent: Sequence[Sent]) -> Answer:
        return finish_all(self.finishing, self.run, map(_arrived, sent))


class WriteProcess:
    """One process that finishes masks, driven by one write thread; close it after the last call.

    Args:
        finishing: of the run.
        number: of the write thread, from 0 to 254; it is in the names of the process's temporary files.
        at_once: whether the process is started now, and asked as soon as it is there; the caller does the work
            meanwhile.
        start_after: else, masks that the caller finishes before there is a process.
        most: masks that are given to it at a time.
        command: see `TaskProcess`.
    """

    def __init__(
        self,
        finishing: Finishing,
        number: int = 0,
        *,
        at_once: bool = False,
        start_after: int = START_AFTER,
        most: int = MOST_AT_ONCE,
        command: Sequence[str] | None = None,
    ) -> None:
        output = finishing.output
        self._output = None if output is None else output.of_process(number)
        task = _FinishAll(replace(finishing, output=self._output), os.getpid())
        self.process = TaskProcess(task, command, bulk="question")
        self._most = most
        self._hand_over = HandOver(self.process, at_once=at_once, start_after=start_after)
        self.error: OutputError | None = None
        """After it nothing can be written any more."""

    @property
    def takes(self) -> int:
        """Masks that are to be given to it at a time: one where the caller finishes it."""
        return self._most if self._hand_over.is_due() and not self.process.is_over else 1

    def finish(self, todo: Sequence[Todo]) -> list[Finished | None]:
        """Finish masks, at most `most`; None for each that is left to the caller: there is no process (yet),
        the image is so large that large ones take turns, or there is an `error`.
        """
        results: list[Finished | None] = [None] * len(todo)
        is_due = self._hand_over.is_due(len(todo))
        self._hand_over.count(len(todo))
        small = [n for n, (_, size, _) in enumerate(todo) if not is_large(size)]
        if not is_due or not small:
            return results
        sent = [_sent(*todo[n]) for n in small]
        try:
            finished, self.error = ask_to_finish(self.process, sent, self._output, [todo[n][0] for n in small])
        except ProcessLost:
            return results
        for n, done in zip(small, finished, strict=False):
            results[n] = done
        return results

    def close(self) -> None:
        """End the process."""
        self.process.close()


def _sent(path: Path, size: tuple[int, int], content: Content) -> Sent:
    if not isinstance(content, PackedMask):
        return str(path), size, content, None
    return str(path), size, pickle.PickleBuffer(np.ascontiguousarray(content.bits).data), content.bits.shape[1]


def _arrived(sent: Sent) -> Todo:
    path, size, content, width = sent
    if width is not None:
        content = PackedMask(np.frombuffer(content, np.uint8).reshape(-1, width), size)
    return Path(path), size, content


def is_large(size: tuple[int, int]) -> bool:
    """Whether an image of (height, width) waits for its turn, see `isicrt.engine.pixel_budget`."""
    return size[0] * size[1] >= LARGE_PIXELS
