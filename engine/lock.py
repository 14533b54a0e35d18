"""Advisory locks of the system on files. A lock ends with its process, however that ends."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from isicrt.engine.output import OutputError, is_fatal

LOCK_NAME = ".isicrt-lock"
# What lies under the lock's name came with the folder: neither a FIFO nor a link to somebody's file may be opened.
_FLAGS = os.O_RDWR | os.O_CREAT
for _name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"):
    _FLAGS |= getattr(os, _name, 0)
_TAKEN = frozenset({errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK})
TRIES = 10
"""To lock a file that somebody else may remove, or whose folder they may, at the same moment."""


class LockTaken(Exception):
    """Somebody else holds the lock; the text says who."""


class NoLockFile(Exception):
    """What lies there is a link, or no plain file; the text says so."""


def lock(file: int) -> bool:
    """Take the lock on an open file; it is given back when the file is closed.

    Returns:
        Whether it is held; False where the file system has no such locks.

    Raises:
        BlockingIOError: somebody else holds it, be it in this process.
        OSError: the disk or its mount has failed, which says nothing about who holds it.
    """
    try:
        _lock(file)
    except OSError as error:
        if error.errno in _TAKEN:
            raise BlockingIOError(*error.args) from error
        if is_fatal(error):
            raise
        return False
    return True


class LockFile:
    """A file that is there while somebody holds the lock on it, and that says who.

    Where the file system knows no locks, `held` is False and it keeps nobody away.

    Args:
        path: in an existing folder.

    Raises:
        LockTaken: by another run.
        NoLockFile: something else lies there.
        OSError: no file can be made there, or it cannot be told whether it is locked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        for left in reversed(range(TRIES)):
            file = _opened(path)
            try:
                self.held = lock(file)
            except OSError as error:
                owner = _owner(file)
                os.close(file)
                if isinstance(error, BlockingIOError):
                    raise LockTaken(owner) from error
                raise
            # The holder before may have removed the file between our opening and our locking it. Some file systems
            # number a file anew each time.
            if not left or not self.held or _is(file, path):
                break
            os.close(file)
        self._file: int | None = file
        with suppress(OSError):  # it only serves the message; a full disk speaks elsewhere
            os.ftruncate(file, 0)
            os.write(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())

    def release(self) -> None:
        """Give the lock back and take the file away."""
        if self._file is None:
            return
        file, self._file, self.held = self._file, None, False
        if os.name == "nt":  # pragma: no cover
            os.close(file)  # which removes no open file
        with suppress(OSError):  # the folder may be gone
            self.path.unlink()
        if os.name != "nt":
            os.close(file)


class FolderLock(LockFile):
    """The lock on a folder of masks. See `LockFile`.

    Args:
        folder: an existing folder.

    Raises:
        OutputError: another run holds it (the message names its process), its file cannot be opened, or none can be
            made there.
    """

    def __init__(self, folder: Path) -> None:
        try:
            super().__init__(folder / LOCK_NAME)
        except LockTaken as owner:
            raise OutputError(
                f"{folder}: another run of isicrt is writing there ({owner}). Wait for it, or stop it, "
                "or choose another --out"
            ) from owner
        except NoLockFile as error:
            raise OutputError(str(error)) from error
        except OSError as error:
            path = folder / LOCK_NAME
            if isinstance(error, PermissionError) and os.path.lexists(path):
                raise OutputError(
                    f"{path}: cannot be opened: {error.strerror}. It may be the lock of another user's run: wait for "
                    "its end, or remove the file if there is none"
                ) from error
            raise OutputError(f"{folder}: nothing can be written there: {error.strerror}") from error


def _opened(path: Path) -> int:
    strange = f"{path}: it is a link, or no plain file: move it away"
    try:
        file = os.open(path, _FLAGS, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise NoLockFile(strange) from error
        raise
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise NoLockFile(strange)
    return file


def _is(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _owner(file: int) -> str:
    try:
        data = json.loads(os.read(file, 4096))
        return f"process {int(data['pid'])} on {data['host']}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "a process that has not said its number"


if os.name == "nt":  # pragma: no cover
    import msvcrt

    def _lock(file: int) -> None:
        # Far behind the text, which must stay readable.
        os.lseek(file, 1 << 30, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        os.lseek(file, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
