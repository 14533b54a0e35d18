"""The folder that a build writes to: its files are whole or absent, and never belong to two builds."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from isicrt.engine.card import ModelCard
from isicrt.engine.errors import BuildError, ModelError
from isicrt.engine.plan import read_plan, write_plan
from isicrt.engine.rebuild import onnx_beside

ONNX_NAME, PLAN_NAME = "model.onnx", "model.plan"
_PREFIX, _OLD_PLAN, _LOCK = ".isicrt-", "old.plan", "lock"
_TRIAL = re.compile(rf"{re.escape(_PREFIX)}[0-9a-f]{{16}}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the folder of a file; what the file system then refuses is a BuildError that names the file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:  # of a write that fails it does not know the name itself
        raise BuildError(f"{path}: cannot be written: {error.strerror or error}") from error


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Inside, no other build of this machine is, in this folder; it is waited for. Not where the file system knows no
    locks."""
    lock = _locked(folder, os.O_RDONLY, wait=True)
    try:
        yield
    finally:
        _unlock(lock)


@contextmanager
def trial_file(out: Path, name: str) -> Iterator[Path]:
    """Where a file may be written and tried before it is kept: in a hidden folder in `out`, removed afterwards.

    Such folders of builds that were killed are removed too.

    Raises:
        BuildError: there can be no such folder.
    """
    folder = out / f"{_PREFIX}{secrets.token_hex(8)}"  # known before it is there: a signal may come at any time
    lock = None
    try:
        with writing(out / name), alone(out):
            with suppress(OSError):  # they are in nobody's way
                _remove_abandoned(out)
            folder.mkdir(mode=0o700)
            lock = _locked(folder / _LOCK, os.O_RDWR | os.O_CREAT)
        yield folder / name
    finally:
        _unlock(lock)  # first: NFS keeps a file that is open
        shutil.rmtree(folder, ignore_errors=True)


def replace_both(onnx: Path, content: bytes, plan: Path, card: ModelCard, engine: bytes) -> None:
    """Write an ONNX file and the plan that was built of it, in place of those of an earlier build.

    Both are written in full beside their places first. Then the old plan goes, the new ONNX file takes its place, and
    the new plan follows: whatever ends the process in between leaves an ONNX file alone, old or new, which runs
    everywhere and of which the plan can be built. An old plan beside a new ONNX file would be taken for its own.

    Args:
        onnx: where `content` goes.
        plan: where the plan goes, in the same folder.
        card: see `isicrt.engine.plan.write_plan`.
        engine: what the builder serialised.

    Raises:
        BuildError: one of them cannot be written. The files of the earlier build are as they were, unless the plan
            alone could not take its place.
    """
    with trial_file(onnx.parent, onnx.name) as new_onnx:
        new_plan, old_plan = new_onnx.with_name(plan.name), new_onnx.with_name(_OLD_PLAN)
        with writing(onnx):
            new_onnx.write_bytes(content)
        with writing(plan):
            write_plan(new_plan, card, engine)
            if plan.is_dir():
                raise IsADirectoryError(0, "a folder is in its place")
        with alone(onnx.parent):
            try:
                with writing(plan), suppress(FileNotFoundError):
                    plan.rename(old_plan)
                with writing(onnx):
                    new_onnx.replace(onnx)
            except BaseException:
                if new_onnx.exists() and old_plan.exists():
                    old_plan.replace(plan)
                raise
            with writing(plan):
                new_plan.replace(plan)


def _remove_abandoned(out: Path) -> None:
    """Remove the hidden folders of builds that were killed. A plan that one was about to replace goes back first, if
    it is of the ONNX file there."""
    for folder in [path for path in out.iterdir() if _TRIAL.fullmatch(path.name) and not path.is_symlink()]:
        # Of a file, which NFS knows from machine to machine, and a folder's not.
        lock = _locked(folder / _LOCK, os.O_RDWR)
        if lock is None:  # a living build has it; or nobody can say
            continue
        old, plan = folder / _OLD_PLAN, out / PLAN_NAME
        with suppress(ModelError, OSError):
            if old.exists() and not plan.exists() and onnx_beside(read_plan(old)[0], plan):
                old.rename(plan)
        _unlock(lock)
        shutil.rmtree(folder, ignore_errors=True)


def _locked(path: Path, flags: int, *, wait: bool = False) -> int | None:
    """The system's lock on a file or a folder itself, which ends with its process; None where it is taken, or there is
    no such lock, or no such file."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        file = os.open(path, flags, 0o600)
    except OSError:  # whoever writes there is told why he cannot
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException as error:
        os.close(file)
        if isinstance(error, OSError):
            return None
        raise
    return file


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)
