"""Processes beside a measurement compute all the while, and end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from isicrt.benchmarks import busy_machine
from isicrt.benchmarks.busy_machine import busy_processes
from isicrt.engine.errors import DataError

linux = pytest.mark.skipif(
    not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="the kernel does not tell a process's children"
)


def _children(parent: int | str = "self") -> set[int]:
    found = set()
    for task in Path(f"/proc/{parent}/task").iterdir():
        with suppress(OSError):  # a thread that has ended meanwhile
            found |= set(map(int, (task / "children").read_text().split()))
    return found


def _cpu_ticks(process: int) -> int:
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return int(user) + int(system)


def _wait_for(what: str, condition: object) -> None:
    assert callable(condition)
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.01)


@linux
def test_each_computes_until_the_end() -> None:
    before = _children()
    with busy_processes(2):
        started = _children() - before
        assert len(started) == 2
        for process in started:
            first = _cpu_ticks(process)
            _wait_for("it computes", lambda process=process, first=first: _cpu_ticks(process) > first + 5)
    assert _children() <= before


@linux
def test_they_end_with_a_parent_that_is_killed() -> None:
    code = (
        "import sys, time\n"
        "from isicrt.benchmarks.busy_machine import busy_processes\n"
        "with busy_processes(1):\n"
        "    print('up', flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        (worker,) = _children(parent.pid)
        parent.kill()
    try:
        _wait_for("it has ended", lambda: not Path(f"/proc/{worker}").exists() or _is_zombie(worker))
    finally:
        with suppress(OSError):
            os.kill(worker, signal.SIGKILL)


def _is_zombie(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_one_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy_machine, "_WORK", "raise SystemExit(1)")
    with pytest.raises(DataError, match="did not start"), busy_processes(1):
        pytest.fail("nothing is measured beside it")
    monkeypatch.setattr(sys, "executable", "/absent/python")
    with pytest.raises(DataError, match="did not start: "), busy_processes(1):
        pytest.fail("nothing is measured beside it")


def test_one_that_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy_machine, "_WORK", "print('ready', flush=True)")
    started: list[subprocess.Popen[str]] = []
    start = busy_machine._start

    def note() -> subprocess.Popen[str]:
        started.append(start())
        return started[-1]

    monkeypatch.setattr(busy_machine, "_start", note)
    with pytest.raises(DataError, match="ended early"), busy_processes(1):
        started[0].wait(60)


def test_an_error_beside_them_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy_machine, "_WORK", "print('ready', flush=True)")
    with pytest.raises(KeyError, match="mine"), busy_processes(1):
        raise KeyError("mine")


def test_none() -> None:
    with busy_processes(0):
        pass
