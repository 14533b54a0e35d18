"""The files that a module's own command writes its result to: looked at before the work, and written whole after it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from isicrt.engine.errors import SettingsError
from isicrt.engine.input_names import check_no_input
from isicrt.engine.masks import replace_file


def check_places(*files: Path | None, but: str | None = None) -> None:
    """Refuse now what would be found out after hours, or would replace an image or a model.

    Args:
        files: of the command's options; None where one was not given.
        but: see `check_no_input`.

    Raises:
        SettingsError: one of them is named like an image or a model, there is no folder for it, or nothing can be
            written into that.
    """
    for file in files:
        if file is None or _is_stream(file):
            continue
        for one in (file, file.resolve()):  # a link may lead to a photograph
            check_no_input(one, but=but)
        if file.is_dir():
            raise SettingsError(f"{file}: is a folder")
        folder = file.resolve().parent  # a link's result goes where it leads
        if not folder.is_dir():
            raise SettingsError(
                f"{file}: there is no folder {folder if file.is_symlink() else file.parent} to write it to"
            )
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise SettingsError(f"{file}: cannot be written: {error.strerror}") from error


def write_whole(file: Path | None, text: str) -> None:
    """Write a file, whole or not at all; nothing where None. A device or a pipe is written to, not replaced.

    Raises:
        OSError: it names the file.
    """
    if file is None:
        return
    if _is_stream(file):
        file.write_text(text, encoding="utf-8")
    else:
        replace_file(file.resolve(), text.encode())  # where a link leads, and not in its place


def _is_stream(file: Path) -> bool:
    return file.parent == Path("/dev") or (file.exists() and not file.is_file() and not file.is_dir())
