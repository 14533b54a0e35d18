"""The files that a command is told to write its results to: checked before the work begins, and written whole."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from isicrt.engine.errors import DataError, SettingsError


def check_results(files: Sequence[Path], folders: Sequence[Path] = (), *, pictures: Sequence[Path] = ()) -> None:
    """Refuse now what would fail after minutes of work.

    Args:
        files: to be written into folders that are there; for each of a command's options, where it was given.
        folders: to be made.
        pictures: as `files`, and images.

    Raises:
        SettingsError: one file given twice, a folder that is not there, a place where nothing can be written, or text
            in a file that is named like an image.
    """
    from isicrt.engine.sources import EXTENSIONS

    for path in files:
        if path.suffix.lower() in EXTENSIONS:
            raise SettingsError(f"{path}: that is an image's name, and the result would replace it. Choose another")
    files = [*files, *pictures]
    places = [path.resolve() for path in files]
    for n, path in enumerate(files):
        if places[n] in places[:n]:
            raise SettingsError(f"{path}: given for two kinds of result; one would overwrite the other")
        if _is_stream(path):
            continue
        if path.is_dir():
            raise SettingsError(f"{path}: cannot be written: it is a folder")
        if not path.parent.is_dir():
            raise SettingsError(f"{path}: there is no folder {path.parent} to write it to")
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for folder in [*(path.parent for path in files if not _is_stream(path)), *folders]:
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        raise SettingsError(f"{error.filename or 'result'}: cannot be written: {error.strerror}") from error


def write_result(path: Path, text: str, *, quiet: bool = False) -> None:
    """Write a file, whole or not at all, and say so unless `quiet`. A device or a pipe is written to, not replaced.

    Raises:
        DataError: it cannot be written.
    """
    from isicrt.engine.masks import replace_file

    data = text.encode("utf-8", "surrogateescape")  # a file's name may be no UTF-8
    try:
        if _is_stream(path):
            path.write_bytes(data)
        else:
            replace_file(path.resolve(), data)  # where a link leads, and not in its place
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
    if not quiet:
        say_written([path])


def say_written(paths: Iterable[Path]) -> None:
    """What `write_result` says, of files that were written before anything was printed."""
    for path in paths:
        click.echo(f"Wrote {path}")


def _is_stream(path: Path) -> bool:
    """Whether a device or a pipe stands there, such as `/dev/stdout`, whatever that is at the moment."""
    return path.parent == Path("/dev") or (path.exists() and not path.is_file() and not path.is_dir())
