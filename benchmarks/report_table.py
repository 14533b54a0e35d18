"""The report's table beside ours: what the run folders of `isicrt reproduce` hold and what was scored, as JSON.

Results come in as files: ``config.yaml``, ``metrics.csv``, ``run.json`` and the checkpoints' hashes. A row that is in
the table stays there, with its scores, until another run of the same row takes its place: it outlives its run folder.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from isicrt.benchmarks.scoring_protocol import NEVER_COMPARE
from isicrt.engine.errors import DataError, MissingDependencyError

SCHEMA = "isicrt-report-table/1"
STAGES = ("frozen", "tuned")
LAYOUTS = ("light", "report")

PUBLISHED = {
    "unet": {"frozen": (0.77, 0.858), "tuned": (0.792, 0.858)},
    "segnet-attention": {"frozen": (0.58, 0.70), "tuned": (0.70, 0.79)},
    "segnet-attention-atrous": {"frozen": (0.78, 0.871), "tuned": (0.81, 0.88)},
    "segnet-attention-atrous-augmented": {"frozen": (0.798, 0.879), "tuned": (0.81, 0.89)},
}
"""Mean IoU and Dice of the report's table, by its own protocol, on 379 images."""


@dataclass(frozen=True)
class Cell:
    """One model of a row: the last epoch of a stage."""

    stage: str
    sha256: str
    """Of the checkpoint."""
    epochs: int
    """Of this stage."""
    encoder_lr: float
    decoder_lr: float
    hours: float
    """Of this stage, validation included, as its epochs were timed."""
    images_per_second: float
    """Of training, median of the epochs."""
    validation: Mapping[str, float]
    """After the last epoch: loss, jaccard, dice, threshold_jaccard."""
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """On the test set, by name of the protocol; empty where it was not scored."""


@dataclass(frozen=True)
class Row:
    """A row that was trained."""

    name: str
    layout: str
    parameters: int
    training_images: int
    """Augmented copies included."""
    validation_images: int
    fold: int
    seed: int
    device: str
    machine: Mapping[str, Any]
    """See `isicrt.benchmarks.environment.Environment`."""
    torch: str
    data_sha256: str
    recipe: Mapping[str, Any]
    cells: tuple[Cell, ...]
    """Frozen, tuned."""

    @property
    def scored(self) -> bool:
        """Whether every cell has its scores."""
        return all(cell.scores for cell in self.cells)


@dataclass(frozen=True)
class NotRun:
    """A row that was not trained."""

    name: str
    layout: str
    parameters: int
    reason: str


@dataclass(frozen=True)
class Trial:
    """A short run of a search or of a cross-validation."""

    setting: float
    """The encoder's rate, or the fold."""
    images: int
    """Of validation."""
    validation: Mapping[str, float]
    """After the last epoch, see `Cell`."""
    hours: float


@dataclass(frozen=True)
class Trials:
    """Short runs of one row that differ in one setting."""

    name: str
    layout: str
    epochs: Mapping[str, int]
    """By stage."""
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """That with the highest validation Jaccard index."""
        return max(self.trials, key=lambda trial: trial.validation["jaccard"])

    def spread(self, score: str) -> tuple[float, float]:
        """Mean and standard deviation (of a sample; 0 of a single run) of a validation score."""
        values = [trial.validation[score] for trial in self.trials]
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class TestSet:
    """What the models were scored on."""

    __test__ = False  # for pytest, which collects by name

    label: str
    images: int
    sha256: str


@dataclass(frozen=True)
class ReportTable:
    """All of it."""

    rows: tuple[Row, ...] = ()
    not_run: tuple[NotRun, ...] = ()
    search: Trials | None = None
    cross_validation: Trials | None = None
    test_set: TestSet | None = None
    command: str = ""
    date: str = ""
    """ISO 8601, UTC."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with the report's own figures beside ours."""
        search, folds = self.search, self.cross_validation
        return {
            "schema": SCHEMA,
            "command": self.command,
            "date": self.date,
            "note": f"{NEVER_COMPARE} The report's own figures are by its protocol, on 379 images.",
            "test_set": None if self.test_set is None else asdict(self.test_set),
            "rows": [
                {"status": "done"}
                | asdict(row)
                | {"cells": [asdict(cell) | {"report": _published(row.name, cell.stage)} for cell in row.cells]}
                for row in self.rows
            ]
            + [
                {"status": "not run"} | asdict(row) | {"report": {s: _published(row.name, s) for s in STAGES}}
                for row in self.not_run
            ],
            "learning_rate_search": None if search is None else asdict(search) | {"chosen": search.best.setting},
            "cross_validation": None
            if folds is None
            else asdict(folds)
            | {
                s: dict(zip(("mean", "standard_deviation"), folds.spread(s), strict=True))
                for s in ("jaccard", "dice", "loss")
            },
        }

    def to_json(self) -> str:
        """The file."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"


def _published(row: str, stage: str) -> dict[str, float]:
    return dict(zip(("iou", "dice"), PUBLISHED[row][stage], strict=True))


def read_table(path: Path) -> ReportTable:
    """The inverse of `ReportTable.to_json`; an empty table where there is no such file.

    Raises:
        DataError: not such a file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']!r}")
        done = [row for row in data["rows"] if row["status"] == "done"]
        missing = [row for row in data["rows"] if row["status"] == "not run"]
        cells = [tuple(Cell(**_without(cell, "report")) for cell in row["cells"]) for row in done]
        return ReportTable(
            rows=tuple(Row(**_without(r, "status") | {"cells": c}) for r, c in zip(done, cells, strict=True)),
            not_run=tuple(NotRun(**_without(r, "status", "report")) for r in missing),
            search=_trials(data["learning_rate_search"], "chosen"),
            cross_validation=_trials(data["cross_validation"], "jaccard", "dice", "loss"),
            test_set=None if data["test_set"] is None else TestSet(**data["test_set"]),
            command=data["command"],
            date=data["date"],
        )
    except FileNotFoundError:
        return ReportTable()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a table of `isicrt reproduce` ({error!r}). Name another with --table") from error


