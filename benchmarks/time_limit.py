"""An end for work that knows none, such as a compiler's."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_AGAIN_SECONDS = 0.5


class _TimeUp(BaseException):
    """No error of the work's own, so that it is not taken for one there and passed over."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """What is inside ends after so many seconds, at its next step in Python.

    That is so in the main thread of a system with alarms; elsewhere it takes as long as it takes.

    Raises:
        TimeoutError: it did not end by itself.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise _TimeUp

    before = signal.signal(signal.SIGALRM, end)
    try:
        # Again and again: one that is raised where nobody can pass it on, as in a destructor, is lost.
        signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_SECONDS)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _TimeUp:
        raise TimeoutError(f"not done after {seconds:g} s") from None
    finally:
        signal.signal(signal.SIGALRM, before)
