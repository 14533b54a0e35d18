"""What became of every image, as JSON Lines in the folder of the masks: ``.isicrt-journal.jsonl``.

A line is one JSON object, appended whole, several with one call, so that it can be read while a run goes on. In order:

    {"run": ID, "format": 1, "started": ..., "version": ..., "model": {...}, "settings": {...}, "root": ..., ...}
    {"writing": [MASK, ...]}                                         these masks are about to be written
    {"status": "done", "image": ..., "mask": ..., ...}               or "failed" with "reason", or "skipped"
    {"end": ID, "done": N, "failed": N, "skipped": N, ...}           absent where a run was killed

``image`` is relative to the run's ``root``, and ``mask`` to this folder.
A name that is not UTF-8 is ``{"base64": ...}`` of its bytes. Of several lines about one mask the last counts, but for a
failure that left the mask of before alone. One that notes a mask (``mask_crc``) is of its overlay alone; one that is
``unwritten``, of a mask that was announced and is known not to be written: any other leaves it open whose a mask is
that was announced before. What was skipped has a line only where its mask is not the one that was written, or where
its image was moved or touched, and then it notes what the earlier line does. A failure that an earlier run found has
none. (isicrt wrote one for every image until 28 November 2026.) A torn last line, of a machine that lost its power, is
passed over.
"""

from __future__ import annotations

import base64
import bisect
import errno
import hashlib
import json
import os
import stat
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from isicrt.engine.errors import DataError
from isicrt.engine.names import NumberTable
from isicrt.engine.output import OutputError, output_error

JOURNAL_NAME = ".isicrt-journal.jsonl"
FORMAT = 1
_LINE = 4096
"""Bytes that nearly every line fits into."""
_LONGEST_LINE = 1 << 26
"""Bytes; no run writes a longer one."""
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


class Journal:
    """Appends lines to the journal of a folder. Any thread may call it; one process at a time (see `FolderLock`).

    Raises:
        OutputError: it cannot be opened or, from `append`, written (then it ends with a whole line), or it was removed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._file = -1
        try:
            self._file = _open(folder / JOURNAL_NAME, os.O_RDWR | os.O_APPEND | os.O_CREAT)
            status = os.fstat(self._file)
            self._links = status.st_nlink
            if status.st_size and not self._ends_with_newline():
                self._append(b"\n")
        except BaseException as error:
            if self._file >= 0:
                os.close(self._file)
            if isinstance(error, OSError):
                raise output_error(folder / JOURNAL_NAME, error) from error
            raise

    def append(self, *entries: Mapping[str, Any]) -> None:
        """Add a line for each, with one call."""
        self.append_lines([encode_line(entry) for entry in entries])

    def append_lines(self, lines: Sequence[str]) -> None:
        """Add lines, each an entry as `encode_line` writes it, with one call."""
        if not lines:
            return
        data = ("\n".join(lines) + "\n").encode("ascii")
        try:
            with self._lock:
                self._append(data)
        except OSError as error:
            raise output_error(self._folder, error) from error

    def sync(self) -> None:
        """Wait until the lines are on the disk."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise output_error(self._folder, error) from error

    def close(self) -> None:
        """Close the file. Whoever appends to it afterwards gets an OutputError, and not another file of that number."""
        with self._lock:
            file, self._file = self._file, -1
        os.close(file)

    def _append(self, lines: bytes) -> None:
        before = os.fstat(self._file)
        if self._links and not before.st_nlink:  # the lines would be lost, and the masks would be nobody's
            raise FileNotFoundError(errno.ENOENT, f"its journal {JOURNAL_NAME} was removed")
        try:
            written = os.write(self._file, lines)
            while written < len(lines):  # a disk that is nearly full takes a part and says no to the rest
                written += os.write(self._file, lines[written:])
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, before.st_size)
            raise

    def _ends_with_newline(self) -> bool:
        os.lseek(self._file, -1, os.SEEK_END)
        return os.read(self._file, 1) == b"\n"


