"""What `isicrt segment` says of masks that are there and want a look: counts, and the first names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isicrt.engine.jobs import Jobs
    from isicrt.engine.outcome import Outcome

_NAMED = 3


def truth_lines(jobs: Jobs) -> Iterator[str]:
    """A warning where photographs are to be segmented and ground truth with them: whoever names a whole data set does
    not mean that."""
    if count := jobs.truths:
        images, have = _counted(len(jobs), "image", "images"), "has" if count == 1 else "have"
        yield (
            f"{count} of the {images} {have} the name of a ground truth, such as {jobs.first_truth}, and will be "
            "segmented like photographs: name the folder of the photographs, or a pattern such as 'FOLDER/**/*.jpg'"
        )


def among_truths(out: Path) -> Iterator[str]:
    """A warning where masks would lie among what looks like ground truth, which nobody could tell apart later: in a
    folder that no run has written to."""
    from isicrt.engine.journal import JOURNAL_NAME
    from isicrt.engine.sources import has_name_of_truth

    with suppress(OSError):  # what is wrong with the folder is said where it is made
        if (out / JOURNAL_NAME).exists():
            return
        with os.scandir(out) as entries:
            named = next((entry.name for entry in entries if has_name_of_truth(entry.name)), None)
        if named is not None:
            yield (
                f"{out} holds what looks like ground truth, such as {named}; the masks will lie beside it. Another "
                "--out keeps them apart"
            )


def idle_lines(
    *, processes: int | None, threads: int | None, isolate: str, overlay: bool, cpu_alone: bool
) -> Iterator[str]:
    """What was asked for and changes nothing. `cpu_alone`: whether no GPU and no plan takes part."""
    from isicrt.engine.task_process import HAS_TIME_LIMIT

    if processes and overlay:
        yield "--processes does nothing here: overlays, and with them the masks, are made in the run's own process"
    elif processes and cpu_alone and isolate == "always":
        yield "--processes does nothing here: with --isolate always processes decode, and the run's own does the rest"
    elif processes and cpu_alone and not HAS_TIME_LIMIT:
        yield "--processes does nothing here: this system cannot give up one that hangs, and threads do it all"
    elif processes and cpu_alone and threads:
        yield "--threads does nothing here but for what no process takes: each of the --processes has one thread"


class Some:
    """Files of one kind: how many, and the first few of them."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[Path] = []

    def add(self, path: Path) -> None:
        self.count += 1
        if self.count <= _NAMED:
            self._first.append(path)

    @property
    def first(self) -> Path | None:
        """The first one."""
        return self._first[0] if self._first else None

    def names(self) -> str:
        """The first few."""
        return ", ".join(map(str, self._first)) + (", ..." if self.count > _NAMED else "")


class MaskNotices:
    """Of one run, those masks among them that an earlier one made."""

    def __init__(self) -> None:
        self._damaged, self._turned, self._first, self._empty = Some(), Some(), Some(), Some()

    def add(self, outcome: Outcome) -> None:
        if outcome.found_nothing:
            self._empty.add(outcome.job.mask)
        if outcome.note is None or outcome.error is not None:
            return
        from isicrt.engine.jpeg_notes import DAMAGED, FIRST, TURNED

        for kind, such in ((DAMAGED, self._damaged), (TURNED, self._turned), (FIRST, self._first)):
            if kind in outcome.note:
                such.add(outcome.job.image)

    def counts(self) -> dict[str, int]:
        """For the report."""
        return {
            "damaged": self._damaged.count,
            "turned_by_exif": self._turned.count,
            "first_of_several": self._first.count,
            "without_lesion": self._empty.count,
        }

    def lines(self) -> Iterator[str]:
        """What there is to say."""
        if count := self._damaged.count:
            yield (
                f"{_counted(count, 'image looks', 'images look')} damaged and may have a wrong mask: "
                f"{self._damaged.names()} (the column note of --csv FILE says it of each)"
            )
        if count := self._turned.count:
            yield (
                f"{_counted(count, 'image has', 'images have')} an EXIF orientation, such as {self._turned.first}: "
                "masks have the stored pixel grid, a viewer that turns the image does not turn the mask (docs/data.md)"
            )
        if count := self._first.count:
            yield (
                f"{_counted(count, 'file holds', 'files hold')} several pages or frames, such as {self._first.first}: "
                "only the first has a mask (the column note of --csv FILE says how many there are)"
            )
        if count := self._empty.count:
            yield f"{_counted(count, 'mask has', 'masks have')} no lesion, such as {self._empty.first}"


def _counted(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"
