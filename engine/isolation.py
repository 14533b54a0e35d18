"""Decoders in processes of their own: one that crashes, hangs or eats memory costs its image and not the run.

Decoding JPEG and PNG inside the run's process is fast, and libjpeg-turbo and zlib have had the world's scrutiny. The
codecs behind TIFF, WebP and BMP, and what could take them long, are fed by a process that can be lost: a worker takes
one path at a time and gives back pixels at the model's size, which are few.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from isicrt.engine.errors import ImageError, SettingsError
from isicrt.engine.images import (
    MAX_PIXELS,
    RISKY_SIGNATURES,
    DamagedImageError,
    Decoded,
    FileStamp,
    decode_source,
    may_take_long,
    read_signature,
    read_source,
)
from isicrt.engine.import_path import NO_PYTHON, import_path, own_environment, own_python
from isicrt.engine.pixel_budget import BUDGET, LARGE_PIXELS

ISOLATE = ("auto", "always", "never")
DECODE_TIMEOUT = 60.0
"""Seconds for one image, unless said otherwise."""
LENGTH = struct.Struct("<I")
"""In front of each message between a run and its workers; a message is JSON, pixels follow it as they are."""
HELLO = {"hello": "isicrt"}
"""A worker's first message: whatever ends it before is no image's doing."""
_WITHOUT = "--isolate never decodes in the run's own process"
_LAST_WORDS = 200
"""Characters that are told of what a worker wrote which could not be started."""

# Not `-m`: the worker must find the isicrt that this process runs, and nothing in the current folder.
_START = (
    "import sys; max_pixels, *sys.path[:] = sys.argv[1:]; "
    "from isicrt.engine.decode_worker import main; main(int(max_pixels))"
)


class LargeImageError(MemoryError):
    """The image is so large that it has to wait for its turn, see `isicrt.engine.pixel_budget`."""


def _refuse_large(pixels: int) -> AbstractContextManager[None]:
    if pixels >= LARGE_PIXELS:
        raise LargeImageError
    return contextlib.nullcontext()


@dataclass(frozen=True)
class TrustedDecoder:
    """What an `ImageDecoder` decodes without a worker. It can be sent to another process."""

    every: bool
    """Every format; else JPEG and PNG, but for those that may take long."""
    max_pixels: int

    def __call__(self, path: str | os.PathLike[str], size: tuple[int, int], *, large: bool = True) -> Decoded | None:
        """See `isicrt.engine.images.decode_image`; None for what is for a worker.

        Args:
            path: of the file.
            size: (height, width).
            large: False: None for large images, too, which take turns in the process of the run.
        """
        # What a worker decodes it also reads: such files are large, and to read them here too costs as much again.
        if not self.every and _looks_risky(path):
            return None
        source = read_source(path)
        # What is no image at all meets no codec.
        if not self.every and (source.data.startswith(RISKY_SIGNATURES) or may_take_long(source.data)):
            return None
        if large:
            return decode_source(path, source, size, max_pixels=self.max_pixels)
        try:
            return decode_source(path, source, size, max_pixels=self.max_pixels, admit=_refuse_large)
        except ImageError as error:
            if isinstance(error.__cause__, LargeImageError):
                return None
            raise


class ImageDecoder:
    """Decodes images in this process or in workers. Any thread may call it; close it after the last call.

    Args:
        isolate: ``auto`` (all but JPEG and PNG in workers, and those that may take long; nothing in a program that has
            no Python beside it to start them with), ``always`` or ``never``.
        timeout: seconds that a worker may take for one image. In this process nothing can stop a decoder.
        max_pixels: larger images are refused.
        command: starts a worker; None for the one that isicrt has.

    Raises:
        SettingsError: an argument out of its range, or ``always`` where no worker can be started.
    """

    def __init__(
        self,
        isolate: str = "auto",
        *,
        timeout: float = DECODE_TIMEOUT,
        max_pixels: int = MAX_PIXELS,
        command: Sequence[str] | None = None,
    ) -> None:
        if isolate not in ISOLATE:
            raise SettingsError(f"isolate {isolate!r}: must be one of {', '.join(ISOLATE)}")
        if not timeout > 0 or max_pixels < 1:
            raise SettingsError(f"timeout ({timeout}) and max_pixels ({max_pixels}) must be above 0")
        python = own_python()
        if command is None and python is None:
            if isolate == "always":
                raise SettingsError(
                    f"isolate 'always': {NO_PYTHON}. 'auto' and 'never' decode in the program's own process"
                )
            isolate = "never"
        self.timeout = timeout
        self.trusted = None if isolate == "always" else TrustedDecoder(isolate == "never", max_pixels)
        """Of what is decoded without a worker; None where nothing is."""
        self._max_pixels = max_pixels
        self._command = list(command or (python or "", "-c", _START, str(max_pixels), *import_path()))
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._lock = threading.Lock()
        self._closed = False

    def __call__(self, path: str | os.PathLike[str], size: tuple[int, int]) -> Decoded:
        """See `isicrt.engine.images.decode_image`; also ImageError where a worker crashed or took too long."""
        decoded = None if self.trusted is None else self.trusted(path, size)
        return decoded or self._decode_in_worker(path, size)

    def _decode_in_worker(self, path: str | os.PathLike[str], size: tuple[int, int]) -> Decoded:
        with self._lock:
            if self._closed:
                raise ImageError(f"{os.fspath(path)}: the run is over")
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            try:
                worker = _Worker(self._command)
            except OSError as error:
                reason = f"the decoder's process cannot be started: {self._command[0]}: {error.strerror}. {_WITHOUT}"
                raise ImageError(f"{os.fspath(path)}: cannot be decoded: {reason}") from error
        with self._lock:
            self._busy.add(worker)
        try:
            decoded = worker.decode(path, size, self._max_pixels, self.timeout)
        except _WorkerLost as lost:
            message = f"{os.fspath(path)}: cannot be decoded: {lost}"
            # A worker that this object killed when it was closed says nothing about the image.
            if lost.again or self._closed:
                raise ImageError(message) from None
            raise DamagedImageError(message, read_source(path).stamp) from None
        finally:
            with self._lock:
                self._busy.discard(worker)
                keep = worker.is_usable() and not self._closed
                if keep:
                    self._idle.append(worker)
            if not keep:
                worker.kill()
        return decoded

    def close(self) -> None:
        """End the workers."""
        with self._lock:
            self._closed = True
            workers = [*self._idle, *self._busy]
            self._idle.clear()
        for worker in workers:
            worker.kill()

    def __enter__(self) -> ImageDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _looks_risky(path: str | os.PathLike[str]) -> bool:
    """Whether a file has a signature of `RISKY_SIGNATURES`; not asked of names that promise another."""
    named = os.fspath(path).lower().endswith((".jpg", ".jpeg", ".png"))
    return not named and read_signature(path).startswith(RISKY_SIGNATURES)


class _WorkerLost(Exception):
    """The worker is gone, and why; `again`: that may go better another time."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


