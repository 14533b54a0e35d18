"""What becomes of a model's masks under other conditions: borders, light, colour and quality of the photograph.

    python -m isicrt.benchmarks.robustness a.onnx b.onnx --data isic2016 --split train --ids fold.txt \
        --json robustness.json

Every condition is put on the same images, with their truth; what is compared are scores of the official protocol. Take
images that the models have not learned from.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
import numpy as np

from isicrt._command import ModuleCommand, NamedPath
from isicrt.benchmarks.conditions import CONDITIONS, UNCHANGED
from isicrt.benchmarks.environment import read_environment, recorded_command
from isicrt.benchmarks.evaluation import Case, infer, labels_of_files
from isicrt.benchmarks.result_file import check_places, write_whole
from isicrt.benchmarks.scoring_protocol import OfficialProtocol
from isicrt.benchmarks.tables import markdown_text
from isicrt.benchmarks.tradeoff import data_options, find_cases, read_ids
from isicrt.engine.errors import DataError
from isicrt.engine.geometry import resize_image
from isicrt.engine.images import Decoded, read_image
from isicrt.engine.runtime import Runtime, open_runtime
from isicrt.engine.scores import FAILURE_JACCARD, difference_interval
from isicrt.engine.shipped import resolve

SCHEMA = "isicrt-robustness/1"

Scores = dict[str, dict[str, float]]
"""Jaccard index by condition and image."""


@dataclass(frozen=True)
class Measured:
    """What came out of `measure_robustness`."""

    scores: tuple[Scores, ...]
    """Of each model."""
    problems: tuple[str, ...]
    """Images that could not be measured, and why."""


def measure_robustness(
    runtimes: Sequence[Runtime], cases: Sequence[Case], *, on_image: Callable[[], None] = lambda: None
) -> Measured:
    """Put each of `CONDITIONS` on every image, segment it, and score the mask. An image that cannot be read, or whose
    truth cannot be used, costs that image.

    Args:
        runtimes: of the models; nobody else uses them meanwhile.
        cases: each with its truth.
        on_image: called for each image that is done with.

    Returns:
        The official Jaccard index of each model, condition and image.

    Raises:
        DataError: not one image could be measured.
        ModelError: the network failed.
    """
    protocol = OfficialProtocol()
    found: tuple[Scores, ...] = tuple({condition.name: {} for condition in CONDITIONS} for _ in runtimes)
    problems: list[str] = []
    for case in cases:
        try:
            image, (truth, _) = read_image(case.image), protocol.read_truth(case.truth)
            if truth.shape != image.shape[:2]:
                raise DataError(f"{case.truth}: has not the size of its image {case.image.name}")
        except DataError as error:
            problems.append(str(error))
            on_image()
            continue
        for condition in CONDITIONS:
            changed, true = condition.apply(image, truth, case.id)
            native = (true.shape[0], true.shape[1])
            for scores, runtime in zip(found, runtimes, strict=True):
                pixels = resize_image(changed, runtime.card.input_size)
                (probability,) = infer(runtime, [(case, Decoded(pixels, native))])
                mask = protocol.mask(probability, native, runtime.card)
                scores[condition.name][case.id] = protocol.score(mask, true).jaccard
        on_image()
    if len(problems) == len(cases):
        first = f" The first: {problems[0]}" if problems else ""
        raise DataError(f"not one of {len(cases)} images could be measured.{first}")
    return Measured(found, tuple(problems))


def summarised(scores: Scores) -> list[dict[str, Any]]:
    """By condition: the mean, its change from `UNCHANGED` with the paired bootstrap's 95 % interval, and images below
    0.65."""
    rows = []
    for name, by_image in scores.items():
        values = np.array(list(by_image.values()))
        row = {"condition": name, "jaccard": float(values.mean()), "below_0.65": int((values < FAILURE_JACCARD).sum())}
        change = values - np.array([scores[UNCHANGED][image] for image in by_image])
        low, high = difference_interval(change)
        rows.append(row | {"change": float(change.mean()), "low": low, "high": high})
    return rows


def differences(scores: Scores, first: Scores) -> list[dict[str, Any]]:
    """By condition: the mean of what `scores` are above those of the `first` model, with the paired interval."""
    rows = []
    for name, by_image in scores.items():
        above = np.array([value - first[name][image] for image, value in by_image.items()])
        low, high = difference_interval(above)
        rows.append({"condition": name, "difference": float(above.mean()), "low": low, "high": high})
    return rows


def to_markdown(result: Mapping[str, Any]) -> str:
    """The table: a row for each condition, for each model its score and what the condition costs."""
    models = result["models"]
    names = [markdown_text(m["label"]) for m in models]
    header = ["Condition", *(cell for n in names for cell in (n, "change (95 %)", "below 0.65"))]
    header += [f"{n} against {names[0]} (95 %)" for n in names[1:]]
    rows = [header, [":--", *["--:"] * (len(header) - 1)]]
    for i, condition in enumerate(result["conditions"]):
        row = [condition["name"]]
        for m in models:
            s = m["summary"][i]
            change = "" if condition["name"] == UNCHANGED else _with_interval("change", s)
            row += [f"{s['jaccard']:.3f}", change, str(s["below_0.65"])]
        row += [_with_interval("difference", m["against_first"][i]) for m in models[1:]]
        rows.append(row)
    notes = [f"{c['name']}: {c['title']}." for c in result["conditions"]]
    data = result["data"]
    notes += [f"Not measured: {markdown_text(problem)}" for problem in result["problems"]]
    notes.append(
        f"{data['images'] - len(result['problems'])} images ({markdown_text(', '.join(data['sets']))}). Jaccard index, "
        "official protocol; intervals are of paired bootstraps, bold where they leave out 0."
    )
    table = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*table, "", *(f"- {note}" for note in notes), ""])


def _with_interval(name: str, row: Mapping[str, Any]) -> str:
    """Bold where the interval leaves out 0; without one where the images are too few for it."""
    if row["low"] is None:
        return f"{row[name]:+.3f} (too few images)"
    text = f"{row[name]:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
    return f"**{text}**" if row["low"] > 0 or row["high"] < 0 else text


@click.command(cls=ModuleCommand)
@click.argument("models", nargs=-1, required=True)
@data_options
@click.option("--json", "json_file", type=NamedPath(dir_okay=False, path_type=Path), help="Write everything.")
def command(
    models: tuple[str, ...], roots: tuple[Path, ...], split: str, ids: Path | None, json_file: Path | None
) -> None:
    """Measure MODELS, .onnx files or shipped models' names, under other conditions; the first is compared with."""
    check_places(json_file)
    with ExitStack() as stack:
        result = _run(models, roots, split, ids, json_file, stack)
    try:
        write_whole(json_file, json.dumps(result, indent=1, allow_nan=False) + "\n")
    finally:  # hours are not lost where the file cannot be written
        click.echo(to_markdown(result))
    if result["problems"]:
        raise click.ClickException(f"{len(result['problems'])} of {result['data']['images']} images were not measured")


