"""The pictures of a run folder: loss and score curves, and samples of what the network sees."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from isicrt.engine.errors import MissingDependencyError


def check_matplotlib() -> None:
    """Raises MissingDependencyError where curves cannot be drawn."""
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "train", str(error)) from error


def draw_curves(rows: Sequence[Mapping[str, str]], path: Path, *, title: str) -> None:
    """Losses and validation scores by epoch, as PNG; a dashed line where a new stage begins.

    Args:
        rows: of ``metrics.csv``.
        path: of the PNG.
        title: above the plots.
    """
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Without pyplot there is no global state, and no display is ever asked for.
    figure = Figure(figsize=(10, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    epochs = [int(row["epoch"]) for row in rows]
    panels = (
        (left, {"train_loss": "training", "val_loss": "validation"}, "loss"),
        (right, {"val_jaccard": "Jaccard", "val_dice": "Dice", "val_threshold_jaccard": "threshold Jaccard"}, "score"),
    )
    for axes, series, label in panels:
        for name, legend in series.items():
            axes.plot(epochs, [float(row[name]) for row in rows], label=legend, marker="." if len(rows) < 30 else "")
        for previous, row in itertools.pairwise(rows):
            if row["stage"] != previous["stage"]:
                axes.axvline(int(row["epoch"]) - 0.5, color="0.6", linestyle="--", linewidth=1)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    right.set_title("validation", fontsize="medium")
    figure.savefig(path)


def draw_samples(images: Tensor, masks: Tensor, path: Path, *, columns: int = 8) -> None:
    """A sheet of training images, each above itself with its mask's outline in green, as PNG.

    Args:
        images: uint8 N x H x W x 3.
        masks: float N x 1 x H x W, in [0, 1]; the outline is at a half.
        path: of the PNG.
        columns: at most so many images in a row; two rows of images at the most.
    """
    shown = min(len(images), 2 * columns)
    pictures = images[:shown].cpu().numpy()
    lesions = masks[:shown, 0].cpu().numpy() > 0.5
    outlined = pictures.copy()
    # A pixel of the mask that has a neighbour outside it.
    inner = lesions.copy()
    inner[:, 1:-1, 1:-1] &= lesions[:, :-2, 1:-1] & lesions[:, 2:, 1:-1] & lesions[:, 1:-1, :-2] & lesions[:, 1:-1, 2:]
    outlined[lesions & ~inner] = (0, 255, 0)
    cells = np.concatenate([pictures, outlined], axis=1)
    blank = [np.zeros_like(cells[0])] * (-shown % columns if shown > columns else 0)
    tiles = [*cells, *blank]
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    Image.fromarray(np.concatenate(rows)).save(path)
