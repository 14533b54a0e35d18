"""Two reports, figure by figure: what changed beyond noise, and what makes them hard to compare.

The figures are those of the report and of the gates (`isicrt.benchmarks.gates.figures`). One of them changed if the
repeats say so: the range of the new ones does not touch that of the old ones, and the figures differ the same way, by
more than the repeats of either report do among each other, and by more than 2 %. Scores are compared on the images that
both reports scored, image by image, by a 95 % bootstrap interval of the mean difference (Efron and Tibshirani 1993).

``python -m isicrt.benchmarks.comparison OLD.json NEW.json`` compares two saved reports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from isicrt._command import ModuleCommand
from isicrt.benchmarks.accuracy import on_both
from isicrt.benchmarks.gates import AT_BATCH, BETTER, HIGHER, figures
from isicrt.benchmarks.latency import TOLERANCE, counted, relative_spread
from isicrt.benchmarks.result import ModelResult, Report, read_report
from isicrt.benchmarks.tables import Table, figure
from isicrt.engine.errors import DataError
from isicrt.engine.pipeline import STAGES
from isicrt.engine.scores import FEWEST_COMPARED, difference_interval

SMALLEST_CHANGE = 0.02
"""Less than this is no change, however well the repeats agree: memory layout alone does as much."""
MEMORY_CHANGE = 0.05
"""The same for the peak of memory, of which there is one reading."""

NOISE, UNKNOWN, FEW_IMAGES = "within noise", "too few repeats", "too few images"
_UNJUDGED = {
    UNKNOWN: "too few repeats: measure both sides at least twice (--repeats)",
    FEW_IMAGES: f"too few images: of fewer than {FEWEST_COMPARED} a bootstrap interval says nothing",
}
"""Verdicts that are none, and what to do."""


@dataclass(frozen=True)
class Change:
    """One figure of one model in both reports."""

    name: str
    old: float
    new: float
    verdict: str
    """``better``, ``worse``, `NOISE`, `UNKNOWN` or `FEW_IMAGES`."""


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    mismatches: tuple[str, ...]
    """What was not the same: machine, threads, batch sizes, versions, the path of the same images."""
    changes: tuple[tuple[str, tuple[Change, ...]], ...]
    """By the label of the new report's model."""
    alone: tuple[str, ...]
    """Models of the new report that the old one does not have."""
    doubts: tuple[str, ...] = ()
    """Why what is said of the figures may be noise all the same: quick runs, busy machines, figures that did not settle
    and stages that waited, in either report."""
    other_images: tuple[str, ...] = ()
    """How the images differ, where the reports are not of the same ones."""
    other_truth: tuple[str, ...] = ()
    """How the ground truth differs, where both reports noted it."""
    other_scored: tuple[str, ...] = ()
    """Which models' scores are of more images in one report than in the other, or of other ones."""

    @property
    def changed(self) -> bool:
        """Whether anything changed beyond noise."""
        return any(c.verdict in ("better", "worse") for _, changes in self.changes for c in changes)


def pair_models(old: Report, new: Report) -> dict[str, ModelResult]:
    """The old report's models by the labels of the new one: the same file, then the same label, or the only ones. Each
    is taken once; among several of one file the label decides."""
    found: dict[str, ModelResult] = {}
    left = list(old.models)
    if len(old.models) == len(new.models) == 1:
        return {new.models[0].label: old.models[0]}
    for key in (lambda m: (m.sha256, m.label), lambda m: m.sha256, lambda m: m.label):
        for model in new.models:
            same = [n for n, other in enumerate(left) if key(other) == key(model)]
            if same and model.label not in found:
                found[model.label] = left.pop(same[0])
    return found


