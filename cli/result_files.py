"""The files that a command is told to write its results to: checked before anything is made, and written whole."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
import sys
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout, suppress
from pathlib import Path
from typing import IO

import click

from isicrt.engine.errors import DataError, SettingsError

_STDOUT = 1
_OPEN_FILE = re.compile(r"/(?:dev|proc/(?:self|thread-self))/fd/([0-9]{1,9})")
_MOST_LINKS = 40


def check_results(
    named: Mapping[str, Path | None],
    folders: Sequence[Path | None] = (),
    *,
    pictures: Mapping[str, Path | None] | None = None,
    reads: Sequence[Path | None] = (),
    make: bool = True,
    streams: bool = True,
) -> None:
    """Refuse now what would fail after minutes of work. Where a result is the standard output, what the command prints
    goes to the standard error from here on: the result alone is in the file or the pipe.

    Args:
        named: files to be written, by their options; None where an option was not given.
        folders: to be made; `named` may lie in them.
        pictures: as `named`, and images.
        reads: files that the command reads, such as a list of images.
        make: make `folders` here; else the command does.
        streams: whether a device, a pipe or the standard output will do.

    Raises:
        SettingsError: a file is ``-``, was given twice, is read by the command, is named like an image, a model or
            isicrt's own files, or nothing can be written there. Nothing was made, but for folders that can be made.
    """
    from isicrt.engine.input_names import IMAGE, check_no_input

    to_make = {Path(os.path.realpath(folder)): str(folder) for folder in folders if folder is not None}
    given: dict[Path | int, str] = {}
    places: list[tuple[Path, str]] = []
    for option, path in {**named, **(pictures or {})}.items():
        if path is None:
            continue
        name = f"{option} {path}"
        if path == Path("-"):  # which others take for the standard output
            raise SettingsError(f"{name}: the standard output is /dev/stdout; a file of that name is not written")
        target, stream = _target(path)
        if (other := given.setdefault(target, option)) != option and not (stream and isinstance(target, Path)):
            raise SettingsError(f"{other} and {option}: both are {path}; one would overwrite the other")
        for one in (path, target):  # a link may lead to a photograph
            if isinstance(one, Path):
                check_no_input(one, name=name, but=None if option in named else IMAGE)
        if any(file is not None and _is_same(target, file) for file in reads):
            raise SettingsError(f"{name}: that is what is read here, and the result would replace it. Choose another")
        if stream and not streams:
            raise SettingsError(f"{name}: it is read again later, and must be a file. Choose another")
        try:
            if isinstance(target, int):
                os.write(target, b"")
            elif not stream:
                _check_file(name, path, target, to_make)
                places.append((target.parent, name))
        except OSError as error:
            raise SettingsError(f"{name}: cannot be written: {error.strerror}") from error
    for folder, name in (*(to_make.items() if make else ()), *places):
        try:
            if make and folder in to_make:
                folder.mkdir(parents=True, exist_ok=True)
            if folder.is_dir():
                with tempfile.TemporaryFile(dir=folder):
                    pass
        except OSError as error:
            raise SettingsError(f"{name}: cannot be written: {error.strerror}") from error
    context = click.get_current_context(silent=True)
    if _STDOUT in given and context is not None:
        sys.stdout.flush()
        context.with_resource(redirect_stdout(sys.stderr))


def _check_file(name: str, path: Path, target: Path, to_make: Collection[Path]) -> None:
    if any(one.name.startswith(".isicrt-") for one in (path, target)):
        raise SettingsError(f"{name}: isicrt keeps its own files under such names. Choose another")
    if target.is_dir() or target in to_make:
        raise SettingsError(f"{name}: cannot be written: it is a folder")
    parents = {parent for folder in to_make for parent in (folder, *folder.parents)}
    if not target.parent.is_dir() and target.parent not in parents:
        folder = target.parent if path.is_symlink() else path.parent
        raise SettingsError(f"{name}: there is no folder {folder} to write it to")


def _is_same(target: Path | int, file: Path) -> bool:
    with suppress(OSError):
        return isinstance(target, Path) and target.samefile(file)
    return False


def check_figures(folder: Path, data: Iterable[Path]) -> None:
    """Refuse a folder of figures among images or masks: the next time the figures would be images without masks there.

    Args:
        folder: where figures are to be drawn.
        data: folders of images, and of masks.

    Raises:
        SettingsError: it is the folder of one, or lies below it.
    """
    if {found.resolve() for found in data} & {folder.resolve(), *folder.resolve().parents}:
        raise SettingsError(f"--figures {folder}: images or masks of the data set lie there. Choose another folder")


def write_result(path: Path, data: str | bytes, *, quiet: bool = False) -> None:
    """Write a file, whole or not at all, and say so unless `quiet`. A device or a pipe is written to, not replaced.

    Raises:
        DataError: it cannot be written.
    """
    from isicrt.engine.masks import replace_file

    if isinstance(data, str):
        data = data.encode("utf-8", sys.getfilesystemencodeerrors())  # a file's name may be no Unicode
    target, stream = _target(path)
    try:
        if isinstance(target, Path) and not stream:
            replace_file(target, data)
        else:
            with open(target, "wb", closefd=isinstance(target, Path)) as file:
                file.write(data)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
    if not quiet:
        say_written([path])


def say_written(paths: Iterable[Path]) -> None:
    """What `write_result` says, of files that were written before anything was printed."""
    for path in paths:
        click.echo(f"Wrote {path}")


class ResultFile:
    """A result that is written as it comes, so that a million lines need no memory. The file has a temporary name until
    `finish`; a device or a pipe is written to, not replaced.

    Raises, as its methods do:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._target, stream = _target(path)
        self._temporary: Path | None = None
        if isinstance(self._target, Path) and not stream:
            self._temporary, self._file = _open_temporary(self._target)
        else:
            self._file = _opened(self._target, "w")

    def write(self, text: str) -> None:
        self._file.write(text)

    def finish(self) -> None:
        """Give the file its name."""
        if self._temporary is None or os.name == "nt":  # which renames no open file
            self._file.close()
        else:  # its lock is kept until it has its name
            self._file.flush()
            os.close(os.dup(self._file.fileno()))  # a network file system may say only now that it is full
        if self._temporary is not None and isinstance(self._target, Path):
            self._temporary.replace(self._target)
            self._temporary = None  # another run's from here on

    def close(self) -> None:
        """Leave nothing behind of what was not finished."""
        if os.name == "nt":  # which removes no open file
            with suppress(OSError):
                self._file.close()
        with suppress(OSError):
            if self._temporary is not None:
                self._temporary.unlink(missing_ok=True)
        with suppress(OSError):  # of a full disk `finish` has spoken already
            self._file.close()


