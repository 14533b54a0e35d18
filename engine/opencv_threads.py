"""OpenCV's own threads, which a run has no use for and a fork must not meet."""

from __future__ import annotations

import os
import threading

import cv2


class OwnThreads:
    """While runs last, OpenCV's calls stay in the thread that makes them: a run has a thread for each core as it is,
    and OpenCV's own would spin beside them while they wait for work. The setting is the process's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs = self._before = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._runs == 0:
                self._before = cv2.getNumThreads()
                cv2.setNumThreads(1)
            self._runs += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._runs -= 1
            if self._runs == 0:
                cv2.setNumThreads(self._before)

    def exit_in_child(self) -> None:
        """`__exit__` in a process that was forked: another thread, which is not there, may have had the lock."""
        self._lock = threading.Lock()
        self.__exit__()


WITHOUT_OPENCV_THREADS = OwnThreads()
"""The process's. It may be entered by several threads, and again inside itself."""

if hasattr(os, "register_at_fork"):
    # A forked process lacks OpenCV's threads, and would wait for them for ever: to end, and for a lock that one of them
    # held at that moment. So they end before each fork; the next call that wants some starts them again.
    os.register_at_fork(
        before=WITHOUT_OPENCV_THREADS.__enter__,
        after_in_parent=WITHOUT_OPENCV_THREADS.__exit__,
        after_in_child=WITHOUT_OPENCV_THREADS.exit_in_child,
    )
