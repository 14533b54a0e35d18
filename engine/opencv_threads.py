"""OpenCV's own threads, which a run has no use for."""

from __future__ import annotations

import os
import threading

import cv2


class OwnThreads:
    """While runs last, OpenCV's calls stay in the thread that makes them: a run has a thread for each core as it is,
    and OpenCV's own would spin beside them while they wait for work. The setting is the process's. In a forked
    process it stays as it is: OpenCV's threads are not there, and to change their number it would wait for them."""

    def __init__(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._runs = self._before = 0

    def __enter__(self) -> None:
        if self._process != os.getpid():
            return
        with self._lock:
            if self._runs == 0:
                self._before = cv2.getNumThreads()
                cv2.setNumThreads(1)
            self._runs += 1

    def __exit__(self, *_: object) -> None:
        if self._process != os.getpid():
            return
        with self._lock:
            self._runs -= 1
            if self._runs == 0:
                cv2.setNumThreads(self._before)


WITHOUT_OPENCV_THREADS = OwnThreads()
"""The process's. It may be entered by several threads, and again inside itself."""
