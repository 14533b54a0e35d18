"""Which images to segment, and where each mask goes. Every clash of names is found before the first image is read."""

from __future__ import annotations

import glob
import itertools
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from isicrt.engine.clashes import (
    REMEMBERED,
    SHOWN,
    check_images_safe,
    check_overlays_apart,
    fail_long_names,
    settle_clashes,
)
from isicrt.engine.errors import DataError, SettingsError
from isicrt.engine.image_search import EXTENSIONS, ImageSearch
from isicrt.engine.jobs import Job, Jobs
from isicrt.engine.left_out import LeftOut
from isicrt.engine.names import PackedNames

__all__ = ["EXTENSIONS", "ON_CLASH", "Images", "Job", "find_jobs", "overlay_folder", "overlay_path"]

Images = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

TRUTH_ENDINGS = ("_segmentation", "_superpixels", "_lesion", "_mask", *(f"_label{digit}" for digit in range(10)))
"""Of files that data sets of ISIC, PH2 and others have beside their photographs, without extension, in any case."""
LOSSLESS = frozenset({"png", "bmp", "tif", "tiff"})
"""Formats of ground truth. A photograph may be called ``good_lesion.jpg``."""

ON_CLASH = ("refuse", "fail", "extension")
"""What becomes of images whose masks would have one name, see `find_jobs`."""


@dataclass(frozen=True)
class _Source:
    """Where the images of one argument lie."""

    root: str
    """Masks are laid out as the images lie below this folder, if it is the only source."""
    anchor: str
    """The folder that counts if there are several sources; they are laid out below the one that all of these share."""


def find_jobs(
    images: Images,
    out: str | os.PathLike[str],
    *,
    overlays: str | os.PathLike[str] | None = None,
    on_clash: str = "refuse",
) -> Jobs:
    """Find the images and give each a mask ``NAME.png`` below `out`, in the tree in which the images lie.

    Args:
        images: one or several of: a folder (searched recursively; what starts with a dot, ``@eaDir`` and ``__MACOSX``
            are left out), a glob pattern, an image. Or one ``.txt`` file with a path in each line, relative to the
            folder of that file.
            Below `out` a folder's masks lie as its images do; a pattern's as below its part without wildcards;
            those of several arguments and of a list as below the folder that all of them share. Folders of masks and
            overlays that isicrt wrote before are left out where a folder is searched or a pattern matched.
        out: the folder for the masks. It may lie inside a folder of images and is not searched.
        overlays: a folder for overlays (see `overlay_path`), which is kept apart in the same way. One that holds images
            other than overlays must bear the mark of an earlier run.
        on_clash: where two images claim one mask (``a.jpg`` beside ``a.png``, or names that differ in case or Unicode
            normal form only), or a mask the name of a folder (``a.jpg`` beside ``a.png/b.jpg``), ``refuse`` raises;
            ``fail`` gives these images a `Job.problem` and leaves the others alone; ``extension`` keeps the extension
            in their masks' names, ``a.jpg.png`` and ``a.png.png``, and raises where that does not help.

    Returns:
        Sorted by folder, then by name; each image once. A mask's name that would be too long is a `Job.problem`; so is
        a folder that cannot be read, behind all images. Jobs are made when they are asked for, see
        `isicrt.engine.jobs.Jobs`, whose `left_out` says what was found and not taken.

    Raises:
        SettingsError: an unknown `on_clash`, or one folder for masks and overlays.
        DataError: no image; an argument that is empty or does not exist, or a folder that isicrt wrote; two images
            whose masks would have one name (also where only the case differs); a pattern that goes up behind a
            wildcard, out of what it begins with; a mask or an overlay that would replace an image, or land in a folder
            that is read as input; overlays among images that isicrt did not draw.
    """
    if on_clash not in ON_CLASH:
        raise SettingsError(f"on_clash {on_clash!r}: must be one of {', '.join(ON_CLASH)}")
    for folder, what in (out, "masks"), (overlays, "overlays"):
        if folder is not None and not os.fspath(folder):
            raise DataError(f"the folder for the {what} has no name; the current folder is .")
    if overlays is not None and os.path.realpath(overlays) == os.path.realpath(out):
        raise SettingsError(f"{out}: masks and overlays must go to different folders")
    out = Path(out)
    written = [out] + ([Path(overlays)] if overlays is not None else [])
    named = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    if not named:
        raise DataError("no images were named")
    if not all(os.fspath(name) for name in named):
        raise DataError("an empty name is no file and no folder; the current folder is .")
    arguments = [Path(name) for name in named]
    found = _Found()
    search = ImageSearch(written, found.add)
    expanded = _Arguments(search, found)
    sources = [expanded.expand(argument, alone=len(arguments) == 1) for argument in arguments]
    left_out = search.left_out
    if not found:
        raise DataError(_nothing_found(arguments, left_out))
    root = _normal(sources[0].root if len(sources) == 1 else _common(source.anchor for source in sources))
    jobs = found.take(out, root)
    settle_clashes(jobs, on_clash)
    fail_long_names(jobs)
    check_images_safe(jobs, lambda folder: folder, lambda name: name, "mask", "--out", search.folders)
    if overlays is not None:
        drawn = partial(overlay_folder, out=out, overlays=overlays)
        check_images_safe(jobs, drawn, _overlay_name, "overlay", "--overlay", search.folders)
        check_overlays_apart(jobs, out, Path(overlays), drawn)
    for folder, reason in left_out.unread.items():
        jobs.add_failure(Job(Path(folder), out / _below(_normal(folder), root), f"{folder}: {reason}"))
    jobs.left_out = left_out
    return jobs


