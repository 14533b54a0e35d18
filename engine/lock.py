"""One run at a time in an output folder. The lock ends with its process, however that ends."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from isicrt.engine.output import OutputError

LOCK_NAME = ".isicrt-lock"
_STRANGE = "{path}: it is a link, or no plain file: move it away"
# What lies under the lock's name came with the folder: neither a FIFO nor a link to somebody's file may be opened.
_FLAGS = os.O_RDWR | os.O_CREAT
for _name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"):
    _FLAGS |= getattr(os, _name, 0)
_TAKEN = frozenset({errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK})
_UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


class FolderLock:
    """The lock on a folder: an advisory lock of the system on a file that says who holds it.

    Where the file system knows no locks, `held` is False and the run goes on without one.

    Args:
        folder: an existing folder.

    Raises:
        OutputError: another run holds it (the message names its process), or no file can be made there.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_NAME
        self.held = True
        while True:
            try:
                self._file = os.open(self.path, _FLAGS, 0o644)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENXIO):
                    raise OutputError(_STRANGE.format(path=self.path)) from error
                raise OutputError(f"{folder}: nothing can be written there: {error.strerror}") from error
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                os.close(self._file)
                raise OutputError(_STRANGE.format(path=self.path))
            try:
                _lock(self._file)
            except OSError as error:
                owner = _owner(self._file)
                os.close(self._file)
                if error.errno in _UNSUPPORTED:
                    self.held = False
                    return
                if error.errno not in _TAKEN:
                    raise OutputError(f"{self.path}: cannot be locked: {error.strerror}") from error
                raise OutputError(
                    f"{folder}: another run of isicrt is writing there ({owner}). Wait for it, or stop it, "
                    "or choose another --out"
                ) from error
            # The holder before may have removed the file between our opening and our locking it.
            try:
                if os.path.samestat(os.fstat(self._file), self.path.stat()):
                    break
            except FileNotFoundError:
                pass
            os.close(self._file)
        with suppress(OSError):  # it only serves the message above; a full disk speaks at the journal
            os.ftruncate(self._file, 0)
            os.write(self._file, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())

    def release(self) -> None:
        """Give the folder back and take the file away."""
        if self.held:
            self.held = False
            with suppress(OSError):  # the folder may be gone; Windows keeps a file that is open
                self.path.unlink()
            os.close(self._file)


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
