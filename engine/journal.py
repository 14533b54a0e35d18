"""What became of every image, as JSON Lines in the folder of the masks: ``.isicrt-journal.jsonl``.

A line is one JSON object, appended whole with one call, so that it can be read while a run goes on. In order:

    {"run": ID, "format": 1, "started": ..., "version": ..., "model": {...}, "settings": {...}, "root": ...}
    {"writing": [MASK, ...]}                                         these masks are about to be written
    {"status": "done", "image": ..., "mask": ..., ...}               or "failed" with "reason", or "skipped"
    {"end": ID, "done": N, "failed": N, "skipped": N, ...}           absent where a run was killed

``image`` is relative to the run's ``root`` and ``mask`` to this folder. A name that is not UTF-8 is
``{"base64": ...}`` of its bytes. Of several lines about one mask the last counts. A torn last line, of a machine that
lost its power, is passed over.
"""

from __future__ import annotations

import base64
import bisect
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from isicrt.engine.errors import DataError
from isicrt.engine.output import OutputError, output_error

JOURNAL_NAME = ".isicrt-journal.jsonl"
FORMAT = 1
_LINE = 4096
"""Bytes that nearly every line fits into."""
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


class Journal:
    """Appends lines to the journal of a folder. Any thread may call it; one process at a time (see `FolderLock`).

    Raises:
        OutputError: it cannot be opened or, from `append`, written; then it ends with a whole line.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        try:
            self._file = os.open(folder / JOURNAL_NAME, flags, 0o644)
            self._size = os.fstat(self._file).st_size
            if self._size and not self._ends_with_newline():
                self._append(b"\n")
        except OSError as error:
            raise output_error(folder, error) from error

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add one line."""
        line = _ENCODER.encode(entry).encode("ascii") + b"\n"
        try:
            with self._lock:
                self._append(line)
        except OSError as error:
            raise output_error(self._folder, error) from error

    def sync(self) -> None:
        """Wait until the lines are on the disk."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise output_error(self._folder, error) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _append(self, line: bytes) -> None:
        try:
            written = os.write(self._file, line)
            while written < len(line):  # a disk that is nearly full takes a part and says no to the rest
                written += os.write(self._file, line[written:])
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(line)

    def _ends_with_newline(self) -> bool:
        os.lseek(self._file, -1, os.SEEK_END)
        return os.read(self._file, 1) == b"\n"


class JournalIndex:
    """Finds the last line about a mask. It keeps a number for each mask and reads the line from the file.

    Raises:
        OutputError: the journal is there and cannot be read, or is of a format that this isicrt does not know.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL_NAME
        self._lock = threading.Lock()
        # The offset of the line; its complement where a failure left no mask of ours.
        self._lines: dict[int, int] = {}
        self._starts: list[int] = []
        self.runs: list[Mapping[str, Any]] = []
        """The first line of each run."""
        try:
            self._file: int | None = os.open(self._path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except FileNotFoundError:
            self._file = None
            return
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be read: {error.strerror}") from error
        offset = 0
        with open(self._file, "rb", buffering=1 << 20, closefd=False) as lines:
            for line in lines:
                self._add(parse_line(line), offset)
                offset += len(line)

    def __len__(self) -> int:
        return len(self._lines)

    def wrote(self, mask: str) -> bool:
        """Whether a file of this name is one that a run wrote, or may have written before it was killed."""
        return self._lines.get(_number(mask), -1) >= 0

    def find(self, mask: str) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
        """The last line about a mask, and the first line of its run. Any thread may call it.

        Args:
            mask: relative to the folder.
        """
        offset = self._lines.get(_number(mask))
        if offset is None or self._file is None:
            return None
        offset = offset if offset >= 0 else ~offset
        entry = parse_line(self._read(offset))
        if "status" in entry and read_name(entry.get("mask")) != mask:
            return None
        run = bisect.bisect_right(self._starts, offset) - 1
        return (entry, self.runs[run]) if run >= 0 else None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _read(self, offset: int) -> bytes:
        line = b""
        with self._lock:
            os.lseek(self._file or 0, offset, os.SEEK_SET)
            while b"\n" not in line and (more := os.read(self._file or 0, _LINE)):
                line += more
        return line.partition(b"\n")[0]

    def _add(self, entry: Mapping[str, Any], offset: int) -> None:
        if "run" in entry:
            if entry.get("format") != FORMAT:
                raise OutputError(
                    f"{self._path}: format {entry.get('format')!r}; this isicrt reads {FORMAT}. "
                    "Use the isicrt that wrote it, or another --out"
                )
            self._starts.append(offset)
            self.runs.append(entry)
            return
        ended = entry.get("status") in ("done", "failed")  # what was skipped is as it was
        masks = [entry.get("mask")] if ended else entry.get("writing")
        for mask in masks if isinstance(masks, list) else []:
            with suppress(DataError):
                number = _number(read_name(mask))
                gone = entry.get("status") == "failed" and ("image_crc" in entry or self._lines.get(number, -1) < 0)
                self._lines[number] = ~offset if gone else offset


def parse_line(line: bytes) -> Mapping[str, Any]:
    """The object of a line; empty where the line is torn or is no object."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}


def write_name(name: str) -> str | dict[str, str]:
    """A file name as JSON that every reader takes."""
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8, as `os.fsdecode` brought them
        return {"base64": base64.b64encode(os.fsencode(name)).decode("ascii")}
    return name


def read_name(value: object) -> str:
    """The inverse of `write_name`. Raises DataError."""
    if isinstance(value, str):
        return value
    try:
        if isinstance(value, dict):
            return os.fsdecode(base64.b64decode(value["base64"], validate=True))
    except (KeyError, TypeError, ValueError):
        pass
    raise DataError(f"journal: {value!r} is no file name")


def read_journal(folder: str | os.PathLike[str]) -> Iterable[Mapping[str, Any]]:
    """Every whole line of a folder's journal, also of one that is being written.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    path = Path(folder) / JOURNAL_NAME
    try:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n") and (entry := parse_line(line)):
                    yield entry
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _number(mask: str) -> int:
    """64 bits for a name: a million names in a dict of names would need ten times the memory."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(mask), digest_size=8).digest(), "little")
