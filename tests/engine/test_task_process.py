"""A process is closed by one thread while another asks it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from isicrt.engine.task_process import ProcessLost, TaskProcess, close_all

pytestmark = [
    pytest.mark.usefixtures("no_process_is_left"),
    pytest.mark.skipif(os.name != "posix", reason="signals"),
]

LARGER_THAN_A_PIPE = b"x" * (1 << 20)


def _asking(process: TaskProcess, question: Any) -> tuple[threading.Thread, list[object]]:
    ended: list[object] = []

    def ask() -> None:
        try:
            ended.append(process.ask(question))
        except ProcessLost as lost:
            ended.append(lost)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread, ended


def test_a_question_that_a_process_does_not_read_does_not_hold_who_closes_it() -> None:
    process = TaskProcess(len, bulk="question")
    assert process.ask(b"ab") == 2
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    thread, ended = _asking(process, LARGER_THAN_A_PIPE)
    time.sleep(0.3)
    started = time.monotonic()
    process.close(0.2)
    assert time.monotonic() - started < 2
    thread.join(20)
    assert isinstance(ended[0], ProcessLost)


def test_an_answer_that_never_comes_does_not_hold_who_closes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a dead mount, where a process cannot be killed."""
    process = TaskProcess(time.sleep, bulk="question")
    assert process.ask(0) is None
    running = process._process
    assert running is not None
    real = running.kill
    monkeypatch.setattr(running, "kill", lambda: None)
    thread, ended = _asking(process, 600)
    time.sleep(0.3)
    started = time.monotonic()
    process.close(0.1)
    assert time.monotonic() - started < 2
    real()
    thread.join(20)
    assert isinstance(ended[0], ProcessLost)
    running.wait()


def test_what_is_closed_is_not_started_again() -> None:
    process = TaskProcess(len, bulk="question")
    thread, ended = _asking(process, b"ab")
    thread.join(20)
    assert ended == [2]
    close_all([process], 1)
    assert process.is_over
    with pytest.raises(ProcessLost):
        process.ask(b"ab")
    with pytest.raises(ProcessLost):
        process.ask_ahead(b"ab")


def test_a_process_that_starts_while_it_is_closed_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    process = TaskProcess(len, bulk="question")
    start = subprocess.Popen

    def closed_meanwhile(*arguments: Any, **options: Any) -> Any:
        process.close()
        return start(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", closed_meanwhile)
    with pytest.raises(ProcessLost):
        process.ask(b"ab")
    assert process.pid is None


def test_messages_larger_than_a_pipe_both_ways() -> None:
    process = TaskProcess(bytes.swapcase, bulk="question")
    try:
        for _ in range(3):
            assert process.ask(LARGER_THAN_A_PIPE) == LARGER_THAN_A_PIPE.swapcase()
    finally:
        process.close()


def test_asked_ahead_and_closed_at_once() -> None:
    processes = [TaskProcess(len, bulk="answer", command=[sys.executable, "-c", "input()"]) for _ in range(4)]
    for process in processes:
        process.ask_ahead(b"ab")
    close_all(processes, 0)
    for process in processes:
        with pytest.raises(ProcessLost):
            process.has_answered()


def test_an_answer_that_nobody_fetched_is_not_the_next_one() -> None:
    process = TaskProcess(len, bulk="question")
    try:
        process.ask_ahead(b"ab")
        assert process.ask(b"abc", 60) == 3
        assert process.ask(b"a") == 1
    finally:
        process.close()
