"""Where `isicrt segment` lists what became of every image, in JSON or CSV."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from isicrt.cli.result_files import ResultFile
from isicrt.engine.csv_row import csv_row
from isicrt.engine.errors import DataError, SettingsError

if TYPE_CHECKING:
    from isicrt.engine.outcome import Outcome

COLUMNS = ("image", "mask", "status", "height", "width", "lesion_share", "kept", "error", "confidence", "note")


class OutcomeFile(ABC):
    """A list of outcomes, written as they come. Without a path nothing is written."""

    def __init__(self, option: str, path: Path | None) -> None:
        self.path = path
        self._name, self._file = f"{option} {path}", None
        self.problem: DataError | None = None
        """Why it could not be written. Nothing more is then."""
        if path is None:
            return
        try:
            self._file = ResultFile(path)
        except OSError as error:
            raise SettingsError(f"{self._name}: cannot be written: {error.strerror}") from error

    def _write(self, text: str) -> None:
        if self._file is not None:
            try:
                self._file.write(text)
            except OSError as error:
                raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> DataError:
        self.problem = DataError(
            f"{self._name}: cannot be written: {error.strerror}. Masks that are there are whole. Put that right and "
            "run the same command again: it goes on where this one stopped"
        )
        return self.problem

    @abstractmethod
    def _entry(self, outcome: Outcome) -> str:
        """What is written of an image."""

    @abstractmethod
    def _end(self, summary: Mapping[str, Any]) -> str:
        """What comes behind the last one."""

    def add(self, outcome: Outcome) -> None:
        """Append what became of an image, or see `problem`: it has ended, and other lists and counts are to say so."""
        if self._file is not None and self.problem is None:
            with suppress(DataError):
                self._write(self._entry(outcome))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Give the file its name. Raises DataError where it cannot be written, or something of it could not."""
        if self._file is None:
            return
        if self.problem is not None:
            raise self.problem
        self._write(self._end(summary))
        try:
            self._file.finish()
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> OutcomeFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


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
            self._write(csv_row(COLUMNS))

    def _entry(self, outcome: Outcome) -> str:
        height, width = outcome.native_size or (None, None)
        share = outcome.lesion_fraction
        made = outcome.error is None
        return csv_row(
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