class _Worker:
    """One process. Used by one thread at a time. Raises OSError where it cannot be started."""

    def __init__(self, command: Sequence[str]) -> None:
        # A session of its own: Ctrl-C is for the run, which then ends its workers.
        options: dict[str, Any] = {"start_new_session": True} if os.name == "posix" else {}
        self._errors = _scratch()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=own_environment(),
                **options,
            )
        except OSError:
            self._errors.close()
            raise
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        self._is_ready = False
        self._overdue = False

    def decode(self, path: str | os.PathLike[str], size: tuple[int, int], max_pixels: int, timeout: float) -> Decoded:
        absolute = str(Path(path).absolute())
        message: dict[str, Any] = {"path": absolute, "size": size, "max_pixels": max_pixels}
        try:
            reply, data = self._exchange(message, timeout)
            while "wants" in reply:
                with BUDGET.admit(int(reply["wants"])):
                    reply, data = self._exchange({}, timeout)
            stamp = FileStamp(**reply["stamp"]) if reply.get("stamp") else None
            if "error" in reply:
                error = os.fspath(path) + str(reply["error"]).removeprefix(absolute)
                raise ImageError(error) if stamp is None else DamagedImageError(error, stamp)
            pixels = np.frombuffer(data, np.uint8).reshape(*reply["shape"], 3)
            return Decoded(pixels, (int(reply["native"][0]), int(reply["native"][1])), stamp, reply.get("note"))
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            last_words = "" if self._is_ready else self._last_words()
            self.kill()
            if self._overdue:
                raise _WorkerLost(f"it took more than {timeout:g} s (--decode-timeout)", again=True) from None
            code = self._process.returncode
            if not self._is_ready:
                reason = f"the decoder's process cannot be started: it {_end(code)}{last_words}"
                raise _WorkerLost(f"{reason}. {_WITHOUT}", again=True) from error
            raise _WorkerLost(f"its decoder {_end(code)}", again=code == -getattr(signal, "SIGKILL", 0)) from error

    def _exchange(self, message: dict[str, Any], timeout: float) -> tuple[dict[str, Any], bytes]:
        """Send a message; the reply, and the pixels that follow it."""
        timer = threading.Timer(timeout, self._expire)
        timer.daemon = True
        timer.start()
        try:
            if not self._is_ready:
                if receive(self._from) != HELLO:
                    raise ValueError("not a worker")
                self._is_ready = True
                self._errors.close()
            send(self._to, message)
            reply = receive(self._from)
            height, width = reply.get("shape", (0, 0))
            return reply, read_exactly(self._from, height * width * 3)
        finally:
            timer.cancel()

    def _expire(self) -> None:
        self._overdue = True
        with contextlib.suppress(OSError):
            self._process.kill()

    def _last_words(self) -> str:
        with contextlib.suppress(OSError, ValueError):  # or another thread has ended it
            self._errors.seek(0)
            if lines := self._errors.read().decode(errors="replace").rstrip().splitlines():
                return f": {lines[-1][-_LAST_WORDS:]}"
        return ""

    def is_usable(self) -> bool:
        """Whether it can take another image: it runs, and no timer that came late has told it to end."""
        return self._process.poll() is None and not self._overdue

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()
        for pipe in (self._to, self._from, self._errors):
            with contextlib.suppress(OSError, ValueError):
                pipe.close()


def _scratch() -> IO[bytes]:
    """For what a worker writes before it is ready: a file, for somebody would have to empty a pipe."""
    try:
        return tempfile.TemporaryFile()
    except OSError:  # there is no folder for it
        return Path(os.devnull).open("r+b")


def send(stream: IO[bytes], message: dict[str, Any], pixels: bytes = b"") -> None:
    """Write a message, and pixels after it."""
    data = json.dumps(message).encode("ascii")
    stream.write(LENGTH.pack(len(data)) + data + pixels)
    stream.flush()


def receive(stream: IO[bytes]) -> dict[str, Any]:
    """Read a message. Raises EOFError where the other side is gone, ValueError on rubbish."""
    message = json.loads(read_exactly(stream, LENGTH.unpack(read_exactly(stream, LENGTH.size))[0]))
    if not isinstance(message, dict):
        raise ValueError("not a message")
    return message


def read_exactly(stream: IO[bytes], count: int) -> bytes:
    """So many bytes. Raises EOFError where they end before."""
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _end(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            return f"crashed ({signal.Signals(-code).name})"
        except ValueError:
            return f"crashed (signal {-code})"
    return f"ended (exit code {code})"
