"""Which files are images, in a tree of folders or by a pattern: each folder once, and none that isicrt wrote."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from isicrt.engine.errors import DataError
from isicrt.engine.journal import JOURNAL_NAME
from isicrt.engine.left_out import LeftOut
from isicrt.engine.output import OVERLAYS_NAME

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp"})
"""What counts as an image in a folder, in any case."""

UNREAD_EXTENSIONS = frozenset(
    {".gif", ".heic", ".heics", ".heif", ".hif", ".avif", ".jxl", ".mpo"}  # of the web and of telephones
    | {".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"}  # JPEG 2000
    | {".dcm", ".dicom", ".ima", ".svs", ".ndpi"}  # of hospitals
    | {".nef", ".nrw", ".cr2", ".cr3", ".crw", ".arw", ".dng", ".orf", ".pef", ".raf", ".rw2", ".srw"}  # of cameras
    | {".dib", ".tga", ".ppm", ".pgm", ".pnm", ".psd"}  # of other programs
)
"""What promises an image that isicrt does not read, in any case."""

_NAMELESS = {"DICOM": (128, b"DICM"), "JPEG": (0, b"\xff\xd8\xff"), "PNG": (0, b"\x89PNG\r\n\x1a\n")}
"""Formats that are looked for in files without an extension: where in a file what stands."""
_MOST_LOOKS = 1000
"""Of a search, into files without an extension: a look may take a millisecond on a share."""

_SYSTEM_FOLDERS = frozenset({"@eaDir", "__MACOSX"})
"""What Synology's disk stations and macOS put beside photographs: thumbnails, and forks of files."""

OUTPUT_MARKS = {JOURNAL_NAME: "masks", OVERLAYS_NAME: "overlays"}
"""Files that tell a folder that isicrt wrote, and what such a folder holds."""

_State = tuple[str, int]
"""A folder, and the number of the part of a pattern that is to be matched in it."""


