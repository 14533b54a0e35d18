"""Processes that do a part of a run's work, for machines with many cores.

All threads of a process share Python's lock, and each call into the system or a library gives it back and takes it
again: a mask does so some twenty times, a file that is read seven times. With eight threads or more they wait for each
other longer than they work. A process has a lock of its own, and a dozen images go there in one message.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import struct
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import IO, Any

import numpy as np

from isicrt.engine.import_path import import_path, own_environment, own_python

MIN_CORES = 8
"""Fewer cores are kept busy by threads alone."""
MOST_AT_ONCE = 16
"""Images in a message: with more, the others would have nothing to do at the end."""
MOST_ON_GPU = 32
"""The same where a GPU decodes: its batches are large, and what is left for Python's lock is the messages."""
START_AFTER = 64
"""Images that a thread has dealt with before it starts a process: for a few that is not worth its time."""
_MOST_STARTS = 3
_PIPE_BYTES = 1 << 19
"""Where a pipe has 64 KiB unasked. All pipes of a user share a limit of 64 MiB, above which new ones are made smaller
than that."""
_PATIENCE_SECONDS, _KILL_SECONDS = 2.0, 0.5
_SEND_SECONDS = 0.05
"""For what is being sent when another thread hangs up."""
HAS_TIME_LIMIT = hasattr(select, "poll")
"""Whether a process that hangs can be given up: not on Windows."""

# Not `-m`: the process must find the isicrt that this one runs. Nothing may be imported before that: Python would look
# for it in the current folder first, which may be a stranger's images.
_START = "import sys; sys.path[:] = sys.argv[1:]; from isicrt.engine.task_process import serve; serve()"

_HEADER, _MAGIC = struct.Struct("<8sQQ"), b"isicrt\x00\x01"
"""Of a message; the length of its pickle, and the number of parts behind it."""
_MOST_PARTS = 512
"""That one call of the system takes; POSIX promises 16, and Linux, macOS and the BSDs take 1024."""

Task = Callable[[Any], Any]


class ProcessLost(Exception):
    """The process is gone, or could not be started; what it was asked is for the caller to do."""


