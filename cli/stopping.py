"""How a command that was interrupted comes to its end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C or SIGTERM only makes the function that this gives say True; the second is as ever.

    An exception in the middle of the bookkeeping could lose an image from the counts.
    """
    asked: list[int] = []
    previous: dict[int, Any] = {}

    def ask(number: int, _: object) -> None:
        asked.append(number)
        restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, ask)
    try:
        yield lambda: bool(asked)
    finally:
        if not asked:
            restore()


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Inside, the first SIGTERM does what Ctrl-C does: what is half done is removed on the way out. The second is as
    ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, _: object) -> None:
        signal.signal(number, before)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt) or signal.SIG_DFL  # None: whoever set it was not Python
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def leave_if_stuck(before: Callable[[], None] = lambda: None, code: int = 130) -> None:
    """End the process if a thread is still inside a native call, which the interpreter's own exit might crash."""
    run_threads = sys.modules.get("isicrt.engine.run_threads")
    if run_threads is not None and any(t.name.startswith(run_threads.THREAD_PREFIX) for t in threading.enumerate()):
        before()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