def compare(old: Report, new: Report) -> Comparison:
    """Compare every model that both reports have.

    Raises:
        DataError: there is none.
    """
    pairs = pair_models(old, new)
    if not pairs:
        raise DataError(
            f"nothing to compare: no model is in both reports. The older has {_labels(old)}; the newer has "
            f"{_labels(new)}. Measure one of the older report's models, or compare with a report of these"
        )
    models = [(m, pairs[m.label]) for m in new.models if m.label in pairs]
    return Comparison(
        mismatches=tuple(_mismatches(old, new) + [line for n, o in models for line in _model_mismatches(o, n)]),
        changes=tuple((n.label, tuple(_changes(o, n))) for n, o in models),
        alone=tuple(m.label for m in new.models if m.label not in pairs),
        doubts=(*_doubts(old, "older"), *_doubts(new, "newer")),
        other_images=tuple(_said(_image_sides(old, new))) if _of_other_images(old, new) else (),
        other_truth=tuple(_said(_truth_sides(old, new))),
        other_scored=tuple(line for n, o in models for line in _scored(o, n)),
    )


def _labels(report: Report) -> str:
    return ", ".join(m.label for m in report.models) or "none"


def _doubts(report: Report, age: str) -> list[str]:
    """Those of `Report.warnings` that say that the figures may be off."""
    found = [f"the {age} report is of a quick run"] if report.quick else []
    if report.environment.busy is not None:
        found.append(f"of the {age} report {report.environment.busy}")
    found += [f"the {age} report did not settle: {line}" for model in report.models for line in model.noise]
    found += [f"the {age} report is of a busy machine: {m.others_note}" for m in report.models if m.others_note]
    return found + [
        f"the {age} report is of a busy machine: {m.label}: its stages, each alone, waited for a core "
        f"{m.stages.waited:.0%} of their time"
        for m in report.models
        if m.stages.waited > TOLERANCE
    ]


_Sides = list[tuple[str, object, object]]
"""What it is, the older report's, the newer one's."""


def _said(sides: _Sides) -> list[str]:
    return [f"{name}: {was} before, {now} now" for name, was, now in sides if was != now]


def _of_other_images(old: Report, new: Report) -> bool:
    """By their contents; where a report did not note those, by anything else that is known of them."""
    if old.workload.sha256 and new.workload.sha256:
        return old.workload.sha256 != new.workload.sha256
    return bool(_said(_image_sides(old, new)))


def _image_sides(old: Report, new: Report) -> _Sides:
    a, b = old.workload, new.workload
    sides: _Sides = [
        ("images", a.source, b.source),
        ("number of images", a.images, b.images),
        ("megabytes of images", round(a.megabytes, 1), round(b.megabytes, 1)),
    ]
    if a.sha256 and b.sha256:
        sides.append(("SHA-256 of images", a.sha256[:12], b.sha256[:12]))
    return sides


def _truth_sides(old: Report, new: Report) -> _Sides:
    a, b = old.workload, new.workload
    if not (a.truth_sha256 and b.truth_sha256) or _of_other_images(old, new) or a.without_truth != b.without_truth:
        return []  # the hash is of all of them: of other ones it does not say whether those in both are the same
    return [("SHA-256 of true masks", a.truth_sha256[:12], b.truth_sha256[:12])]


def _mismatches(old: Report, new: Report) -> list[str]:
    a, b = old.environment, new.environment
    sides: _Sides = [
        ("CPU", a.cpu, b.cpu),
        ("cores", a.cores, b.cores),
        ("GPU", ", ".join(a.gpus) or "none", ", ".join(b.gpus) or "none"),
        ("threads", old.protocol.threads or "one a core", new.protocol.threads or "one a core"),
    ]
    if not _of_other_images(old, new):  # else it is a caution
        sides += _image_sides(old, new)
    names = sorted({*a.versions, *b.versions} - {"isicrt"})
    sides += [(name, a.versions.get(name, "none"), b.versions.get(name, "none")) for name in names]
    return _said(sides)


def _model_mismatches(old: ModelResult, new: ModelResult) -> list[str]:
    sides: _Sides = [
        ("model", old.label, new.label),
        ("runtime", old.runtime, new.runtime),
        ("file", old.sha256[:12], new.sha256[:12]),
        ("batch of the pipeline", old.end_to_end.batch_size, new.end_to_end.batch_size),
        ("batch sizes", _batches(old), _batches(new)),
        ("the network alone is of", _called_on(old), _called_on(new)),
        ("the network's CPU time is of", _network_threads(old), _network_threads(new)),
    ]
    return [f"{new.label}: {line}" for line in _said(sides)]


