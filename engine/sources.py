"""Which images to segment, and where each mask goes. Every clash of names is found before the first image is read."""

from __future__ import annotations

import glob
import itertools
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from isicrt.engine.errors import DataError, SettingsError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
"""What counts as an image in a folder, in any case."""

Images = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

ON_CLASH = ("refuse", "fail", "extension")
"""What becomes of images whose masks would have one name, see `find_jobs`."""

_LONGEST_NAME = 255
"""Bytes of one name that every usual file system takes."""

# Folder and name. A folder may hold a million images: what can be said of it is said once, and not for every image.
_Image = tuple[str, str]

_SHOWN = 10


@dataclass(frozen=True)
class Job:
    """One image and the file that its mask is written to."""

    image: Path
    mask: Path
    problem: str | None = None
    """Why the image cannot be segmented, where that was found out before it was read."""


@dataclass(frozen=True)
class _Source:
    """What one argument stands for."""

    images: list[_Image]
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
) -> list[Job]:
    """Find the images and give each a mask ``NAME.png`` below `out`, in the tree in which the images lie.

    Args:
        images: one or several of: a folder (searched recursively; what starts with a dot is left out), a glob pattern,
            an image. Or one ``.txt`` file with a path in each line, relative to the folder of that file.
            Below `out` a folder's masks lie as its images do; a pattern's as below its part without wildcards;
            those of several arguments and of a list as below the folder that all of them share.
        out: the folder for the masks. It may lie inside a folder of images and is not searched.
        overlays: a folder for overlays (see `overlay_path`), which is kept apart in the same way.
        on_clash: where two images claim one mask (``a.jpg`` beside ``a.png``, or names that differ in case or Unicode
            normal form only), or a mask the name of a folder (``a.jpg`` beside ``a.png/b.jpg``), ``refuse`` raises;
            ``fail`` gives these images a `Job.problem` and leaves the others alone; ``extension`` keeps the extension
            in their masks' names, ``a.jpg.png`` and ``a.png.png``, and raises where that does not help.

    Returns:
        Sorted by folder, then by name; each image once. A mask's name that would be too long is a `Job.problem`.

    Raises:
        SettingsError: an unknown `on_clash`.
        DataError: no image; an argument that is empty or does not exist; a folder that cannot be read; two images
            whose masks would have one name (also where only the case differs); a mask or an overlay that would replace
            an image, or land in a folder that is read as input.
    """
    if on_clash not in ON_CLASH:
        raise SettingsError(f"on_clash {on_clash!r}: must be one of {', '.join(ON_CLASH)}")
    if not os.fspath(out):
        raise DataError("the folder for the masks has no name; the current folder is .")
    out = Path(out)
    written = [out] + ([Path(overlays)] if overlays is not None else [])
    named = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    if not named:
        raise DataError("no images were named")
    if not all(os.fspath(name) for name in named):
        raise DataError("an empty name is no file and no folder; the current folder is .")
    arguments = [Path(name) for name in named]
    search = _Search(written)
    found = [search.expand(argument, alone=len(arguments) == 1) for argument in arguments]
    root = _normal(found[0].root if len(found) == 1 else _common(source.anchor for source in found))
    normal = cache(_normal)
    # An image that two arguments name is one image.
    images_by_name = {(normal(folder), name): (folder, name) for source in found for folder, name in source.images}
    if not images_by_name:
        raise DataError(
            f"{', '.join(map(str, arguments[:_SHOWN]))}: no image found (looked for {', '.join(sorted(EXTENSIONS))})"
        )
    # Paths are made once for a folder; to join a name to one costs a fifth of parsing it all.
    folder_of, mask_folder_of = cache(Path), cache(lambda folder: out / Path(_normal(folder)).relative_to(root))
    places = [place for _, place in sorted(images_by_name.items())]
    jobs = [Job(folder_of(folder) / name, mask_folder_of(folder) / (_stem(name) + ".png")) for folder, name in places]
    _settle_clashes(jobs, on_clash)
    for n, job in enumerate(jobs):
        if len(os.fsencode(job.mask.name)) > _LONGEST_NAME:
            jobs[n] = replace(job, problem=f"{job.image}: its mask's name would be longer than {_LONGEST_NAME} bytes")
    folders = {job.mask.parent for job in jobs}
    _check_images_safe(jobs, folders, lambda mask: mask, "mask", "--out", search.folders)
    if overlays is not None:
        drawn = {overlay_folder(folder, out, overlays) for folder in folders}
        place = partial(overlay_path, out=out, overlays=overlays)
        _check_images_safe(jobs, drawn, place, "overlay", "--overlay", search.folders)
    return jobs


