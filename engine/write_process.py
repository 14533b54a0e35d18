"""Processes that finish masks, for machines with many cores.

All threads of a process share Python's lock, and a mask takes it some twenty times: with eight threads or more they
wait for each other longer than they work. A process has a lock of its own, and a dozen masks go there in one message.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from isicrt.engine.finishing import Content, Finished, Finishing
from isicrt.engine.output import OutputError
from isicrt.engine.pixel_budget import LARGE_PIXELS

Todo = tuple[Path, tuple[int, int], Content]
"""As the arguments of `Finishing.finish`."""

MOST_AT_ONCE = 16
"""Masks in a message: with more, the others would have nothing to do at the end."""
MIN_CORES = 8
"""Fewer cores are kept busy by threads alone."""
_START_AFTER = 64
"""Masks that a write thread has finished before it starts a process: for a few images that is not worth its time."""
_MOST_STARTS = 3
_PATIENCE_SECONDS = 2.0

# Not `-m`: the process must find the isicrt that this one runs.
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from isicrt.engine.write_process import serve; serve()"
)


class WriteProcess:
    """One process that finishes masks, driven by one thread; close it after the last call.

    It is started when it is worth it. One that is lost is started again a few times; what it had not finished is for
    the caller, who finishes it in this process.

    Args:
        finishing: of the run.
        start_after: masks that the caller finishes before.
        command: starts a process; None for the one that isicrt has.
    """

    def __init__(
        self, finishing: Finishing, *, start_after: int = _START_AFTER, command: Sequence[str] | None = None
    ) -> None:
        self._finishing = finishing
        self._start_after = start_after
        self._command = list(command or (sys.executable, "-c", _START, json.dumps(sys.path)))
        self._starts = self._asked = 0
        self._process: subprocess.Popen[bytes] | None = None

    def finish(self, todo: Sequence[Todo]) -> list[Finished | None]:
        """Finish masks, at most `MOST_AT_ONCE`; None for each that is left to the caller: the process does not run
        (yet), or the image is so large that large ones take turns.

        Raises:
            OutputError: no mask can be written any more.
        """
        results: list[Finished | None] = [None] * len(todo)
        self._asked += len(todo)
        if self._asked <= self._start_after:
            return results
        small = [n for n, (_, size, _) in enumerate(todo) if size[0] * size[1] < LARGE_PIXELS]
        if not small or not self._is_there():
            return results
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            _send(self._process.stdin, [todo[n] for n in small])
            reply = _receive(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            self._kill()
            return results
        if isinstance(reply, str):
            raise OutputError(reply)
        for n, finished in zip(small, reply, strict=True):
            results[n] = finished
        return results

    def _is_there(self) -> bool:
        if self._process is None and self._starts < _MOST_STARTS:
            self._starts += 1
            # A session of its own: Ctrl-C is for the run, which then ends its processes.
            options: dict[str, Any] = {"start_new_session": True} if os.name == "posix" else {}
            try:
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **options
                )
                assert self._process.stdin is not None
                _send(self._process.stdin, self._finishing)
            except OSError:  # no memory, or no more processes: the caller is slower and does the work
                self._kill()
        return self._process is not None

    def close(self) -> None:
        """End the process: it finishes what it has, if that takes no longer than masks do."""
        process = self._process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE_SECONDS)
        self._kill()

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def serve() -> None:
    """What the process does, until its input ends, which is when the run is gone, however that went."""
    import cv2

    from isicrt.engine.heap import keep_buffers, share_heaps

    share_heaps(1)
    keep_buffers()
    cv2.setNumThreads(1)
    tasks, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that a library prints may get between the replies
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        finishing = _receive(tasks)
        while True:
            todo = _receive(tasks)
            try:
                reply: list[Finished] | str = [finishing.finish(*one) for one in todo]
            except OutputError as error:
                reply = str(error)
            _send(replies, reply)
    os._exit(0)  # the run waits for it, and everything is written


def _send(stream: IO[bytes], message: Any) -> None:
    # Both sides are this program, and nobody else holds the pipe: pickle is safe here.
    pickle.dump(message, stream, protocol=pickle.HIGHEST_PROTOCOL)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    return pickle.load(stream)
