"""The rows of the report's table as training runs: the recipe that each follows, its folder, and how far it is.

A run has two stages, ``frozen`` and ``tuned``, and gives two models, ``frozen.pt`` and ``tuned.pt``: the last epoch of
each stage, because the report chose none. A run that has begun goes on as it began: its ``config.yaml`` decides.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from isicrt._version import __version__
from isicrt.engine.errors import SettingsError, TrainingError
from isicrt.trainer import checkpoint
from isicrt.trainer.models import build_model
from isicrt.trainer.recipe import Recipe, load_recipe
from isicrt.trainer.run_folder import has_begun, replace_text

ROWS = ("unet", "segnet-attention", "segnet-attention-atrous", "segnet-attention-atrous-augmented")
ENCODER_RATES = (1e-4, 1e-5, 1e-6)
"""Among which the report searched the encoder's rate."""
RUN = "run.json"
"""What a run's other files do not say: the machine and the number of parameters."""
_RECENT = 5


@dataclass(frozen=True)
class Run:
    """One training run, to be made or made."""

    row: str
    label: str
    """For people."""
    folder: Path
    recipe: Recipe
    fold: int = 0
    seed: int = 0
    data_sha256: str | None = None
    """Of the data that the run has begun with; None where it has not begun, or does not say."""

    @property
    def epochs_done(self) -> int:
        """Epochs in the run's metrics."""
        return len(checkpoint.read_metrics(self.folder))

    @property
    def finished(self) -> bool:
        """Whether every stage has left its model, and every epoch its row: that is written last. Where ``last.pt`` was
        deleted, which no run does, the models are enough."""
        models = all((self.folder / f"{stage.name}.pt").is_file() for stage in self.recipe.stages)
        saved = self.epochs_done >= self.recipe.epochs or not (self.folder / checkpoint.LAST).exists()
        return models and saved

    @property
    def last_checkpoint(self) -> Path | None:
        """What to go on from. A run that was stopped while its copies were made has no such file yet."""
        return self.folder / checkpoint.LAST if has_begun(self.folder) else None


def plan_row(
    out: Path,
    row: str,
    layout: str,
    *,
    epochs: int | None = None,
    seed: int | None = None,
    encoder_lr: float | None = None,
) -> Run:
    """The run of a row.

    Args:
        out: folder of all runs.
        row: one of `ROWS`.
        layout: ``light`` or ``report``.
        epochs: in all; None for the recipe's, or for what the run began with.
        seed: None for 0, or for what the run began with.
        encoder_lr: of the tuned stage, for a run that has not begun; None for the recipe's.

    Raises:
        SettingsError: the run has begun with other epochs or another seed.
    """
    run = Run(row, row, out / f"{row}-{layout}", _recipe(row, layout, epochs, encoder_lr), seed=seed or 0)
    return _as_begun(run, epochs, seed)


def plan_search(out: Path, row: str, layout: str, *, epochs: int, seed: int | None = None) -> list[Run]:
    """One run for each of `ENCODER_RATES`; arguments as for `plan_row`."""
    return [_searched(out, row, layout, rate, epochs, seed) for rate in ENCODER_RATES]


def plan_folds(
    out: Path,
    row: str,
    layout: str,
    *,
    epochs: int,
    folds: int | None = None,
    seed: int | None = None,
    encoder_lr: float | None = None,
) -> list[Run]:
    """One run for each fold that validates; `folds` None for the recipe's number, other arguments as for `plan_row`."""
    recipe = _recipe(row, layout, epochs, encoder_lr)
    recipe = recipe if folds is None else dataclasses.replace(recipe, folds=folds)
    place = out / "folds" / f"{row}-{layout}-{recipe.folds}"
    return [
        _as_begun(
            Run(row, f"{row}, fold {fold} of {recipe.folds}", place / f"fold{fold}", recipe, fold, seed or 0),
            epochs,
            seed,
        )
        for fold in range(recipe.folds)
    ]


def found_rate(out: Path, row: str, layout: str) -> float | None:
    """The encoder's rate with the highest validation Jaccard index after the last epoch, from a finished search of this
    row or else of another one; None where no search is finished."""
    for searched in (row, *ROWS):
        runs = {rate: _searched(out, searched, layout, rate, None, None) for rate in ENCODER_RATES}
        if all(run.finished for run in runs.values()):
            last = {rate: checkpoint.read_metrics(run.folder)[-1] for rate, run in runs.items()}
            return max(last, key=lambda rate: float(last[rate]["val_jaccard"]))
    return None


