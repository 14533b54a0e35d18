"""The images of a run and the files of their masks: a million of them in little memory."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, overload

from isicrt.engine.left_out import LeftOut
from isicrt.engine.names import PackedNames


@dataclass(frozen=True)
class Job:
    """One image and the file that its mask is written to."""

    image: Path
    mask: Path
    problem: str | None = None
    """Why the image cannot be segmented, where that was found out before it was read."""


class JobFolder(NamedTuple):
    """Jobs whose images lie in one folder."""

    images: str
    """The folder, as the images' paths spell it."""
    masks: Path
    """The folder of their masks."""
    numbers: range
    """Of the jobs."""


class Jobs(Sequence[Job]):
    """The jobs of a run, each made when it is asked for: names are kept in some 25 bytes an image, and what can be said
    of a folder is said once. The few whose masks have other names, or that have problems, are noted beside.

    Args:
        out: the folder of the masks.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._names = PackedNames()
        # Number of the first job, folder of the images, folder of the masks below `out`; a folder may hold one image.
        self._starts = array("Q")
        self._folders = PackedNames()
        self._below = PackedNames()
        self._whole_names = bytearray()
        self._problems: dict[int, str] = {}
        self._failures: list[Job] = []
        self.left_out = LeftOut()
        """What the search for the images found and did not take."""
        self.truths = 0
        """Images that are ground truth by their folder or their names, see `isicrt.engine.sources.TRUTH_ENDINGS`."""
        self.first_truth: Path | None = None

    def add_folder(self, folder: str, below: str, names: PackedNames) -> None:
        """Append the images of a folder.

        Args:
            folder: as their paths are to spell it.
            below: where the folder of their masks lies below `out`.
            names: of the images.
        """
        self._starts.append(len(self._names))
        self._folders.append(folder)
        self._below.append(below)
        self._names.extend(names)

    def add_failure(self, failure: Job) -> None:
        """Append what is no image and has failed all the same, such as a folder that cannot be read. It lies in no
        folder, and comes behind everything else: nothing but problems may be added afterwards."""
        self._failures.append(failure)

    @property
    def images(self) -> list[Path]:
        """The images, for who writes no masks of them; without what `add_failure` appended."""
        return [self[n].image for n in range(len(self._names))]

    def keep_extension(self, n: int) -> None:
        """Name the mask of ``a.jpg`` ``a.jpg.png``. No folder may be added afterwards."""
        self._whole_names = self._whole_names or bytearray(len(self._names))
        self._whole_names[n] = True

    def fail(self, n: int, problem: str) -> None:
        """Give a job its `Job.problem`; the last one counts."""
        self._problems[n] = problem

    def folders(self) -> Iterator[JobFolder]:
        """All of them in order; one that paths spell in several ways, in turns, comes several times."""
        return map(self._folder, range(len(self._starts)))

    def folder_of(self, n: int) -> JobFolder:
        """The folder of a job."""
        return self._folder(bisect_right(self._starts, n) - 1)

    def image_name(self, n: int) -> str:
        """The name of an image, without its folder."""
        return self._names[n]

    def mask_name(self, n: int) -> str:
        """The name of a mask, without its folder."""
        name = self._names[n]
        return (name if self._whole_names and self._whole_names[n] else _stem(name)) + ".png"

    def __len__(self) -> int:
        return len(self._names) + len(self._failures)

    @overload
    def __getitem__(self, index: int) -> Job: ...
    @overload
    def __getitem__(self, index: slice) -> list[Job]: ...

    def __getitem__(self, index: int | slice) -> Job | list[Job]:
        if isinstance(index, slice):
            return [self[n] for n in range(len(self))[index]]
        n = range(len(self))[index]
        if n >= len(self._names):
            return self._failures[n - len(self._names)]
        folder = self.folder_of(n)
        return self._job(n, Path(folder.images), folder.masks)

    def __iter__(self) -> Iterator[Job]:
        for folder in self.folders():
            images = Path(folder.images)
            for n in folder.numbers:
                yield self._job(n, images, folder.masks)
        yield from self._failures

    def _job(self, n: int, images: Path, masks: Path) -> Job:
        return Job(images / self._names[n], masks / self.mask_name(n), self._problems.get(n))

    def _folder(self, n: int) -> JobFolder:
        end = self._starts[n + 1] if n + 1 < len(self._starts) else len(self._names)
        return JobFolder(self._folders[n], self._out / self._below[n], range(self._starts[n], end))


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name