def _network_threads(model: ModelResult) -> str:
    return "all threads" if model.stages.megapixels is None else "one thread"  # the first kind of report, and since


def _called_on(model: ModelResult) -> str:
    counts = sorted({x.images for x in model.latencies if x.images is not None})
    return f"{', '.join(map(str, counts))} images in turn" if counts else "one batch of the smallest files"


def _batches(model: ModelResult) -> str:
    return ", ".join(str(x.batch_size) for x in model.latencies)


def _changes(old: ModelResult, new: ModelResult) -> list[Change]:
    repeats_old, repeats_new = _repeats(old), _repeats(new)
    images = {x.batch_size: x.images for x in old.latencies}
    for x in new.latencies:
        if images.get(x.batch_size) != x.images:  # of other images, which a mismatch says
            for name in AT_BATCH:
                repeats_new.pop(f"{name}@{x.batch_size}", None)
    was, now = _values(old), _values(new)
    found = [
        Change(name, was[name], now[name], _verdict(name, (was[name], now[name]), a, b))
        for name, b in repeats_new.items()
        if (a := repeats_old.get(name))
    ]
    if (name := "peak_rss_mb") in was and name in now:
        calm = abs(now[name] / was[name] - 1) <= MEMORY_CHANGE
        found.append(Change(name, was[name], now[name], NOISE if calm else _direction(name, was[name], now[name])))
    return found + _score_changes(old, new)


def _values(model: ModelResult) -> dict[str, float]:
    """What the report and the gates say: percentiles are of all samples, however many each window has."""
    return figures(model) | {f"{s}_cpu_ms": model.stages.cpu(s) for s in STAGES}


def _repeats(model: ModelResult) -> dict[str, Sequence[float]]:
    """What was measured several times: one figure for each repeat that counts, as `_values` are of these alone."""
    found: dict[str, Sequence[float]] = {"images_per_second": [r.images_per_second for r in model.end_to_end.counted]}
    for x in model.latencies:
        windows = counted(x.windows_ms, x.settled)
        found[f"p50_ms@{x.batch_size}"] = [float(np.percentile(w, 50)) for w in windows]
        found[f"p99_ms@{x.batch_size}"] = [float(np.percentile(w, 99)) for w in windows]
        found[f"network_images_per_second@{x.batch_size}"] = counted(x.window_rates, x.settled)
    return found | {f"{s}_cpu_ms": counted(model.stages.cpu_ms[s], model.stages.settled) for s in STAGES}


def _verdict(name: str, values: tuple[float, float], old: Sequence[float], new: Sequence[float]) -> str:
    """`values` are the old figure and the new one; `old` and `new` are their repeats."""
    if min(len(old), len(new)) < 2:
        return UNKNOWN
    was, now = values
    # p99 of all samples may fall where that of every window rises: then neither is to be believed.
    agreed = (max(old) < min(new) and was < now) or (max(new) < min(old) and now < was)
    if not was or not now:  # CPU time that the system's clock did not see: nothing can be divided by it
        return _direction(name, was, now) if agreed else NOISE
    noise = max(relative_spread(old), relative_spread(new), SMALLEST_CHANGE)
    return _direction(name, was, now) if agreed and abs(now / was - 1) > noise else NOISE


def _direction(name: str, old: float, new: float) -> str:
    higher = BETTER.get(name.partition("@")[0]) == HIGHER
    return "better" if (new > old) == higher else "worse"


def _score_changes(old: ModelResult, new: ModelResult) -> list[Change]:
    if old.accuracy is None or new.accuracy is None:
        return []
    a, b = (found.per_image.values() for found in on_both(old.accuracy, new.accuracy))
    found = []
    for name in ("jaccard", "dice") if a else ():
        was, now = (np.array([getattr(scores, name) for scores in side]) for side in (a, b))
        found.append(Change(name, float(was.mean()), float(now.mean()), _score_verdict(name, was, now)))
    return found