def _nothing_found(arguments: Sequence[Path], left_out: LeftOut) -> str:
    lines = [f"{', '.join(map(str, arguments[:SHOWN]))}: no image found (looked for {', '.join(sorted(EXTENSIONS))})"]
    lines += [f"  {folder}: {reason}" for folder, reason in list(left_out.unread.items())[:SHOWN]]
    return "\n".join(lines + [f"  {line}" for line in left_out.lines()])


def overlay_path(mask: Path, out: str | os.PathLike[str], overlays: str | os.PathLike[str]) -> Path:
    """Where the overlay of a mask goes: the same place below `overlays` as the mask's below `out`, as ``NAME.jpg``."""
    return overlay_folder(mask.parent, out, overlays) / _overlay_name(mask.name)


def overlay_folder(folder: Path, out: str | os.PathLike[str], overlays: str | os.PathLike[str]) -> Path:
    """The folder of the overlays of the masks in a folder."""
    return Path(overlays) / folder.relative_to(out)


def _overlay_name(mask: str) -> str:
    return f"{Path(mask).stem}.jpg"


class _Found:
    """Images by folder."""

    def __init__(self) -> None:
        # For each folder, absolute, its images, in the order in which they were named, by how their paths spell it.
        self._folders: defaultdict[str, list[tuple[str, PackedNames]]] = defaultdict(list)
        self._normal = lru_cache(REMEMBERED)(_normal)
        self._latest: tuple[str, PackedNames] | None = None

    def __bool__(self) -> bool:
        return bool(self._folders)

    def add(self, folder: str, name: str) -> None:
        if self._latest is None or self._latest[0] != folder:
            spellings = self._folders[self._normal(folder)]
            if not spellings or spellings[-1][0] != folder:
                spellings.append((folder, PackedNames()))
            self._latest = spellings[-1]
        self._latest[1].append(name)

    def take(self, out: Path, root: str) -> Jobs:
        """Make them jobs, and forget them."""
        jobs = Jobs(out)
        self._latest = None
        truths = {folder for folder in self._folders if self._holds_truths(folder)}
        for folder in sorted(self._folders):
            below = str(_below(folder, root))
            for spelling, names in _once(self._folders.pop(folder)):
                jobs.add_folder(spelling, below, names)
                for name in names:
                    if folder in truths or has_name_of_truth(name):
                        jobs.truths += 1
                        jobs.first_truth = jobs.first_truth or Path(spelling, name)
        return jobs

    def _holds_truths(self, folder: str) -> bool:
        """Whether a folder is ``masks`` beside one of photographs, ``images``: a layout of `isicrt train`."""
        above, name = os.path.split(folder)
        return name == "masks" and os.path.join(above, "images") in self._folders  # noqa: PTH118 (once for each folder)


