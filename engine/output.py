"""The folder that a run writes: whole files or none, and a run that ends where the folder as a whole has failed."""

from __future__ import annotations

import copy
import ctypes
import errno
import os
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from isicrt.engine.errors import DataError

FSYNC = ("never", "batch", "always")
"""When files reach the disk, see `OutputFolder`."""

OVERLAYS_NAME = ".isicrt-overlays"
"""Tells a folder of overlays, as the journal tells a folder of masks: their images are not to be segmented."""

_TEMPORARY = re.compile(r"\.isicrt-([0-9a-f]{12})-[0-9a-f]{8}\.tmp")

# What is wrong with the disk, the mount or the process, and not with one file.
_FATAL = {
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EROFS", "EIO", "ESTALE", "ENOTCONN", "ENODEV", "ENXIO", "EFBIG"),
        *("EMFILE", "ENFILE", "EHOSTDOWN", "ETIMEDOUT", "EREMOTEIO"),
    )
    if hasattr(errno, name)
}
_ADVICE = {
    errno.ENOSPC: "Make room",
    errno.EDQUOT: "Make room in your quota",
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f)",
    errno.EROFS: "Make it writable",
    errno.EACCES: "Make it writable",
    errno.EPERM: "Make it writable",
    errno.EMFILE: "Raise the limit on open files (ulimit -n)",
}


class OutputError(DataError):
    """The place that a run writes to has failed as a whole: full, read-only, gone, or taken. It ends the run."""


class BackgroundSync:
    """Calls `OutputFolder.sync` now and then in a thread of its own, so that no mask waits for the disk.

    Args:
        output: what to sync.
        seconds: between two calls.
    """

    def __init__(self, output: OutputFolder, seconds: float = 10.0) -> None:
        self._output = output
        self._seconds = seconds
        self._next = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._error: OutputError | None = None

    def now_and_then(self) -> None:
        """Start a sync if it is time for one and none is under way. Raises the OutputError of an earlier one."""
        if not self._output.syncs or (time.monotonic() < self._next and self._error is None):
            return
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._thread is None or not self._thread.is_alive():
                self._next = time.monotonic() + self._seconds
                self._thread = threading.Thread(target=self._run, name="isicrt-sync", daemon=True)
                self._thread.start()

    def finish(self) -> None:
        """Sync now, after one that is under way. Raises its OutputError, or that of an earlier one: the system tells of
        what could not be written once."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        self._output.sync()

    def _run(self) -> None:
        try:
            self._output.sync()
        except OutputError as error:
            self._error = error


def is_fatal(error: OSError) -> bool:
    """Whether an error in writing one file says that no other can be written either."""
    return error.errno in _FATAL


def output_error(folder: Path, error: OSError) -> OutputError:
    """The error that ends a run, with what to do."""
    advice = _ADVICE.get(error.errno or 0, "Bring it back")
    return OutputError(
        f"{folder}: cannot be written any more: {error.strerror or error}. Masks that are there are whole. "
        f"{advice} and run the same command again: it goes on where this one stopped"
    )


class OutputFolder:
    """Writes files below a folder under a temporary name and renames them: each is whole or absent.

    After a kill nothing but temporary files can be left, which the next run in the folder removes (see
    `is_leftover`). Against a power cut: with ``never`` the system writes to the disk when it likes; with ``batch``
    `sync` is called now and then and at the end of a run; with ``always`` each file is on the disk before it has its
    name.

    Args:
        folder: exists. When it is replaced by another one, such as the mount point below a lost mount, that is found.
        run: 12 hexadecimal digits, which temporary names carry.
        fsync: one of `FSYNC`.
        beside: another folder whose files `sync` is to bring to the disk as well, such as that of the overlays; it may
            be missing.

    Raises:
        OutputError: it cannot be looked at.
    """

    def __init__(self, folder: Path, run: str, fsync: str = "never", beside: Path | None = None) -> None:
        self.path = folder
        self.run = run
        self._fsync = fsync
        self._beside = beside
        self._prefix = f".isicrt-{run}-00"
        self._identity = self._look()

    def write(self, path: Path, data: bytes) -> None:
        """Write a file below the folder; parents are made.

        Raises:
            OSError: this file cannot be written; nothing is left behind.
            OutputError: no file can be.
        """
        self.check()
        temporary = path.with_name(f"{self._prefix}{secrets.token_hex(3)}.tmp")
        try:
            try:
                file = os.open(temporary, _CREATE, 0o666)
            except FileNotFoundError:
                self._make(path.parent)
                file = os.open(temporary, _CREATE, 0o666)
            try:
                try:
                    write_all(file, data)
                    if self._fsync == "always":
                        os.fsync(file)
                finally:
                    os.close(file)
                temporary.replace(path)
            except BaseException:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            if is_fatal(error) or not os.access(self.path, os.W_OK | os.X_OK):
                raise output_error(self.path, error) from error
            self.check()
            raise

    def of_process(self, number: int) -> OutputFolder:
        """The same folder for a process, whose temporary files can be told from the others'; `number` from 0 to 254."""
        other = copy.copy(self)
        other._prefix = f".isicrt-{self.run}-{number % 255 + 1:02x}"
        return other

    def remove_temporary(self, folders: Iterable[Path]) -> None:
        """Remove what a process that was lost has left in these folders."""
        for folder in folders:
            with suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith(self._prefix):
                        os.unlink(entry.path)  # noqa: PTH108

    def check(self) -> None:
        """Raise OutputError unless the folder is there and is the one it was."""
        if self._look() != self._identity:
            raise output_error(self.path, OSError(errno.ENODEV, "it was replaced by another folder, or unmounted"))

    @property
    def syncs(self) -> bool:
        """Whether `sync` does anything."""
        return self._fsync != "never"

    def sync(self) -> None:
        """Bring what was written to the disk, unless the policy is ``never``. Raises OutputError."""
        if not self.syncs:
            return
        for folder in filter(None, (self.path, self._beside)):
            try:
                if folder is self.path or self._is_elsewhere(folder):
                    sync_file_system(folder)
            except OSError as error:
                raise output_error(folder, error) from error

    def _is_elsewhere(self, folder: Path) -> bool:
        """Whether a folder is there and on another file system than this one."""
        try:
            return os.stat(folder).st_dev != self._identity[0]  # noqa: PTH116
        except FileNotFoundError:
            return False

    def _look(self) -> tuple[int, int]:
        try:
            status = os.stat(self.path)  # noqa: PTH116 (once for each mask)
        except OSError as error:
            raise output_error(self.path, error) from error
        return status.st_dev, status.st_ino

    def _make(self, folder: Path) -> None:
        """Make a folder below this one, which itself is never made again: where it was mounted, something else is."""
        if folder == self.path:
            self.check()
            return
        try:
            folder.mkdir()
        except FileExistsError:
            if not folder.is_dir():
                raise
        except FileNotFoundError:
            if folder == folder.parent:
                raise
            self._make(folder.parent)
            folder.mkdir(exist_ok=True)