def _without(data: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in names}


def _trials(data: Mapping[str, Any] | None, *computed: str) -> Trials | None:
    if data is None:
        return None
    return Trials(**_without(data, *computed) | {"trials": tuple(Trial(**t) for t in data["trials"])})


def read_row(folder: Path, name: str) -> Row:
    """A finished run as a row that is not scored.

    Args:
        folder: of the run.
        name: of the row.

    Raises:
        DataError: a file of the run is missing or cannot be read.
    """
    metrics, config, run = _read_run(folder)
    stages = {stage["name"]: stage for stage in config["recipe"]["stages"]}
    try:
        hashes = {stage: hashlib.sha256((folder / f"{stage}.pt").read_bytes()).hexdigest() for stage in STAGES}
        cells = []
        for stage in STAGES:
            own = [row for row in metrics if row["stage"] == stage]
            cells.append(
                Cell(
                    stage=stage,
                    sha256=hashes[stage],
                    epochs=len(own),
                    encoder_lr=stages[stage]["encoder_lr"],
                    decoder_lr=stages[stage]["decoder_lr"],
                    hours=_hours(own),
                    images_per_second=statistics.median(float(row["images_per_second"]) for row in own),
                    validation=_validation(own[-1]),
                )
            )
        return Row(
            name=name,
            layout=config["recipe"]["layout"],
            parameters=run["parameters"],
            training_images=run["training_images"],
            validation_images=run["validation_images"],
            fold=config["fold"],
            seed=config["seed"],
            device=config["device"],
            machine=run["machine"],
            torch=config["torch"],
            data_sha256=config["data_sha256"],
            recipe=config["recipe"],
            cells=tuple(cells),
        )
    except OSError as error:
        raise DataError(f"{folder}: not a finished run of `isicrt reproduce`: {error}") from error
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{folder}: not a finished run of `isicrt reproduce`: {error!r}") from error


def read_trials(folders: Sequence[tuple[float, Path]], name: str) -> Trials:
    """Finished short runs: their settings and folders; at least one. Raises DataError as `read_row` does."""
    trials = []
    for setting, folder in folders:
        metrics, config, run = _read_run(folder)
        try:
            last = _validation(metrics[-1])
            trials.append(Trial(setting, run["validation_images"], last, _hours(metrics)))
            layout = config["recipe"]["layout"]
            epochs = {stage["name"]: stage["epochs"] for stage in config["recipe"]["stages"]}
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"{folder}: not a finished run of `isicrt reproduce`: {error!r}") from error
    return Trials(name, layout, epochs, tuple(trials))


def _read_run(folder: Path) -> tuple[list[dict[str, str]], dict[str, Any], dict[str, Any]]:
    try:
        import yaml
    except ImportError as error:
        raise MissingDependencyError("PyYAML", "train", str(error)) from error
    try:
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            metrics = list(csv.DictReader(file))
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return metrics, config, json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{folder}: not a run of `isicrt reproduce`: {error}") from error


def _hours(metrics: Iterable[Mapping[str, str]]) -> float:
    return math.fsum(float(row["seconds"]) for row in metrics) / 3600


def _validation(row: Mapping[str, str]) -> dict[str, float]:
    return {name: float(row[f"val_{name}"]) for name in ("loss", "jaccard", "dice", "threshold_jaccard")}


def merge(old: ReportTable, new: ReportTable) -> ReportTable:
    """What is new takes the place of what is old; the rest stays, and so do the scores of the same checkpoints.

    Raises:
        DataError: the two were trained on other data, or the new ones on different data.
    """
    if len({row.data_sha256 for row in new.rows}) > 1:
        raise DataError(
            "these runs were trained on different data, and a table has rows of one data set: name another folder of "
            "runs with --out"
        )
    found = {(row.name, row.layout): row for row in old.rows}
    scores = {cell.sha256: cell.scores for row in old.rows for cell in row.cells}
    for row in new.rows:
        cells = tuple(c if c.scores else replace(c, scores=scores.get(c.sha256, {})) for c in row.cells)
        found[row.name, row.layout] = replace(row, cells=cells)
    rows = [found[name, layout] for layout in LAYOUTS for name in PUBLISHED if (name, layout) in found]
    if len({row.data_sha256 for row in rows}) > 1:
        raise DataError(
            "the table holds rows that were trained on other data than these runs: name another file with --table"
        )
    missing = {(row.name, row.layout): row for row in (*old.not_run, *new.not_run)}
    return ReportTable(
        rows=tuple(rows),
        not_run=tuple(
            missing[k] for layout in LAYOUTS for n in PUBLISHED if (k := (n, layout)) in missing.keys() - found
        ),
        search=new.search or old.search,
        cross_validation=new.cross_validation or old.cross_validation,
        test_set=new.test_set or old.test_set,
        command=new.command,
        date=new.date,
    )


def with_scores(
    table: ReportTable, test_set: TestSet, scores: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> ReportTable:
    """The table with scores by checkpoint's SHA-256 and by protocol; those that it has stay."""
    rows = tuple(
        replace(row, cells=tuple(c if c.scores else replace(c, scores=scores.get(c.sha256, {})) for c in row.cells))
        for row in table.rows
    )
    return replace(table, rows=rows, test_set=test_set)