class JournalIndex:
    """Finds the last line about a mask. It keeps 16 bytes for each mask and reads the line from the file.

    Raises:
        OutputError: the journal is there and cannot be read, or is of a format that this isicrt does not know.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL_NAME
        self._lock = threading.Lock()
        # The offset of the line; its complement where a failure left no mask of ours.
        self._lines = NumberTable()
        # The same of masks that the run has announced, and has not said what became of them: they are few.
        self._announced: dict[int, int] = {}
        self._starts: list[int] = []
        self.runs: list[Mapping[str, Any]] = []
        """The first line of each run."""
        try:
            self._file: int | None = _open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            self._file = None
            return
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be read: {error.strerror}") from error
        try:
            self._read_all()
        except OSError as error:
            self.close()
            raise OutputError(f"{self._path}: cannot be read: {error.strerror}") from error
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def is_empty(self) -> bool:
        """Whether there is no line about any mask."""
        return self._lines.is_empty

    def wrote(self, mask: str) -> bool:
        """Whether a file of this name is one that a run wrote, or may have written before it was killed."""
        return self._is_there(_number(mask))

    def may_know(self, mask: str) -> bool:
        """Whether `find` may find a line, by what is kept in memory."""
        return self._lines.get(_number(mask)) is not None

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

    def has_noted(self, mask: str, image_crc: int, mask_crc: int) -> bool:
        """Whether any line notes such a mask, be it long ago. It reads the file. Any thread may call it.

        Args:
            mask: relative to the folder.
            image_crc: of its image's file.
            mask_crc: of its own.
        """
        sought = b'"mask_crc":%d' % mask_crc
        with suppress(OSError), open(_open(self._path, os.O_RDONLY), "rb", buffering=1 << 18) as lines:
            while line := lines.readline(_LONGEST_LINE):
                if sought in line and has_mask(entry := parse_line(line)):
                    with suppress(DataError):
                        same = (entry.get("image_crc"), entry["mask_crc"]) == (image_crc, mask_crc)
                        if same and read_name(entry.get("mask")) == mask:
                            return True
        return False

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _is_there(self, number: int) -> bool:
        offset = self._lines.get(number)
        return offset is not None and offset >= 0

    def _read_all(self) -> None:
        assert self._file is not None
        offset, whole = 0, True
        with open(self._file, "rb", buffering=1 << 18, closefd=False) as lines:
            while line := lines.readline(_LONGEST_LINE):
                ends = line.endswith(b"\n")
                if whole and (ends or len(line) < _LONGEST_LINE):
                    self._add(parse_line(line), offset)
                offset, whole = offset + len(line), ends
        self._leave_announced()
        self._lines.settle()

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
            self._leave_announced()
            return
        ended = entry.get("status") in ("done", "failed") or has_mask(entry)  # what else was skipped is as it was
        masks = [entry.get("mask")] if ended else entry.get("writing")
        for mask in masks if isinstance(masks, list) else []:
            with suppress(DataError):
                number = _number(read_name(mask))
                if not ended:
                    if number in self._announced:  # who was to write it was lost, and may have done so
                        self._lines[number] = self._announced[number]
                    self._announced[number] = offset
                    continue
                if has_mask(entry) or "unwritten" in entry:
                    self._announced.pop(number, None)
                # Where a failure left the mask of before alone, the line about that one still says whose it is.
                if has_mask(entry):
                    self._lines[number] = offset
                elif "image_crc" in entry or not self._is_there(number):
                    self._lines[number] = ~offset

    def _leave_announced(self) -> None:
        """The run is over, and nobody knows whose the masks are that it has announced and left open."""
        for number, offset in self._announced.items():
            self._lines[number] = offset
        self._announced.clear()


_WRITTEN = ("mask_size", "mask_crc", "image_size", "image_mtime_ns", "image_crc")
LINES: dict[tuple[str, ...], str] = {
    names: '{"status":"done","image":%s,"mask":%s,' + ",".join(f'"{name}":%r' for name in names) + "}"
    for names in (
        ("height", "width", "lesion_share", "confidence", *_WRITTEN),
        ("height", "width", "lesion_share", *_WRITTEN),  # masks that the GPU made
    )
}
"""What `encode_line` makes of nearly all entries of masks, by the names of what is noted of them. The values are
numbers, image and mask JSON's strings."""


def encode_line(entry: Mapping[str, Any]) -> str:
    """An entry as it stands in the journal, without the end of the line: ASCII."""
    return _ENCODER.encode(entry)


def _open(path: Path, flags: int) -> int:
    """Open a journal. What lies under its name came with the folder: it must neither hold the run for ever, as a FIFO
    does, nor lead to a file elsewhere, as a link does. Raises OSError."""
    for name in ("O_CLOEXEC", "O_BINARY", "O_NOFOLLOW", "O_NONBLOCK"):
        flags |= getattr(os, name, 0)
    strange = OSError(errno.EINVAL, "it is a link, or no plain file: move it away")
    try:
        file = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise strange from error
        raise
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise strange
    return file


def has_mask(entry: Mapping[str, Any]) -> bool:
    """Whether a line notes a mask that was written, by that run or, where it was skipped, by an earlier one."""
    status = entry.get("status")
    return status == "done" or (status in ("failed", "skipped") and "mask_crc" in entry)


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
    try:
        if isinstance(value, str):
            os.fsencode(value)  # JSON can spell what is no name on this system
            return value
        if isinstance(value, dict):
            return os.fsdecode(base64.b64decode(value["base64"], validate=True))
    except (KeyError, TypeError, ValueError):
        pass
    raise DataError(f"journal: {value!r} is no file name")


def _number(mask: str) -> int:
    """64 bits for a name: a million names in a dict would need twenty times the memory."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(mask), digest_size=8).digest(), "little")