def count_parameters(recipe: Recipe) -> int:
    """Of the recipe's network, encoder and decoder. Nothing is allocated."""
    import torch

    with torch.device("meta"):
        model = build_model(recipe.architecture, layout=recipe.layout, decoder_channels=recipe.decoder_channels)
    return sum(p.numel() for p in model.parameters())


def note_machine(run: Run, machine: dict[str, Any], *, training: int, validation: int) -> None:
    """Write ``run.json`` into the run's folder, which is there. A run that went on elsewhere has the last machine.

    Raises:
        TrainingError: it cannot be written; without it the run gives no row of the table.
    """
    content = {
        "row": run.row,
        "parameters": count_parameters(run.recipe),
        "training_images": training,
        "validation_images": validation,
        "isicrt": __version__,
        "machine": machine,
    }
    _write(run, content)


def note_memory(run: Run, peak: int) -> None:
    """Add to ``run.json`` what torch has taken of the GPU's memory at most, in bytes. Raises as `note_machine`."""
    content = json.loads((run.folder / RUN).read_text(encoding="utf-8"))
    _write(run, content | {"gpu_memory_peak_bytes": peak})


def _write(run: Run, content: dict[str, Any]) -> None:
    try:
        replace_text(run.folder / RUN, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise TrainingError(f"{run.folder}: {RUN} could not be saved: {error}") from error


def seconds_left(run: Run, others: Iterable[Run]) -> tuple[float, bool]:
    """How long the rest of a run takes, from the epochs of its own stages or of like runs'.

    Returns:
        Seconds, and whether the time of every stage that is left is known; those that are not count 0.
    """
    rows = checkpoint.read_metrics(run.folder)
    total, known, start = 0.0, True, 0
    for stage in run.recipe.stages:
        left = min(stage.epochs, start + stage.epochs - len(rows))
        start += stage.epochs
        if left <= 0:
            continue
        seconds = _epoch_seconds(rows, stage.name)
        for other in others:
            if math.isnan(seconds) and _alike(run.recipe, other.recipe):
                scale = (1 + run.recipe.augmented_copies) / (1 + other.recipe.augmented_copies)
                seconds = scale * _epoch_seconds(checkpoint.read_metrics(other.folder), stage.name)
        known &= not math.isnan(seconds)
        total += 0 if math.isnan(seconds) else left * seconds
    return total, known


def _alike(a: Recipe, b: Recipe) -> bool:
    return (a.architecture, a.layout, a.input_size) == (b.architecture, b.layout, b.input_size)


def _epoch_seconds(rows: Sequence[dict[str, str]], stage: str) -> float:
    """Median of a stage's last epochs; NaN where there is none."""
    seconds = sorted(float(row["seconds"]) for row in [r for r in rows if r["stage"] == stage][-_RECENT:])
    return seconds[len(seconds) // 2] if seconds else math.nan


def _searched(out: Path, row: str, layout: str, rate: float, epochs: int | None, seed: int | None) -> Run:
    """One run of a search; `epochs` None for what it began with."""
    folder = out / "search" / f"{row}-{layout}-{rate:.0e}"
    run = Run(row, f"{row}, encoder rate {rate:g}", folder, _recipe(row, layout, epochs, rate), seed=seed or 0)
    return _as_begun(run, epochs, seed)


def _recipe(row: str, layout: str, epochs: int | None, encoder_lr: float | None) -> Recipe:
    recipe = load_recipe(f"report-{row}" + ("-light" if layout == "light" else ""))
    if encoder_lr is not None:
        stages = tuple(s if s.frozen else dataclasses.replace(s, encoder_lr=encoder_lr) for s in recipe.stages)
        recipe = dataclasses.replace(recipe, stages=stages)
    return recipe if epochs is None else recipe.with_epochs(epochs)


def _as_begun(run: Run, epochs: int | None, seed: int | None) -> Run:
    """The run as its folder says that it began. Raises SettingsError where that is not what is asked for."""
    path = run.folder / checkpoint.CONFIG
    if run.last_checkpoint is None:
        return run
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        begun = dataclasses.replace(
            run,
            recipe=Recipe.from_dict(config["recipe"]),
            fold=config["fold"],
            seed=config["seed"],
            data_sha256=config.get("data_sha256"),
        )
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, SettingsError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}. Delete {run.folder} to train it again") from error
    asked = {"epochs": epochs, "seed": seed}
    for name, then in {"epochs": begun.recipe.epochs, "seed": begun.seed}.items():
        if asked[name] is not None and asked[name] != then:
            raise SettingsError(
                f"{run.folder}: began with {name} {then}, not {asked[name]}. Leave the option away to keep the run, "
                "name another folder with --out, or delete this one"
            )
    return begun
