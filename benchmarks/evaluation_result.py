"""An evaluation as a whole: what was scored, how, on what machine; as JSON, as CSV and as tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from isicrt.benchmarks.environment import Environment
from isicrt.benchmarks.evaluation import CaseScores, Difference, Scored
from isicrt.benchmarks.scoring_protocol import NEVER_COMPARE, ScoringProtocol, own_size
from isicrt.benchmarks.tables import Table
from isicrt.engine.csv_row import csv_table
from isicrt.engine.scores import FEWEST_COMPARED, ImageScores

SCHEMA = "isicrt-evaluate/1"

Columns = dict[str, list[str]]
"""Cells by heading, one for each model."""


@dataclass(frozen=True)
class Evaluation:
    """Models on one data set by one protocol."""

    command: str
    """As it was typed."""
    date: str
    """ISO 8601, UTC."""
    environment: Environment
    protocol: ScoringProtocol
    data: str
    """The data set, by the last names of its folder."""
    split: str
    models: tuple[Scored, ...]
    differences: tuple[Difference, ...]
    """Of each further model to the first."""
    left_out: int = 0
    """Pairs of a training split that are not scored: they show lesions of test images, and nothing learns from them."""

    @property
    def failed(self) -> int:
        """Images, over all models, that could not be scored."""
        return sum(len(model.problems) for model in self.models)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "schema": SCHEMA,
            "command": self.command,
            "date": self.date,
            "environment": self.environment.to_dict(),
            "protocol": {"name": self.protocol.name, "title": self.protocol.title, "note": NEVER_COMPARE},
            "data": {
                "label": self.data,
                "split": self.split,
                "images": self.models[0].images,
                "left_out": self.left_out,
            },
            "models": [_model(model) for model in self.models],
            "differences": [_difference(d) for d in self.differences],
        }

    def to_json(self) -> str:
        """The file that ``--json`` writes."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """One row for each model and image, unrounded; of one that was not scored, the reason in place of scores."""
        rows: list[dict[str, Any]] = []
        for model in self.models:
            found = [_row(case) for case in model.cases]
            found += [{"image": problem.id, "error": problem.reason} for problem in model.problems]
            rows += [{"model": model.label} | row for row in sorted(found, key=lambda row: str(row["image"]))]
        columns = ["model", *_row(self.models[0].cases[0]), "error"]
        return csv_table(columns, rows)


def _model(model: Scored) -> dict[str, Any]:
    return {
        "label": model.label,
        "name": model.card.name,
        "file": model.file,
        "sha256": model.sha256,
        "runtime": model.runtime,
        "input": model.input,
        "threshold": model.threshold,
        "clean_up": list(model.clean_up),
        "summary": model.noted,
        "problems": [problem.reason for problem in model.problems],
        "card": model.card.to_dict(),
        "per_image": [_row(case) for case in model.cases],
    }


def _difference(difference: Difference) -> dict[str, Any]:
    return asdict(difference) | {"interval_leaves_out_0": difference.is_clear}


def _row(case: CaseScores) -> dict[str, Any]:
    return {
        "image": case.case.id,
        "height": case.native_size[0],
        "width": case.native_size[1],
        **asdict(case.scores),
        "lesion_share": case.lesion_share,
        "truth_share": case.truth_share,
    }


def tables(evaluation: Evaluation, *, wide: bool = True) -> list[Table]:
    """Scores, and where there are several models their differences, for the terminal.

    Args:
        evaluation: what to show.
        wide: all scores in one table, for 110 letters a line; else in two, for 80.
    """
    official = isinstance(evaluation.models[0].cases[0].scores, ImageScores)
    title = f"Protocol {evaluation.protocol.name}, {evaluation.data}"
    summaries = [model.summary for model in evaluation.models]
    names = [model.label for model in evaluation.models]
    first: Columns = {
        "Images": [f"{s['images']}/{m.images}" for m, s in zip(evaluation.models, summaries, strict=True)],
        "Jaccard": [f"{s['jaccard']:.4f}" for s in summaries],
        "Interval": [f"{s['jaccard_low']:.3f}-{s['jaccard_high']:.3f}" if s["images"] > 1 else "-" for s in summaries],
        "Dice": [f"{s['dice']:.4f}" for s in summaries],
        "Median": [f"{s['jaccard_median']:.3f}" for s in summaries],
        "p5": [f"{s['jaccard_p5']:.3f}" for s in summaries],
        "<0.65": [str(s["failures"]) for s in summaries],
    }
    second: Columns = {}
    if official:
        second["Jacc.*"] = [f"{s['threshold_jaccard']:.4f}" for s in summaries]
        for heading, name in (("Acc.", "accuracy"), ("Sens.", "sensitivity"), ("Spec.", "specificity")):
            second[heading] = [f"{s[name]:.3f}" for s in summaries]
    note = _note(evaluation, official)
    if wide or not second:
        made = [_table(title, note, names, first | second)]
    else:
        made = [_table(title, "", names, first), _table("Means of the other scores", note, names, second)]
    return made + ([_differences(evaluation.differences)] if evaluation.differences else [])


def _table(title: str, note: str, names: Sequence[str], columns: Columns) -> Table:
    rows = zip(names, *columns.values(), strict=True)
    return Table(title=title, note=note, header=("Model", *columns), rows=tuple(rows), labels=1)


def _note(evaluation: Evaluation, official: bool) -> str:
    title = evaluation.protocol.title
    settings: dict[str, list[str]] = {}
    for m in evaluation.models:
        clean_up = " and ".join(m.clean_up).replace("_", " ") or "none"
        settings.setdefault(f"threshold {m.threshold:g}, clean-up: {clean_up}", []).append(m.label)
    shared = f"; {next(iter(settings))}" if len(settings) == 1 else ""
    own = [] if shared else [f"{', '.join(labels)}: {setting}." for setting, labels in settings.items()]
    fed = [f"{m.label}: fed {m.input}." for m in evaluation.models if m.input != own_size(m.card)]
    return "\n".join(
        [
            f"{title[0].upper()}{title[1:]}{shared}.",
            *own,
            "Interval: 95 % bootstrap of the mean Jaccard index. p5: 5th percentile. <0.65: number of such images."
            + (" Jacc.*: threshold Jaccard, 0 where an image is below 0.65." if official else ""),
            *fed,
        ]
    )


def _differences(differences: Sequence[Difference]) -> Table:
    return Table(
        title=f"Mean Jaccard index, difference from {differences[0].against}",
        note="On the images that both were scored on; interval: 95 %, paired bootstrap of 10,000 resamples. Where it "
        f"holds 0, these images do not tell the two apart; there is none of fewer than {FEWEST_COMPARED} images.",
        header=("Model", "Images", "Difference", "Interval", "Holds 0"),
        rows=tuple(
            (
                d.label,
                str(d.images),
                f"{d.jaccard:+.4f}",
                f"{d.low:+.4f} to {d.high:+.4f}" if d.low is not None else "-",
                "no" if d.is_clear else "yes" if d.low is not None else "-",
            )
            for d in differences
        ),
        labels=1,
    )
