"""One training at a time in a run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from isicrt.engine.errors import SettingsError
from isicrt.engine.lock import TRIES, LockFile, LockTaken, NoLockFile

LOCK = ".isicrt-training"
"""The file in a run folder that is locked while the run trains. It says who trains."""


@contextmanager
def locked_run(out: Path) -> Iterator[None]:
    """The run folder, made if it is not there, for one training at a time; where there are no locks, for all.

    A folder that was made here and stayed empty is taken away again.

    Raises:
        SettingsError: another training runs in it, or it cannot be written.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        held = _locked(out)
        try:
            yield
        finally:
            held.release()
    finally:
        for folder in made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _locked(out: Path) -> LockFile:
    for left in reversed(range(TRIES)):
        try:
            out.mkdir(parents=True, exist_ok=True)
            return LockFile(out / LOCK)
        except LockTaken as owner:
            raise SettingsError(
                f"{out}: another training is running in this folder ({owner}). Wait for it, or stop it, or name "
                "another folder with --out"
            ) from owner
        except NoLockFile as error:
            raise SettingsError(str(error)) from error
        except OSError as error:
            if isinstance(error, FileNotFoundError) and left:  # another run took its empty folder away
                continue
            raise SettingsError(
                f"{out}: the run folder cannot be written: {error.strerror}. Name another with --out"
            ) from error
    raise AssertionError("the last try returns or raises")