class ImageSearch:
    """Looks for images, stays out of the folders that this run writes or earlier ones wrote, and notes what it left.

    Args:
        written: folders that the run writes.
        add: called with the folder and the name of each image.
    """

    def __init__(self, written: Iterable[Path], add: Callable[[str, str], None]) -> None:
        self._written = {os.path.realpath(folder) for folder in written}
        self._add = add
        self.folders: set[str] = set()
        """Real paths of the folders that were walked."""
        self.left_out = LeftOut()
        self._looks = 0

    def walk(self, top: str) -> None:
        """Find what is below a folder. Links to folders are followed; a folder that is reached twice is read once.

        Raises:
            DataError: it holds what isicrt wrote.
        """
        if (what := _output_of(top)) is not None:
            # Overlays are JPEGs as photographs are: no pattern tells them apart.
            among = f"name them by a pattern, such as '{top}/*.jpg'" if what == "masks" else "move them out of there"
            raise DataError(
                f"{top}: isicrt wrote {what} there, and would take them for photographs. Name the folder of the "
                f"photographs; where they lie among the {what}, {among}"
            )
        root = os.path.realpath(top)
        pending = [top]
        while pending:
            current = pending.pop()
            real = os.path.realpath(current)
            # The first folder is what was asked for, even if it is the output: then the check of the masks speaks.
            if real in self.folders or (current != top and self._is_output(current, real, root)):
                continue
            self.folders.add(real)
            below = []
            for entry in self._entries(current):
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    if entry.name not in _SYSTEM_FOLDERS:
                        below.append(entry.path)
                else:
                    self._take(current, entry.name)
            # In order, so that of two ways to one folder it is the same in every run that counts.
            pending += sorted(below)

    def match(self, pattern: Path) -> str:
        """Find what a pattern matches, as `glob.glob` with ``recursive``, but each real folder once: links can lead
        round in a circle.

        Returns:
            The part without wildcards.
        """
        parts = pattern.parts
        first = next(n for n, part in enumerate(parts) if glob.has_magic(part))
        top = str(Path(*parts[:first]))
        if not Path(top).is_dir():
            return top
        steps = [_Step(part) for part in parts[first:]]
        root = os.path.realpath(top)
        seen: set[_State] = set()
        pending: list[_State] = [(top, 0)]
        while pending:
            current, number = pending.pop()
            real = os.path.realpath(current)
            if (real, number) in seen or (real != root and self._is_output(current, real, root)):
                continue
            seen.add((real, number))
            pending += sorted(self._below(current, steps, number))
        return top

    def _below(self, folder: str, steps: list[_Step], number: int) -> Iterator[_State]:
        """Where one step of a pattern leads from a folder; the images that its last one finds are taken."""
        step, last = steps[number], number + 1 == len(steps)
        if step.name is not None:
            path = os.path.join(folder, step.name)  # noqa: PTH118 (once for each folder)
            if self._is_there(folder, path):
                if not Path(path).is_dir():
                    if last:
                        self._take(folder, step.name)
                elif not last:
                    yield path, number + 1
            return
        if step.recursive and not last:
            yield folder, number + 1
        for entry in self._entries(folder):
            if not step.matches(entry.name):
                continue
            if not _is_folder(entry):
                if last:
                    self._take(folder, entry.name)
            elif entry.name in _SYSTEM_FOLDERS:
                continue
            elif step.recursive:
                yield entry.path, number
            elif not last:
                yield entry.path, number + 1

    def _take(self, folder: str, name: str) -> None:
        extension = _extension(name)
        if extension in EXTENSIONS:
            self._add(folder, name)
        elif extension in UNREAD_EXTENSIONS:
            self.left_out.formats[extension] += 1
        elif (not extension or extension[1:].isdigit()) and self._looks < _MOST_LOOKS:  # DICOM: IM000001, 1.2.840.7
            self._looks += 1
            if (kind := _look(os.path.join(folder, name))) is not None:  # noqa: PTH118 (once for each such file)
                self.left_out.formats[f"{kind} without an extension"] += 1

    def _entries(self, folder: str) -> Iterator[os.DirEntry[str]]:
        """What a folder holds. One that cannot be read costs what is in it, and is noted."""
        try:
            with os.scandir(folder) as entries:
                yield from entries
        except OSError as error:
            self._note_unread(folder, error)

    def _is_there(self, folder: str, path: str) -> bool:
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            self._note_unread(folder, error)
            return False
        return True

    def _note_unread(self, folder: str, error: OSError) -> None:
        self.left_out.unread[str(Path(folder))] = f"the folder cannot be read: {error.strerror or error}"

    def _is_output(self, folder: str, real: str, root: str) -> bool:
        """Whether a folder below `root` is one that this run writes, or that an earlier one wrote, which is noted."""
        above = os.path.join(root, "")  # noqa: PTH118 (once for each folder, as below)
        if any(place.startswith(above) and f"{real}{os.sep}".startswith(f"{place}{os.sep}") for place in self._written):
            return True
        if (what := _output_of(real)) is None:
            return False
        self.left_out.outputs[str(Path(folder))] = what
        return True


class _Step:
    """One part of a pattern."""

    def __init__(self, part: str) -> None:
        self.name = None if glob.has_magic(part) else part
        """Of a part without wildcards."""
        self.recursive = part == "**"
        self._hidden = part.startswith(".")
        self._match = re.compile(fnmatch.translate(os.path.normcase(part))).match

    def matches(self, name: str) -> bool:
        """As `glob` does: what starts with a dot wants a dot in the pattern."""
        if name.startswith(".") and not self._hidden:
            return False
        return self._match(os.path.normcase(name)) is not None


def _output_of(folder: str) -> str | None:
    """What a folder holds that isicrt wrote; None for any other folder."""
    for name, what in OUTPUT_MARKS.items():
        if os.path.lexists(os.path.join(folder, name)):  # noqa: PTH118 (once for each folder)
            return what
    return None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: reading it says so
        return False


def _look(path: str) -> str | None:
    """Which of `_NAMELESS` a file is; None where it is none of them, or is nothing to read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 (opening a FIFO would wait)
            return None
        with Path(path).open("rb", buffering=0) as file:
            head = file.read(132)
    except OSError:
        return None
    return next((kind for kind, (at, mark) in _NAMELESS.items() if head.startswith(mark, at)), None)


def _extension(name: str) -> str:
    """With its dot, in lower case; empty where there is none, and of a name that starts with its only dot."""
    stem, dot, extension = name.rpartition(".")
    return f"{dot}{extension}".lower() if stem else ""
