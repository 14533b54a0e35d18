"""Work beside what is measured: what a speed is on a machine that has something else to do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from isicrt.engine.errors import DataError

# Matrices that fit into a core's own cache, on one thread: it takes its share of a core and leaves the memory alone.
# Its parent's end closes its standard input, however that ended; Ctrl-C is the parent's to deal with.
_WORK = """
import signal, sys, threading
signal.signal(signal.SIGINT, signal.SIG_IGN)
import numpy as np

done = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
left, right = np.random.default_rng(0).random((2, 128, 128), np.float32)
np.matmul(left, right)
print("ready", flush=True)
while not done.is_set():
    for _ in range(100):
        np.matmul(left, right)
"""
_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Meanwhile so many processes of one thread compute without a pause, at the priority of everybody else.

    Raises:
        DataError: one did not start, or had ended before it was told to.
    """
    processes: list[subprocess.Popen[str]] = []
    try:
        for _ in range(count):
            processes.append(_start())
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                raise DataError("a process that was to keep a core busy did not start")
        yield
        if any(process.poll() is not None for process in processes):
            raise DataError("a process that was to keep a core busy ended early: what was measured beside it is wrong")
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()


def _start() -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            [sys.executable, "-c", _WORK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | dict.fromkeys(_LIMITS, "1"),
        )
    except OSError as error:
        raise DataError(f"a process that was to keep a core busy did not start: {error}") from error