def overlay_path(mask: Path, out: str | os.PathLike[str], overlays: str | os.PathLike[str]) -> Path:
    """Where the overlay of a mask goes: the same place below `overlays` as the mask's below `out`, as ``NAME.jpg``."""
    return overlay_folder(mask.parent, out, overlays) / f"{mask.stem}.jpg"


def overlay_folder(folder: Path, out: str | os.PathLike[str], overlays: str | os.PathLike[str]) -> Path:
    """The folder of the overlays of the masks in a folder."""
    return Path(overlays) / folder.relative_to(out)


class _Search:
    """Expands arguments, stays out of the folders that the run writes, and remembers which folders it read."""

    def __init__(self, written: Iterable[Path]) -> None:
        self._written = {os.path.realpath(folder) for folder in written}
        self.folders: set[str] = set()

    def expand(self, argument: Path, *, alone: bool) -> _Source:
        try:
            return self._expand(argument, alone)
        except (OSError, ValueError) as error:  # such as a name that is too long
            raise DataError(f"{argument}: {error}") from error

    def _expand(self, argument: Path, alone: bool) -> _Source:
        if argument.is_dir():
            return _Source(list(self._walk(str(argument))), str(argument), str(Path(_normal(argument)).parent))
        if argument.suffix.lower() == ".txt" and argument.is_file():
            if not alone:
                raise DataError(f"{argument}: a list of images must be the only argument")
            return _read_list(argument)
        if argument.exists() or argument.is_symlink():
            folder = str(argument.parent)
            return _Source([(folder, argument.name)], folder, folder)
        if glob.has_magic(str(argument)):
            return self._match(argument)
        raise DataError(f"{argument}: no such file or folder")

    def _walk(self, folder: str) -> Iterator[_Image]:
        """Images below a folder. Links to folders are followed; a folder that is reached twice is read once."""
        pending = [folder]
        while pending:
            current = pending.pop()
            real = os.path.realpath(current)
            # The first folder is what was asked for, even if it is the output: then the check of the masks speaks.
            if real in self.folders or (real in self._written and current != folder):
                continue
            self.folders.add(real)
            try:
                entries = sorted(os.scandir(current), key=lambda entry: entry.name)
            except OSError as error:
                raise DataError(f"{current}: the folder cannot be read: {error.strerror}") from error
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    pending.append(entry.path)
                elif _is_image(entry.name):
                    yield current, entry.name

    def _match(self, pattern: Path) -> _Source:
        parts = pattern.parts
        fixed = Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])
        written = cache(lambda folder: self._lies_in_written(folder, fixed))
        images = [
            image
            for match in glob.iglob(str(pattern), recursive=True)  # noqa: PTH207 (pathlib's also matches dot files)
            if _is_image(match) and not Path(match).is_dir() and not written((image := os.path.split(match))[0])
        ]
        return _Source(images, str(fixed), str(fixed))

    def _lies_in_written(self, folder: str, root: Path) -> bool:
        """Whether a folder is, or is inside, one that the run writes below `root`."""
        top, place = Path(os.path.realpath(root)), Path(os.path.realpath(folder))
        below = itertools.takewhile(lambda parent: parent != top, (place, *place.parents))
        return any(str(parent) in self._written for parent in below)


def _read_list(path: Path) -> _Source:
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if b"\0" in data:
        raise DataError(f"{path}: not a text file; expected a list of images, a path in each line")
    # Names are bytes to the system: no encoding may be in the way.
    lines = [os.fsdecode(line.rstrip(b"\r")) for line in data.split(b"\n") if line.strip()]
    if not lines:
        raise DataError(f"{path}: the list is empty; expected a path in each line")
    images = [os.path.split(path.parent / line) for line in lines]
    root = _common({folder for folder, _ in images})
    return _Source(images, root, root)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: reading it says so
        return False


def _is_image(name: str) -> bool:
    stem, dot, extension = name.rpartition(".")
    return bool(stem) and f"{dot}{extension}".lower() in EXTENSIONS


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def _normal(path: str | Path) -> str:
    """Absolute and without ``..``, links as they are."""
    return os.path.normpath(Path(path).absolute())


