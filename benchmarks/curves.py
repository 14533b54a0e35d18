"""Curves with matplotlib: how the Jaccard index is spread over the images, and how training runs went."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from isicrt.benchmarks.evaluation import Scored
from isicrt.engine.errors import DataError, MissingDependencyError
from isicrt.engine.scores import FAILURE_JACCARD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = "metrics.csv"
COLUMNS = ("epoch", "train_loss", "val_loss", "val_jaccard")
"""Of a run's metrics, what is drawn."""


def draw_spread(scored: Sequence[Scored], path: Path, *, title: str) -> None:
    """A histogram of the images' Jaccard index, and the share of images below each value, as PNG.

    Args:
        scored: the models.
        path: of the PNG.
        title: above the plots.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        DataError: the file cannot be written.
    """
    figure = new_figure(title)
    left, right = figure.subplots(1, 2)
    for model in scored:
        jaccard = np.sort([case.scores.jaccard for case in model.cases])
        left.hist(jaccard, bins=np.linspace(0, 1, 21).tolist(), histtype="step", linewidth=1.5, label=model.label)
        right.step([0, *jaccard, 1], [0, *np.arange(1, len(jaccard) + 1) / len(jaccard), 1], where="post")
    left.set_ylabel("images")
    right.set_ylabel("share of images at or below")
    for axes in (left, right):
        axes.axvline(FAILURE_JACCARD, color="0.5", linestyle="--", linewidth=1)
        axes.set_xlabel(f"Jaccard index (dashed: {FAILURE_JACCARD})")
        axes.set_xlim(0, 1)
        axes.grid(alpha=0.3)
    left.legend(loc="upper left")
    _save(figure, path)


def draw_runs(runs: Sequence[Path], path: Path) -> None:
    """Losses and validation Jaccard index of several training runs by epoch, in one PNG.

    Args:
        runs: folders with a ``metrics.csv``, see `read_run`.
        path: of the PNG.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        DataError: a run cannot be read, or the file cannot be written.
    """
    figure = new_figure("training runs")
    left, right = figure.subplots(1, 2)
    floors, highest = [], 0.0
    for n, run in enumerate(runs):
        metrics = read_run(run)
        floors.append(floor(metrics["val_jaccard"]))
        highest = max(highest, *metrics["val_jaccard"])
        epochs, colour = metrics["epoch"], f"C{n}"
        label = f"{run.absolute().name} ({len(epochs)} epochs)"
        left.plot(epochs, metrics["train_loss"], color=colour, linestyle="--", linewidth=1)
        left.plot(epochs, metrics["val_loss"], color=colour, label=label)
        right.plot(epochs, metrics["val_jaccard"], color=colour, label=label)
    left.set_ylabel("loss (dashed: training, solid: validation)")
    right.set_ylabel("validation Jaccard index")
    if floors:
        right.set_ylim(min(floors), highest + 0.1 * (highest - min(floors)) + 0.005)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    left.legend()
    _save(figure, path)


def floor(scores: Sequence[float]) -> float:
    """Where the axis of a run's scores, one an epoch, begins: below all but those of the first tenth of its epochs, in
    which it has learned little yet and the rest would be pressed into a line."""
    learned = scores[len(scores) // 10 :]
    return max(0.0, min(learned) - 0.1 * (max(scores) - min(learned)) - 0.005)


def read_run(run: Path) -> dict[str, list[float]]:
    """`COLUMNS` of a run's metrics, one value an epoch.

    Raises:
        DataError: no such file, no epoch in it, or a column that is missing or no number.
    """
    path = run / METRICS
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows: list[Mapping[str, str]] = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}). --runs takes run folders of `isicrt train`.") from error
    if not rows:
        raise DataError(f"{path}: holds no epoch yet")
    try:
        return {name: [float(row[name]) for row in rows] for name in COLUMNS}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: expected numbers in the columns {', '.join(COLUMNS)}: {error!r}") from error


def new_figure(title: str) -> Figure:
    """An empty figure without pyplot's global state, which never asks for a display.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "train", str(error)) from error
    figure = Figure(figsize=(10, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    return figure


def _save(figure: Figure, path: Path) -> None:
    try:
        figure.savefig(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