def _score_verdict(name: str, was: npt.NDArray[np.float64], now: npt.NDArray[np.float64]) -> str:
    """Of the scores of the same images."""
    if np.array_equal(was, now):
        return NOISE
    low, high = difference_interval(now - was)
    if low is None or high is None:
        return FEW_IMAGES
    return NOISE if low <= 0 <= high else _direction(name, float(was.mean()), float(now.mean()))


def _scored(old: ModelResult, new: ModelResult) -> list[str]:
    """What to know where scores are not of the same images."""
    if old.accuracy is None or new.accuracy is None:
        return []
    were, are = len(old.accuracy.per_image), len(new.accuracy.per_image)
    both = len(on_both(old.accuracy, new.accuracy)[0].per_image)
    if both == max(were, are):
        return []
    said = f"scores are compared on the {both} in both" if both else "none is in both, so scores are not compared"
    return [f"{new.label}: scored images: {were} before, {are} now: {said}"]


def comparison_tables(found: Comparison) -> list[Table]:
    """One table for each model: what changed, and what cannot be judged."""
    tables = []
    for label, changes in found.changes:
        shown = [c for c in changes if c.verdict != NOISE]
        notes = []
        if any(c.verdict not in (NOISE, *_UNJUDGED) for c in shown):
            changed = (
                "Changed: the repeats of the two reports do not overlap and the figures differ by more than they do."
            )
            notes.append(changed)
        if hidden := len(changes) - len(shown):
            notes.append(f"{hidden} of {len(changes)} figures are within noise and not shown.")
        tables.append(
            Table(
                title=f"{label}: against the older report",
                note=" ".join(notes),
                header=("Figure", "Before", "Now", "Change", "Verdict"),
                rows=tuple((c.name, _text(c, c.old), _text(c, c.new), _percent(c), c.verdict) for c in shown),
                labels=1,
            )
        )
    return tables


def _text(change: Change, value: float) -> str:
    return f"{value:.4f}" if change.name in ("jaccard", "dice") else figure(value)


def _percent(change: Change) -> str:
    return f"{change.new / change.old - 1:+.1%}" if change.old else "-"


def comparison_cautions(found: Comparison) -> list[str]:
    """What to read before the tables: why not to believe them, a sentence each."""
    lines = []
    if found.other_images:
        lines = [
            "the two reports are of other images, so what changed may be the images: measure both on the same ones"
        ]
        lines += [f"other images: {line}" for line in found.other_images]
    if found.other_truth:
        lines += ["the scores of the two reports are against other true masks, so what changed in them may be these"]
        lines += [f"other truth: {line}" for line in found.other_truth]
    lines += found.other_scored
    if found.doubts:
        lines += ["do not quote what changed: measure again on a quiet machine, and not with --quick", *found.doubts]
    return lines


def comparison_lines(found: Comparison) -> list[str]:
    """What has no table: a sentence each."""
    lines = [f"not the same: {line}" for line in found.mismatches]
    lines += [f"{label}: not in the older report" for label in found.alone]
    verdicts = Counter(c.verdict for _, changes in found.changes for c in changes)
    total, unjudged = verdicts.total(), sum(verdicts[kind] for kind in _UNJUDGED)
    lines += [
        f"{verdicts[kind]} of {total} figures cannot be judged: {why}"
        for kind, why in _UNJUDGED.items()
        if verdicts[kind]
    ]
    if found.changed or unjudged == total:
        return lines
    return [*lines, f"nothing {'else ' if unjudged else ''}changed beyond noise"]


@click.command(cls=ModuleCommand)
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
def main(old: Path, new: Path) -> None:
    """Print what changed from OLD to NEW, two JSON results of isicrt bench."""
    found = compare(read_report(old), read_report(new))
    for line in comparison_cautions(found):
        click.echo(line)
    for table in comparison_tables(found):
        click.echo(table.title)
        widths = [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]
        for row in (table.header, *table.rows):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            click.echo(f"  {'  '.join(cells)}".rstrip())
    for line in comparison_lines(found):
        click.echo(line)


if __name__ == "__main__":
    main()
