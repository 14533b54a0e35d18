"""Processes of a run that answer without working, so that what is measured is what the run's own process can do."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from isicrt.engine.finishing import Finished
from isicrt.engine.read_process import ReadAll, ReadFile
from isicrt.engine.task_process import HandOver, Task, TaskProcess


class IdleRead:
    """As a `ReadAll`, which is asked for each file once."""

    def __init__(self, task: ReadAll) -> None:
        self._task = task
        self._known: dict[str, ReadFile | None] = {}

    def __call__(self, paths: Sequence[str]) -> list[ReadFile | None]:
        for path in paths:
            if path not in self._known:
                (self._known[path],) = self._task([path])
        return [self._known[path] for path in paths]


class IdleWrite:
    """As the task of a `isicrt.engine.write_process.WriteProcess`, which is asked for one mask and writes no other."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._first: list[Finished] = []

    def __call__(self, todo: Sequence[Any]) -> tuple[list[Finished], str | None]:
        if not self._first:
            self._first, problem = self._task(todo[:1])
            if problem is not None:
                return [], problem
        return self._first * len(todo), None


@contextmanager
def idle_processes() -> Iterator[None]:
    """Those that runs start meanwhile are idle, and each is waited for: none of their work is done by a thread."""
    init, is_due = TaskProcess.__init__, HandOver.is_due

    def wait_until_due(self: HandOver, images: int = 1) -> bool:  # a mock in its place would be what is measured
        while self.at_once and not is_due(self, images):
            time.sleep(0.05)  # seldom: each look would count as a wait
        return True

    def init_idle(self: TaskProcess, task: Task, *settings: Any, **options: Any) -> None:
        init(self, IdleRead(task) if isinstance(task, ReadAll) else IdleWrite(task), *settings, **options)

    with (
        mock.patch.object(TaskProcess, "__init__", init_idle),
        mock.patch.object(HandOver, "is_due", wait_until_due),
    ):
        yield
