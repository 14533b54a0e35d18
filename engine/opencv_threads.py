"""OpenCV's own threads, which a run has no use for and a fork must not meet."""

from __future__ import annotations

import os
import threading

import cv2


class OwnThreads:
    """While runs last, OpenCV's calls stay in the thread that makes them: a run has a thread for each core as it is,
    and OpenCV's own would spin beside them while they wait for work. The setting is the process's.

    In a forked process they stay so, unless it says otherwise (`cv2.setNumThreads`)."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal's handler may fork
        self._runs = 0
        self._before = 1
        self._forks = threading.local()

    def __enter__(self) -> None:
        with self._lock:
            self._runs += 1
            try:
                if self._runs == 1:
                    self._before = cv2.getNumThreads()
                    cv2.setNumThreads(1)
            except BaseException:
                self._runs -= 1
                raise

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._runs -= 1
            if self._runs == 0:
                cv2.setNumThreads(self._before)

    def begin_fork(self) -> None:
        """OpenCV's threads end, but for those that are at work for another thread."""
        self._forks.begun = False  # Python forks whatever becomes of this
        self.__enter__()
        self._forks.begun = True

    def end_fork(self) -> None:
        """The parent gets its setting back."""
        if self._forks.begun:
            self.__exit__()

    def end_fork_in_child(self) -> None:
        """The number stays at 1. Some of OpenCV's threads may have been at work, and to change it would wait for
        them; and another thread, which is not here either, may have the lock."""
        self._lock = threading.RLock()
        self._before = 1
        if self._forks.begun:
            self._runs -= 1


WITHOUT_OPENCV_THREADS = OwnThreads()
"""The process's. It may be entered by several threads, and again inside itself."""

if hasattr(os, "register_at_fork"):
    # A forked process lacks OpenCV's threads, and would wait for them for ever: for a lock that one of them held at
    # that moment, and for their end.
    os.register_at_fork(
        before=WITHOUT_OPENCV_THREADS.begin_fork,
        after_in_parent=WITHOUT_OPENCV_THREADS.end_fork,
        after_in_child=WITHOUT_OPENCV_THREADS.end_fork_in_child,
    )