def _run(
    models: Sequence[str], roots: Sequence[Path], split: str, ids: Path | None, json_file: Path | None, stack: ExitStack
) -> dict[str, Any]:
    environment = read_environment()
    files = [resolve(model) for model in models]
    cases = find_cases(roots, split, None if ids is None else read_ids(ids))
    runtimes = [stack.enter_context(open_runtime(file)) for file in files]
    names = labels_of_files([r.card.name for r in runtimes], files)
    with click.progressbar(length=len(cases), label="Images", show_pos=True, file=sys.stderr) as bar:
        found = measure_robustness(runtimes, cases, on_image=lambda: bar.update(1))
    # The last two names of a path tell data sets apart, and of the machine next to nothing.
    sets = ["/".join(root.absolute().parts[-2:]) for root in roots]
    words = ["python", "-m", "isicrt.benchmarks.robustness", *(Path(model).name for model in models)]
    words += [word for name in sets for word in ("--data", name)] + ["--split", split]
    words += [] if ids is None else ["--ids", ids.name]
    words += [] if json_file is None else ["--json", json_file.name]
    return {
        "schema": SCHEMA,
        "command": recorded_command(words),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment.to_dict(),
        "data": {
            "sets": sets,
            "split": split,
            "ids": None if ids is None else ids.name,
            "images": len(cases),
        },
        "conditions": [{"name": c.name, "title": c.title} for c in CONDITIONS],
        "problems": list(found.problems),
        "models": [
            {
                "label": label,
                "file": file.name,
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                "runtime": runtime.name,
                "summary": summarised(scores),
                "against_first": differences(scores, found.scores[0]),
                "per_image": {n: {i: round(j, 6) for i, j in s.items()} for n, s in scores.items()},
            }
            for label, file, runtime, scores in zip(names, files, runtimes, found.scores, strict=True)
        ],
    }


if __name__ == "__main__":
    command()