def _common(folders: Iterable[str]) -> str:
    try:
        return os.path.commonpath([_normal(folder) for folder in folders])
    except ValueError:
        raise DataError("images on different drives have no common folder; segment each drive by itself") from None


def name_key(name: str) -> str:
    """Equal for names and paths that some file system takes for one: case and Unicode normal form do not count."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold()


def _settle_clashes(jobs: list[Job], on_clash: str) -> None:
    clashes, blocked = _clashes(jobs), _named_like_folders(jobs)
    if on_clash == "extension" and (clashes or blocked):
        for n in {*itertools.chain.from_iterable(clashes), *blocked}:
            jobs[n] = replace(jobs[n], mask=jobs[n].mask.with_name(jobs[n].image.name + ".png"))
        clashes, blocked = _clashes(jobs), _named_like_folders(jobs)
    if on_clash == "fail":
        for n in blocked:
            problem = f"{jobs[n].image}: its mask, {jobs[n].mask}, would stand where a folder of masks goes"
            jobs[n] = replace(jobs[n], problem=problem)
        for numbers in clashes:
            for n in numbers:
                other = jobs[next(m for m in numbers if m != n)].image
                jobs[n] = replace(jobs[n], problem=f"{jobs[n].image}: {other} would have the same mask, {jobs[n].mask}")
    elif clashes or blocked:
        lines = [f"{' and '.join(str(jobs[n].image) for n in claim)} -> {jobs[claim[0]].mask}" for claim in clashes]
        lines += [f"{jobs[n].image} -> {jobs[n].mask}, a folder" for n in blocked]
        raise DataError(
            f"{len(lines)} masks would belong to more than one image, or stand where a folder of masks goes:\n"
            f"{_listed(lines)}\n"
            "Rename the images, segment them in separate runs with a different --out, or see --on-clash."
        )


def _named_like_folders(jobs: Sequence[Job]) -> list[int]:
    """Numbers of the jobs whose mask would have the name of a folder of masks: ``x.jpg`` beside ``x.png/``."""
    folders = {job.mask.parent for job in jobs}
    keys = {name_key(str(folder)) for below in folders for folder in (below, *below.parents)}
    # A folder called .png is rare, and a million names need not be looked at.
    if not any(key.endswith(".png") for key in keys):
        return []
    return [n for n, job in enumerate(jobs) if name_key(str(job.mask)) in keys]


def _clashes(jobs: Sequence[Job]) -> list[list[int]]:
    """Numbers of the jobs that claim one mask."""
    first: dict[tuple[str, str], int] = {}
    claims: defaultdict[int, list[int]] = defaultdict(list)
    folder_key = cache(lambda folder: name_key(str(folder)))
    for n, job in enumerate(jobs):
        holder = first.setdefault((folder_key(job.mask.parent), name_key(job.mask.name)), n)
        if holder != n:
            claims[holder].append(n)
    return [[holder, *others] for holder, others in claims.items()]


def _check_images_safe(
    jobs: Sequence[Job],
    folders: set[Path],
    place: Callable[[Path], Path],
    what: str,
    option: str,
    read: set[str],
) -> None:
    """Raise DataError where `place` puts what is written for a mask on an image, or among images that were searched.

    Args:
        folders: all that are written.
        read: real paths of the folders that were searched.
    """
    real = cache(lambda folder: os.path.realpath(folder))
    key = cache(lambda folder: name_key(real(folder)))
    # Folders are few and images many: mostly it ends here.
    if not {key(job.image.parent) for job in jobs} & {key(folder) for folder in folders} and not (
        {real(folder) for folder in folders} & read
    ):
        return
    images = {(key(job.image.parent), name_key(job.image.name)) for job in jobs}
    replaced, inside = [], []
    for path in (place(job.mask) for job in jobs):
        if (key(path.parent), name_key(path.name)) in images:
            replaced.append(str(path))
        elif real(path.parent) in read:
            inside.append(str(path))
    if replaced:
        raise DataError(
            f"{len(replaced)} images would be replaced by their own {what}s:\n{_listed(replaced)}\n"
            f"Choose another folder for {option}."
        )
    if inside:
        raise DataError(
            f"{len(inside)} {what}s would lie among the images and be taken for images next time:\n{_listed(inside)}\n"
            f"Choose a folder of its own for {option}."
        )


def _listed(lines: Sequence[str]) -> str:
    more = [f"  ... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n".join([f"  {line}" for line in lines[:_SHOWN]] + more)
