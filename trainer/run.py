"""A training run: where it gets its data and where it goes, and who is told how it goes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isicrt.trainer.dataset import DatasetReport
from isicrt.trainer.recipe import Recipe


@dataclass(frozen=True)
class RunSettings:
    """Where a run gets its data and where it goes; what it does is the recipe's."""

    recipe: Recipe
    data: tuple[Path, ...]
    """One or several data sets, see `find_pairs`."""
    out: Path
    fold: int | None = 0
    """The fold that validates; None to learn from every pair, validate nothing and keep the last epoch."""
    seed: int = 0
    device: str = "cpu"
    """``cpu`` or ``cuda``."""
    cache: bool = True
    """Decode once and keep the resized pairs, see `resized_pairs`; False decodes in every epoch."""
    pretrained: str | os.PathLike[str] | None = "imagenet"
    """Of the encoder, see `MobileNetV2Encoder`."""
    resume: Path | None = None
    """The ``last.pt`` of `out`, to go on from. It may be missing where the run was stopped while its teachers
    learned."""
    start_from: Path | None = None
    """A checkpoint whose weights this run begins with, in place of `pretrained`: the same architecture and widths,
    any input size. Its last epoch where it has one, else its average."""
    held_out: tuple[int, int] | None = None
    """(k, n): do not learn from part k of the n parts of the training pairs, see `hold_out`. None learns from all."""


class Listener:
    """Is told how a run goes. This one says nothing; the command line's draws a progress bar."""

    def checked(self, report: DatasetReport) -> None:
        """The data are found and sound. Told once, before anything is learned."""

    def started(self, recipe: Recipe, training: int, validation: int, grey_masks: int, done: int) -> None:
        """The data are checked, so many masks are grey; `done` epochs were trained before. Told of each teacher too."""

    def stepped(self, epoch: int, images: int, loss: float) -> None:
        """A batch of so many images is learned."""

    def finished(self, row: Mapping[str, Any]) -> None:
        """An epoch is validated and saved; `row` goes to ``metrics.csv``."""

    def teaching(self, teacher: int, teachers: int) -> None:
        """Of so many teachers, numbered from 1, this one learns next; what follows is of its run."""

    def predicting(self, images: int, teachers: int) -> None:
        """All teachers have learned and predict so many images; then the run's own training begins."""