_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def make_folder(folder: Path) -> None:
    """Make an output folder with its parents, and find out whether it can be written. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: the folder cannot be made: {error.strerror}. Choose another one") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{folder}: the folder cannot be written. Make it writable, or choose another one")


def is_leftover(name: str, runs: set[str]) -> bool:
    """Whether a file is a temporary one of these runs, which are over."""
    match = _TEMPORARY.fullmatch(name)
    return match is not None and match[1] in runs


def clean_names(folder: Path, runs: set[str]) -> Iterator[str]:
    """Names in a folder, without the temporary files of these runs, which are over: they are removed.

    Raises OutputError.
    """
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_leftover(entry.name, runs):
                    with suppress(OSError):
                        os.unlink(entry.path)  # noqa: PTH108
                else:
                    yield entry.name
    except FileNotFoundError:
        pass
    except NotADirectoryError:
        pass  # each mask below it fails with this reason
    except OSError as error:
        raise OutputError(f"{folder}: cannot be read: {error.strerror}") from error


def write_all(file: int, data: bytes) -> None:
    """`os.write` until everything is written."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def sync_file_system(folder: Path) -> None:
    """Wait until the file system of a folder has everything on its disk; of the whole machine where that is all
    that can be asked for."""
    if not hasattr(os, "sync"):  # Windows: NTFS journals names, and the journal's CRCs find torn contents
        return
    try:
        syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):
        os.sync()
        return
    file = os.open(folder, os.O_RDONLY)
    try:
        if syncfs(file):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(file)
