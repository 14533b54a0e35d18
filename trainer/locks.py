"""Locks of the system on files. A lock ends with its process, however that ends."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from isicrt.engine.errors import SettingsError

LOCK = ".isicrt-training"
"""The file in a run folder that is locked while the run trains. It says who trains."""
# Neither a FIFO nor a link to somebody's file that came with the folder may be opened.
_FLAGS = os.O_RDWR | os.O_CREAT
for _name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"):
    _FLAGS |= getattr(os, _name, 0)
_TAKEN = frozenset({errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK})


def lock(file: int) -> bool:
    """Take the lock on an open file; it is given back when the file is closed.

    Returns:
        Whether it is held; False where the file system, or Windows, has no such locks.

    Raises:
        BlockingIOError: somebody else holds it, be it in this process.
    """
    try:
        _flock(file)
    except OSError as error:
        if error.errno in _TAKEN:
            raise BlockingIOError(*error.args) from error
        return False
    return True


@contextmanager
def locked_run(out: Path) -> Iterator[None]:
    """The run folder, made if it is not there, for one training at a time; where there are no locks, for all.

    A folder that was made here and stayed empty is taken away again.

    Raises:
        SettingsError: another training runs in it, or it cannot be written.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        path, file = out / LOCK, _locked_file(out)
        try:
            yield
        finally:
            if os.name == "nt":  # which removes no open file, and has no lock to keep
                os.close(file)
            with suppress(OSError):  # the folder may be gone
                path.unlink()
            if os.name != "nt":
                os.close(file)
    finally:
        for folder in made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _locked_file(out: Path) -> int:
    path = out / LOCK
    tries = 0
    while True:
        try:
            out.mkdir(parents=True, exist_ok=True)
            file = os.open(path, _FLAGS, 0o644)
        except OSError as error:
            tries += 1
            if isinstance(error, FileNotFoundError) and tries < 10:  # another run took its empty folder away
                continue
            raise SettingsError(
                f"{out}: the run folder cannot be written: {error.strerror}. Name another with --out"
            ) from error
        try:
            held = lock(file)
        except BlockingIOError as error:
            owner = _owner(file)
            os.close(file)
            raise SettingsError(
                f"{out}: another training is running in this folder ({owner}). Wait for it, or stop it, or name "
                "another folder with --out"
            ) from error
        # The holder before may have removed the file between our opening and our locking it.
        tries += 1
        with suppress(FileNotFoundError):
            # Some file systems number a file anew each time.
            if not held or tries >= 10 or os.path.samestat(os.fstat(file), path.stat()):
                break
        os.close(file)
    with suppress(OSError):  # it only serves the message above
        os.ftruncate(file, 0)
        os.write(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
    return file


def _owner(file: int) -> str:
    try:
        data = json.loads(os.read(file, 4096))
        return f"process {int(data['pid'])} on {data['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "a process that has not said its number"


if os.name == "nt":  # pragma: no cover

    def _flock(file: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

else:
    import fcntl

    def _flock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
