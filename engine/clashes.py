"""What is wrong with where masks would go, found before an image is read: two masks of one name, masks on images.

What can go wrong is rare and images are many: all that is kept of each is the hash of its name, and where two agree the
names are compared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path

from isicrt.engine.errors import DataError
from isicrt.engine.image_search import EXTENSIONS, ImageSearch
from isicrt.engine.jobs import Jobs
from isicrt.engine.journal import JOURNAL_NAME
from isicrt.engine.names import equal_keys, name_key, shared_keys
from isicrt.engine.output import OVERLAYS_NAME, clean_names
from isicrt.engine.overlay_label import read_label

SHOWN = 10
"""Lines of a list in a message."""
LONGEST_NAME = 255
"""Bytes of one name that every usual file system takes."""
REMEMBERED = 1 << 12
"""Folders of which something is remembered: there may be as many of them as images."""

# Of a folder and of a name, see `name_key`.
_Key = tuple[str, str]


class ClashError(DataError):
    """Images whose masks would have one name, or a folder's.

    Args:
        message: of who writes masks.
        images: one such clash.
    """

    def __init__(self, message: str, images: list[Path]) -> None:
        super().__init__(message)
        self.images = images


def settle_clashes(jobs: Jobs, on_clash: str) -> None:
    """Do what `on_clash` says (see `isicrt.engine.sources.find_jobs`) where masks would have one name, or a folder's.

    Raises:
        ClashError: they have, and the masks' names cannot be changed.
    """
    clashes, blocked = _clashes(jobs), _named_like_folders(jobs)
    if on_clash == "extension" and (clashes or blocked):
        for numbers in (*clashes, blocked):
            for n in numbers:
                jobs.keep_extension(n)
        clashes, blocked = _clashes(jobs), _named_like_folders(jobs)
    if on_clash == "fail":
        for n in blocked:
            job = jobs[n]
            jobs.fail(n, f"{job.image}: its mask, {job.mask}, would stand where a folder of masks goes")
        for numbers in clashes:
            for n in numbers:
                job, other = jobs[n], jobs[numbers[1] if n == numbers[0] else numbers[0]]
                jobs.fail(n, f"{job.image}: {other.image} would have the same mask, {job.mask}")
    elif clashes or blocked:
        count = len(clashes) + len(blocked)
        advice = "or see --on-clash (on_clash in Python)"
        if on_clash == "extension":
            advice = "or take --on-clash fail, which does the others: their extensions do not tell these apart"
        raise ClashError(
            f"{count} masks would belong to more than one image, or stand where a folder of masks goes:\n"
            f"{_listed(_clash_lines(jobs, clashes, blocked), count)}\n"
            f"Rename the images, segment them in separate runs with a different --out, {advice}.",
            [jobs[n].image for n in (clashes[0] if clashes else blocked[:1])],
        )


def fail_long_names(jobs: Jobs) -> None:
    """Give jobs a `Job.problem` whose masks have names that no file system takes."""
    for n in range(len(jobs)):
        if len(os.fsencode(jobs.mask_name(n))) > LONGEST_NAME:
            jobs.fail(n, f"{jobs[n].image}: its mask's name would be longer than {LONGEST_NAME} bytes")


def check_images_safe(
    jobs: Jobs,
    place: Callable[[Path], Path],
    rename: Callable[[str], str],
    what: str,
    option: str,
    read: set[str],
) -> None:
    """Raise DataError where what is written for a mask would replace an image, or lie among images that were searched.

    Args:
        place: folder of the masks -> the one that is written.
        rename: name of a mask -> the one that is written.
        read: real paths of the folders that were searched.
    """
    real = lru_cache(REMEMBERED)(lambda folder: os.path.realpath(folder))
    key = lru_cache(REMEMBERED)(lambda folder: name_key(real(folder)))
    # Folders are few and images many: mostly it ends here.
    common = {key(f.images) for f in jobs.folders()} & {key(place(f.masks)) for f in jobs.folders()}
    if not common and not any(real(place(f.masks)) in read for f in jobs.folders()):
        return

    def images() -> Iterator[_Key]:
        for folder in jobs.folders():
            if key(folder.images) in common:
                yield from ((key(folder.images), name_key(jobs.image_name(n))) for n in folder.numbers)

    def written() -> Iterator[_Key]:
        for folder in jobs.folders():
            there = key(place(folder.masks))
            yield from ((there, name_key(rename(jobs.mask_name(n)))) for n in folder.numbers)

    def paths(numbers: Iterable[int]) -> Iterator[str]:
        return (str(place(jobs.folder_of(n).masks) / rename(jobs.mask_name(n))) for n in numbers)

    replaced = shared_keys(written, images)
    if replaced:
        raise DataError(
            f"{len(replaced)} images would be replaced by their own {what}s:\n"
            f"{_listed(paths(replaced), len(replaced))}\n"
            f"Choose another folder for {option}."
        )
    inside = [f.numbers for f in jobs.folders() if real(place(f.masks)) in read]
    count = sum(map(len, inside))
    if count:
        raise DataError(
            f"{count} {what}s would lie among the images and be taken for images next time:\n"
            f"{_listed(paths(n for numbers in inside for n in numbers), count)}\n"
            f"Choose a folder of its own for {option}."
        )


def check_overlays_apart(jobs: Jobs, out: Path, overlays: Path, place: Callable[[Path], Path]) -> None:
    """Raise DataError where overlays would come among or above images that isicrt did not draw: they might replace
    them, and what lies in a folder of overlays, or below it, is left out when photographs are looked for. So is what
    lies in the run's own folder of masks, wherever that is.

    Args:
        out: the run's folder of masks.
        overlays: their folder. What lies in one that is marked is isicrt's, whatever it is.
        place: folder of the masks -> that of their overlays.
    """
    if os.path.lexists(overlays / OVERLAYS_NAME):
        return

    def look(folder: str, name: str) -> None:
        if read_label(Path(folder, name)) is None:
            raise DataError(
                f"{folder}: holds images of which nothing says that isicrt drew them, such as {name}. Overlays replace "
                "what has their names, and the others would be left out where photographs are looked for. Choose "
                "another folder for --overlay, or move these images away. If isicrt drew them, as it did before it "
                f"marked such folders, make an empty file {overlays / OVERLAYS_NAME}."
            )

    for landing in dict.fromkeys([overlays, *(place(f.masks) for f in jobs.folders())]):
        for name in clean_names(landing, set()):
            if Path(name).suffix.lower() in EXTENSIONS:
                look(str(landing), name)
    if not os.path.lexists(overlays / JOURNAL_NAME):  # else it is left out already, with all that is below it
        ImageSearch([out], look).walk(str(overlays))


def _clashes(jobs: Jobs) -> list[list[int]]:
    """Numbers of the jobs that claim one mask."""

    def keys() -> Iterator[_Key]:
        for folder in jobs.folders():
            key = name_key(str(folder.masks))
            yield from ((key, name_key(jobs.mask_name(n))) for n in folder.numbers)

    def key_of(n: int) -> _Key:
        return name_key(str(jobs.folder_of(n).masks)), name_key(jobs.mask_name(n))

    return equal_keys(keys(), key_of)


def _named_like_folders(jobs: Jobs) -> list[int]:
    """Numbers of the jobs whose mask would have the name of a folder of masks: ``x.jpg`` beside ``x.png/``."""
    # A folder called .png is rare, and a million names need not be looked at.
    folders = [folder.masks for folder in jobs.folders() if ".png" in name_key(str(folder.masks))]
    keys = {name_key(str(folder)) for below in folders for folder in (below, *below.parents)}
    if not any(key.endswith(".png") for key in keys):
        return []
    return [n for n, job in enumerate(jobs) if name_key(str(job.mask)) in keys]


def _clash_lines(jobs: Jobs, clashes: list[list[int]], blocked: list[int]) -> Iterator[str]:
    for claim in clashes:
        yield f"{' and '.join(str(jobs[n].image) for n in claim)} -> {jobs[claim[0]].mask}"
    for n in blocked:
        yield f"{jobs[n].image} -> {jobs[n].mask}, a folder"


def _listed(lines: Iterable[str], count: int) -> str:
    more = [f"  ... and {count - SHOWN} more"] if count > SHOWN else []
    return "\n".join([*(f"  {line}" for line in islice(lines, SHOWN)), *more])