def has_name_of_truth(name: str) -> bool:
    """Whether a file is called as ground truth of ISIC or PH2 is, and of a kind that keeps a mask as it is."""
    stem, _, kind = name.lower().rpartition(".")
    return kind in LOSSLESS and stem.endswith(TRUTH_ENDINGS)


def _once(spellings: list[tuple[str, PackedNames]]) -> Iterator[tuple[str, PackedNames]]:
    """The images of one folder sorted. One that is there twice, as if two arguments named it, is there as at last."""
    if len(spellings) == 1:
        spellings[0][1].sort()
        yield from spellings
        return
    last = {name: spelling for spelling, names in spellings for name in names}
    for spelling, group in itertools.groupby(sorted(last), key=last.__getitem__):
        names = PackedNames()
        for name in group:
            names.append(name)
        yield spelling, names


class _Arguments:
    """Expands arguments."""

    def __init__(self, search: ImageSearch, found: _Found) -> None:
        self._search = search
        self._found = found

    def expand(self, argument: Path, *, alone: bool) -> _Source:
        try:
            return self._expand(argument, alone)
        except (OSError, ValueError) as error:  # such as a name that is too long
            raise DataError(f"{argument}: {error}") from error

    def _expand(self, argument: Path, alone: bool) -> _Source:
        if argument.is_dir():
            self._search.walk(str(argument))
            return _Source(str(argument), str(Path(_normal(argument)).parent))
        if argument.suffix.lower() == ".txt" and argument.is_file():
            if not alone:
                raise DataError(f"{argument}: a list of images must be the only argument")
            return self._read_list(argument)
        if argument.exists() or argument.is_symlink():
            folder = str(argument.parent)
            self._found.add(folder, argument.name)
            return _Source(folder, folder)
        if glob.has_magic(str(argument)):
            fixed = self._search.match(argument)
            return _Source(fixed, fixed)
        raise DataError(f"{argument}: no such file or folder")

    def _read_list(self, path: Path) -> _Source:
        folders = set()
        with path.open("rb") as file:
            # Names are bytes to the system: no encoding may be in the way.
            for number, line in enumerate(file):
                if b"\0" in line:
                    raise DataError(f"{path}: not a text file; expected a list of images, a path in each line")
                named = (line if number else line.removeprefix(b"\xef\xbb\xbf")).rstrip(b"\n").rstrip(b"\r")
                if named.strip():
                    folder, name = os.path.split(path.parent / os.fsdecode(named))
                    folders.add(folder)
                    self._found.add(folder, name)
        if not folders:
            raise DataError(f"{path}: the list is empty; expected a path in each line")
        root = _common(folders)
        return _Source(root, root)


def _normal(path: str | Path) -> str:
    """Absolute and without ``..``, links as they are."""
    return os.path.normpath(Path(path).absolute())


def _below(folder: str, root: str) -> Path:
    """Where a folder lies below the one that the masks mirror; both absolute."""
    try:
        return Path(folder).relative_to(root)
    except ValueError:
        raise DataError(
            f"{folder}: a pattern leads there by .. behind a wildcard, and masks are laid out as images lie below "
            f"{root}. Name what is there by a pattern of its own"
        ) from None


def _common(folders: Iterable[str]) -> str:
    try:
        return os.path.commonpath([_normal(folder) for folder in folders])
    except ValueError:
        raise DataError("images on different drives have no common folder; segment each drive by itself") from None
