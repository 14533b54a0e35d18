"""A file that is locked while a run goes on."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from isicrt.engine.journal import JOURNAL_NAME
from isicrt.engine.ledger import Ledger
from isicrt.engine.lock import LOCK_NAME, FolderLock, LockFile, LockTaken, NoLockFile
from isicrt.engine.output import OutputError


def test_one_holder_who_says_its_number(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = LockFile(path)
    assert first.held
    with pytest.raises(LockTaken, match=f"process {os.getpid()} on "):
        LockFile(path)
    first.release()
    assert not path.exists()
    first.release()
    second = LockFile(path)
    first.release()  # which has nothing any more, and takes nothing from the second
    assert path.exists()
    second.release()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_where_there_are_no_locks_nobody_is_kept_away_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    locks = [LockFile(tmp_path / "lock") for _ in range(2)]
    assert [one.held for one in locks] == [False, False]
    for one in locks:
        one.release()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_is_not_one_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    import fcntl

    def lose(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as failing:
        failing.setattr("isicrt.engine.lock._lock", lose)
        with pytest.raises(OSError, match=os.strerror(code)):
            LockFile(tmp_path / "lock")
        with pytest.raises(OutputError, match=f"nothing can be written there: {os.strerror(code)}"):
            FolderLock(tmp_path)
    LockFile(tmp_path / "lock").release()  # nothing is open that had it
    FolderLock(tmp_path).release()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            LOCK_NAME,
            "cannot be opened: Permission denied. It may be the lock of another user's run: wait for its end, ",
        ),
        (JOURNAL_NAME, "cannot be written any more: Permission denied. Masks that are there are whole. Make it wri"),
    ],
)
def test_a_file_of_another_user_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    (tmp_path / name).touch()
    really_open = os.open

    def refuse(path: os.PathLike[str], flags: int, *args: Any) -> int:
        if Path(path).name == name and flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return really_open(path, flags, *args)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        with pytest.raises(OutputError, match=f"^{re.escape(f'{tmp_path / name}: {message}')}"):
            Ledger(tmp_path, [], model={}, settings={})
    Ledger(tmp_path, [], model={}, settings={}).close()


def test_a_file_system_that_numbers_a_file_anew_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "samestat", lambda *_: False)
    held = LockFile(tmp_path / "lock")
    assert held.held
    held.release()


def test_the_lock_of_a_file_that_its_holder_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, flock = tmp_path / "lock", __import__("fcntl").flock
    removed: list[int] = []

    def late(file: int, how: int) -> None:
        flock(file, how)
        if not removed:  # the holder before goes between our opening and our locking
            removed.append(os.fstat(file).st_ino)
            path.unlink()
            path.write_bytes(b"")

    monkeypatch.setattr("fcntl.flock", late)
    held = LockFile(path)
    with pytest.raises(LockTaken):
        LockFile(path)
    held.release()
    assert removed


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_what_is_no_lock(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "lock"
    if kind == "link":
        path.symlink_to("elsewhere")
    else:
        path.mkdir()
    with pytest.raises(NoLockFile if kind == "link" else IsADirectoryError):
        LockFile(path)
    assert not (tmp_path / "elsewhere").exists()
