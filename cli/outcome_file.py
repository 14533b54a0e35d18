"""Where `isicrt segment` lists what became of every image, in JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import secrets
import stat
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from isicrt.engine.errors import DataError, SettingsError

if TYPE_CHECKING:
    from isicrt.engine.outcome import Outcome

COLUMNS = ("image", "mask", "status", "height", "width", "lesion_share", "kept", "error", "confidence", "note")


def checked_place(option: str, path: Path) -> tuple[Path, bool]:
    """Where links lead, and whether that is a device or a pipe (`/dev/stdout`), which is written to and not replaced.

    Raises:
        SettingsError: what stands there must not be replaced.
    """
    from isicrt.engine.sources import EXTENSIONS

    if path.suffix.lower() in EXTENSIONS:
        raise SettingsError(
            f"{option} {path}: that is an image's name, and the result would replace it. Choose another"
        )
    if path.name.startswith(".isicrt-"):
        raise SettingsError(f"{option} {path}: isicrt keeps its own files under such names. Choose another")
    try:
        mode = path.stat().st_mode
    except OSError:  # nothing there, or nothing that can be seen: writing tells
        return (path, False)
    if stat.S_ISDIR(mode):
        raise SettingsError(f"{option} {path}: cannot be written: it is a folder")
    stream = not stat.S_ISREG(mode) or path.parent == Path("/dev")
    return (path if stream else path.resolve(), stream)


def check_result_names(named: Mapping[str, Path | None]) -> None:
    """Of the options, by their names. Raise SettingsError where one is ``-``, or two name one file and no device or
    pipe."""
    given: dict[Path, str] = {}
    for option, path in named.items():
        if path is None:
            continue
        if path == Path("-"):  # which others take for the standard output
            raise SettingsError(f"{option} -: the standard output is /dev/stdout; a file of that name is not written")
        other = given.setdefault(path.resolve(), option)
        if other != option and (path.is_file() or not path.exists()):
            raise SettingsError(f"{other} and {option}: both are {path}; one would overwrite the other")


class OutcomeFile(ABC):
    """A list of outcomes. They are written as they come, so that a million of them need no memory; the file has a
    temporary name until `finish`. Without a path nothing is written."""

    def __init__(self, option: str, path: Path | None) -> None:
        self._option, self._path = option, path
        if path is None:
            return
        path, self._stream = checked_place(option, path)
        self._path = path
        self._temporary = path if self._stream else path.with_name(f".isicrt-{secrets.token_hex(8)}.tmp")
        try:
            # A file's name may be no UTF-8.
            self._file = self._temporary.open(
                "w" if self._stream else "x", encoding="utf-8", errors="surrogateescape", newline="\n"
            )
        except OSError as error:
            raise SettingsError(f"{option} {path}: cannot be written: {error.strerror}") from error

    def _write(self, text: str) -> None:
        try:
            self._file.write(text)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(
            f"{self._option} {self._path}: cannot be written: {error.strerror}. Masks that are there are whole. Put "
            "that right and run the same command again: it goes on where this one stopped"
        )

    @abstractmethod
    def _entry(self, outcome: Outcome) -> str:
        """What is written of an image."""

    @abstractmethod
    def _end(self, summary: Mapping[str, Any]) -> str:
        """What comes behind the last one."""

    def add(self, outcome: Outcome) -> None:
        """Append what became of an image. Raises DataError where it cannot be written."""
        if self._path is not None:
            self._write(self._entry(outcome))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Give the file its name. Raises DataError where it cannot be written."""
        if self._path is None:
            return
        self._write(self._end(summary))
        try:
            self._file.close()
            if not self._stream:
                self._temporary.replace(self._path)
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> OutcomeFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._path is not None:
            with suppress(OSError):  # of a full disk `finish` has spoken already
                self._file.close()
            if not self._stream:
                with suppress(OSError):
                    self._temporary.unlink(missing_ok=True)


class OutcomeJson(OutcomeFile):
    """``--json``: settings and versions, every outcome, and the run's counts."""

    def __init__(self, path: Path | None, head: Mapping[str, Any]) -> None:
        super().__init__("--json", path)
        self._first = True
        if path is not None:
            self._write(json.dumps(head, indent=1)[:-2] + ',\n "images": [')

    def _entry(self, outcome: Outcome) -> str:
        height, width = outcome.native_size or (None, None)
        entry = {
            "image": str(outcome.job.image),
            "mask": str(outcome.job.mask) if outcome.error is None else None,
            "height": height,
            "width": width,
            "skipped": outcome.skipped,
            "kept": outcome.kept,
            "lesion_share": None if outcome.lesion_fraction is None else round(outcome.lesion_fraction, 6),
            "error": outcome.error,
            "confidence": None if outcome.confidence is None else round(outcome.confidence, 4),
            "note": outcome.note,
        }
        start = "\n  " if self._first else ",\n  "
        self._first = False
        return start + json.dumps(entry)

    def _end(self, summary: Mapping[str, Any]) -> str:
        return f'\n ],\n "summary": {json.dumps(summary)}\n}}\n'


class OutcomeCsv(OutcomeFile):
    """``--csv``: a row of `COLUMNS` for each image, for spreadsheets; RFC 4180, but for the line's end."""

    def __init__(self, path: Path | None) -> None:
        super().__init__("--csv", path)
        if path is not None:
            self._write(self._row(COLUMNS))

    @staticmethod
    def _row(values: tuple[Any, ...]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(values)
        return text.getvalue()

    def _entry(self, outcome: Outcome) -> str:
        height, width = outcome.native_size or (None, None)
        share = outcome.lesion_fraction
        made = outcome.error is None
        return self._row(
            (
                outcome.job.image,
                outcome.job.mask if made else None,
                "failed" if not made else "skipped" if outcome.skipped else "done",
                height,
                width,
                None if share is None else round(share, 6),
                outcome.kept,
                outcome.error,
                None if outcome.confidence is None else round(outcome.confidence, 4),
                outcome.note,
            )
        )

    def _end(self, summary: Mapping[str, Any]) -> str:
        return ""