class TaskProcess:
    """One process with one task, driven by one thread; close it after the last call.

    It is started by the first call, and again a few times where it is lost. Another thread may close it at any time:
    what is asked then and afterwards is lost.

    Args:
        task: is sent to the process, and called there with what is asked.
        command: starts a process; None for the one that isicrt has.
        bulk: whether it is a ``question`` or an ``answer`` that is large.
    """

    def __init__(self, task: Task, command: Sequence[str] | None = None, *, bulk: str) -> None:
        self._task = task
        self._bulk = bulk
        python = own_python()
        self._command = list(command or ((python, "-c", _START, *import_path()) if python else ()))
        self._starts = 0
        self._owes = False
        """Whether an answer is on its way that nobody wants."""
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._sending = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else self._process.pid

    def ask(self, question: Any, seconds: float | None = None) -> Any:
        """What the task returns.

        Args:
            question: can be pickled.
            seconds: after which the process is ended and lost; None to wait for as long as it takes. Only where
                `HAS_TIME_LIMIT`.

        Raises:
            ProcessLost: there is no answer, and will be none.
        """
        if self._process is None:
            self._begin()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if self._owes:  # one after the other: what is in Python's buffer already does not show in the pipe
                self._answer(process.stdout, seconds)
                self._owes = False
            self._send(process, question)
            return self._answer(process.stdout, seconds)
        except Exception as error:  # gone, silent, a question that cannot be sent, or an answer that is none
            self._kill()
            _close_pipes(process)  # whoever has closed this object may have left them
            raise ProcessLost from error

    @staticmethod
    def _answer(answers: IO[bytes], seconds: float | None) -> Any:
        if seconds is not None and HAS_TIME_LIMIT and not _has_come(answers, seconds):
            raise TimeoutError
        return _receive(answers)

    def ask_ahead(self, question: Any) -> None:
        """Start the process and ask it without waiting; `has_answered` comes before the next question.

        Raises:
            ProcessLost: it could not be started.
        """
        self._begin()
        try:
            assert self._process is not None
            self._send(self._process, question)
            self._owes = True
        except Exception as error:
            self._kill()
            raise ProcessLost from error

    def has_answered(self) -> bool:
        """Whether the answer to `ask_ahead`, which is dropped, has come; without `HAS_TIME_LIMIT` it is waited for.

        Raises:
            ProcessLost: there will be none.
        """
        process = self._process
        if process is None or process.stdout is None:
            raise ProcessLost
        try:
            if HAS_TIME_LIMIT and not _has_come(process.stdout, 0):
                return False
            _receive(process.stdout)
            self._owes = False
        except Exception as error:
            self._kill()
            raise ProcessLost from error
        return True

    @property
    def is_over(self) -> bool:
        """Whether it was closed, or lost so often that it is not started again."""
        return self._process is None and (self._closed or self._starts == _MOST_STARTS)

    def _begin(self) -> None:
        if self.is_over:
            raise ProcessLost
        self._starts += 1
        self._owes = False
        # A session of its own: Ctrl-C is for the run, which then ends its processes.
        options: dict[str, Any] = {"start_new_session": True} if os.name == "posix" else {}
        try:
            if not self._command:
                raise ProcessLost
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=own_environment(),
                **options,
            )
            assert self._process.stdin is not None
            _widen(self._process.stdin if self._bulk == "question" else self._process.stdout)
            self._send(self._process, self._task)
            if self._closed:  # by another thread, which may have found no process to end
                raise ProcessLost
        except Exception as error:  # no memory, no more processes, or a task that cannot be sent
            self._kill()
            raise ProcessLost from error

    def _send(self, process: subprocess.Popen[bytes], message: Any) -> None:
        assert process.stdin is not None
        with self._sending:
            _send(process.stdin, message)

    def hang_up(self) -> None:
        """Let the process end when it has finished what it was asked; `close` waits for it."""
        self._closed = True
        process = self._process
        # Python's files have locks: to close one that a thread writes to is to wait for that thread, which may wait for
        # a process that hangs.
        if process is not None and process.stdin is not None and self._sending.acquire(timeout=_SEND_SECONDS):
            try:
                with contextlib.suppress(OSError, ValueError):
                    process.stdin.close()
            finally:
                self._sending.release()

    def close(self, seconds: float = _PATIENCE_SECONDS) -> None:
        """End the process, which finishes what it was asked if that does not take longer than `seconds`."""
        close_all([self], seconds)

    def _kill(self, until: float | None = None) -> None:
        """By the thread that drives it, or, with a time of `time.monotonic` to wait until, by any."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            process.kill()
        has_ended = _has_ended(process, time.monotonic() + _KILL_SECONDS if until is None else until)
        if not has_ended and until is not None:
            return  # a dead mount holds it, it holds the thread that waits for it, and that one the pipes
        # What is being sent ends with the process. Its descriptor must not be another file's before.
        if self._sending.acquire(timeout=_SEND_SECONDS):
            try:
                _close_pipes(process)
            finally:
                self._sending.release()


def close_all(processes: Sequence[TaskProcess], seconds: float) -> None:
    """End processes, all of which together have so many seconds to finish what they were asked."""
    for one in processes:
        one.hang_up()
    until = time.monotonic() + seconds
    for one in processes:
        process = one._process
        if process is not None and not _has_ended(process, until):
            with contextlib.suppress(OSError):
                process.kill()
    until = time.monotonic() + _KILL_SECONDS
    for one in processes:
        one._kill(until)


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _has_ended(process: subprocess.Popen[bytes], until: float) -> bool:
    """Whether it does so before this time of `time.monotonic`."""
    try:
        process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


class HandOver:
    """When a thread hands its work over to a process, and does it itself no more.

    Args:
        process: that is to do it. An empty list is a question for it.
        at_once: whether it is started now, and asked as soon as it is there.
        start_after: else, images that the thread deals with before.
    """

    def __init__(self, process: TaskProcess, *, at_once: bool, start_after: int) -> None:
        self._process = process
        self.at_once = at_once
        """As given."""
        self._to_come = start_after
        self._is_starting = False
        if at_once:
            with contextlib.suppress(ProcessLost):
                process.ask_ahead([])
                self._is_starting = True

    def is_due(self, images: int = 1) -> bool:
        """Whether the process is to be asked for the next images. One that is lost is: the question finds it out."""
        if not self.at_once:
            return self._to_come < images
        if self._is_starting:
            try:
                self._is_starting = not self._process.has_answered()
            except ProcessLost:
                self._is_starting = False
        return not self._is_starting

    def count(self, images: int) -> None:
        """So many were dealt with, by whomever."""
        self._to_come -= images


def _has_come(answers: IO[bytes], seconds: float) -> bool:
    """Whether there is something to read, or the end of it. Only where nothing of an answer was read yet."""
    answer = select.poll()  # `select` takes no descriptor above 1023
    answer.register(answers, select.POLLIN)
    return bool(answer.poll(seconds * 1000))


def _widen(pipe: IO[bytes] | None) -> None:
    """Else both sides wake each other for every 64 KiB of a message."""
    if pipe is not None and sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):  # this user's pipes have enough
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def serve() -> None:
    """What the process does, until its input ends, which is when the run is gone, however that went."""
    import cv2

    from isicrt.engine.heap import keep_buffers, share_heaps

    share_heaps(1)
    keep_buffers()
    cv2.setNumThreads(1)
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that a library prints may get between the answers
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        task = _receive(questions)
        while True:
            _send(answers, task(_receive(questions)))
    os._exit(0)  # the run waits for it, and everything is written


def end_with_run(run: int) -> None:
    """For a task that writes: end this process if that of the run is gone, and its lock on the folder with it."""
    if os.name == "posix" and os.getppid() != run:
        os._exit(1)


def _send(stream: IO[bytes], message: Any) -> None:
    """One message: its pickle, and behind that what was large in it, as it lies in memory."""
    # Both sides are this program, and nobody else holds the pipe: pickle is safe here.
    large: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=large.append)
    parts = [buffer.raw() for buffer in large]
    sizes = array("Q", [len(part) for part in parts])
    _write_all(stream, [_HEADER.pack(_MAGIC, len(head), len(parts)) + sizes.tobytes() + head, *parts])


def _write_all(stream: IO[bytes], parts: Sequence[bytes | memoryview]) -> None:
    if not hasattr(os, "writev"):
        stream.writelines(parts)
        stream.flush()
        return
    # With one call for all of them Python's lock is given away once.
    rest = [memoryview(part) for part in parts if len(part)]
    while rest:
        written = os.writev(stream.fileno(), rest[:_MOST_PARTS])
        while rest and written >= len(rest[0]):
            written -= len(rest.pop(0))
        if written:
            rest[0] = rest[0][written:]


def _receive(stream: IO[bytes]) -> Any:
    magic, length, count = _HEADER.unpack(_exactly(stream, _HEADER.size))
    if magic != _MAGIC:
        raise ValueError("no message of isicrt")
    sizes = array("Q", _exactly(stream, 8 * count))
    head = _exactly(stream, length)
    if not count:
        return pickle.loads(head)
    room = np.empty(sum(sizes), np.uint8).data  # what is written over need not be zero before
    if stream.readinto(room) != len(room):  # type: ignore[attr-defined]
        raise EOFError
    ends = list(accumulate(sizes))
    return pickle.loads(head, buffers=[room[end - size : end] for end, size in zip(ends, sizes, strict=True)])


def _exactly(stream: IO[bytes], length: int) -> bytes:
    found = stream.read(length)
    if len(found) != length:
        raise EOFError
    return found