def _open_temporary(target: Path) -> tuple[Path, IO[str]]:
    """A name that is the target's, so that the next run finds and removes what a killed one left; where that cannot be
    had, and on Windows always, one that nobody else has, under which a killed run's file stays."""
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    path = target.with_name(f".isicrt-{name}.tmp")
    # Windows renames no open file, and a closed one has no lock.
    if os.name != "nt" and (file := _open_locked(path)) is not None:
        return path, file
    path = target.with_name(f".isicrt-{secrets.token_hex(8)}.tmp")
    return path, _opened(path, "x")


def _open_locked(path: Path) -> IO[str] | None:
    """A new file, whose lock this process has; None where another run has it, or no lock or file can be had. What a
    killed run left is removed and not written to: it may be somebody else's, with a mode of its own."""
    with suppress(OSError), ExitStack() as stack:
        # A link or a FIFO may lie there, which came with the folder.
        careful = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        with suppress(FileNotFoundError), open(os.open(path, careful), "ab") as left:
            if not _is_locked(left.fileno(), path):
                return None
            path.unlink()
        file = stack.enter_context(_opened(path, "x"))
        if _is_locked(file.fileno(), path):
            stack.pop_all()
            return file
        path.unlink()  # there are no locks
    return None


def _is_locked(file: int, path: Path) -> bool:
    """Whether this process has got the lock; False where there are no locks.

    Raises:
        OSError: another run has it, or has renamed or removed the file between our opening and our locking it.
    """
    from isicrt.engine.lock import lock

    held = lock(file)
    if not os.path.samestat(os.fstat(file), path.lstat()):
        raise BlockingIOError(f"{path}: another run's by now")
    return held


def _opened(target: Path | int, mode: str) -> IO[str]:
    return open(
        target,
        mode,
        encoding="utf-8",
        errors=sys.getfilesystemencodeerrors(),  # a file's name may be no Unicode
        newline="\n",
        closefd=isinstance(target, Path),
    )


def _target(path: Path) -> tuple[Path | int, bool]:
    """Where links lead, and whether that is written to as it is: a device, a pipe, or a file that this process has
    open, such as ``/dev/stdout``, by its number. Opened by its name, that would be written from its start on, over
    what else is printed to it."""
    if (number := _descriptor(path)) is not None:
        return number, True
    try:
        mode = path.stat().st_mode
    except OSError:  # nothing there, or nothing that can be seen: writing tells
        mode = stat.S_IFREG
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return Path(os.path.realpath(path)), False
    return path, True


def _descriptor(path: Path) -> int | None:
    path = path.absolute()
    for _ in range(_MOST_LINKS):
        if (match := _OPEN_FILE.fullmatch(str(path))) is not None:
            return int(match[1])
        try:
            path = path.parent / path.readlink()
        except OSError:  # no link
            return None
    return None
