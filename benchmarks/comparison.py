"""Two reports, figure by figure: what changed beyond noise, and what makes them hard to compare.

A figure changed if the repeats say so: the range of the new ones does not touch that of the old ones, and their medians
differ by more than the repeats of either report do among each other, and by more than 2 %. Scores are compared image by
image, by a 95 % bootstrap interval of the mean difference (Efron and Tibshirani 1993).

``python -m isicrt.benchmarks.comparison OLD.json NEW.json`` compares two saved reports.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isicrt.benchmarks.gates import BETTER, HIGHER, figures
from isicrt.benchmarks.latency import relative_spread
from isicrt.benchmarks.result import ModelResult, Report, read_report
from isicrt.benchmarks.tables import Table, figure
from isicrt.engine.errors import IsicrtError
from isicrt.engine.pipeline import STAGES
from isicrt.engine.scores import bootstrap_interval

SMALLEST_CHANGE = 0.02
"""Less than this is no change, however well the repeats agree: memory layout alone does as much."""
MEMORY_CHANGE = 0.05
"""The same for the peak of memory, of which there is one reading."""

NOISE, UNKNOWN = "within noise", "too few repeats"


@dataclass(frozen=True)
class Change:
    """One figure of one model in both reports."""

    name: str
    old: float
    new: float
    verdict: str
    """``better``, ``worse``, `NOISE` or `UNKNOWN`."""


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    mismatches: tuple[str, ...]
    """What was not the same: machine, threads, batch sizes, images, versions."""
    changes: tuple[tuple[str, tuple[Change, ...]], ...]
    """By the label of the new report's model."""
    alone: tuple[str, ...]
    """Models of the new report that the old one does not have."""
    unsettled: tuple[str, ...] = ()
    """Figures of either report that did not settle, and quick runs: what is said of them may be noise all the same."""

    @property
    def changed(self) -> bool:
        """Whether anything changed beyond noise."""
        return any(c.verdict in ("better", "worse") for _, changes in self.changes for c in changes)


def pair_models(old: Report, new: Report) -> dict[str, ModelResult]:
    """The old report's models by the labels of the new one: of the same label, or the only ones."""
    by_label = {m.label: m for m in old.models}
    found = {m.label: by_label[m.label] for m in new.models if m.label in by_label}
    if not found and len(old.models) == len(new.models) == 1:
        return {new.models[0].label: old.models[0]}
    return found


def compare(old: Report, new: Report) -> Comparison:
    """Compare every model that both reports have."""
    pairs = pair_models(old, new)
    models = [(m, pairs[m.label]) for m in new.models if m.label in pairs]
    return Comparison(
        mismatches=tuple(_mismatches(old, new) + [line for n, o in models for line in _model_mismatches(o, n)]),
        changes=tuple((n.label, tuple(_changes(o, n))) for n, o in models),
        alone=tuple(m.label for m in new.models if m.label not in pairs),
        unsettled=(*_doubts(old, "older"), *_doubts(new, "newer")),
    )


def _doubts(report: Report, age: str) -> list[str]:
    quick = [f"the {age} report is of a quick run"] if report.quick else []
    return quick + [f"the {age} report did not settle: {line}" for model in report.models for line in model.noise]


def _mismatches(old: Report, new: Report) -> list[str]:
    a, b = old.environment, new.environment
    sides: list[tuple[str, object, object]] = [
        ("CPU", a.cpu, b.cpu),
        ("cores", a.cores, b.cores),
        ("GPU", ", ".join(a.gpus) or "none", ", ".join(b.gpus) or "none"),
        ("threads", old.protocol.threads or "one a core", new.protocol.threads or "one a core"),
        ("images", old.workload.source, new.workload.source),
        ("number of images", old.workload.images, new.workload.images),
        ("megabytes of images", round(old.workload.megabytes, 1), round(new.workload.megabytes, 1)),
    ]
    if old.workload.sha256 and new.workload.sha256:
        sides.append(("SHA-256 of images", old.workload.sha256[:12], new.workload.sha256[:12]))
    names = sorted({*a.versions, *b.versions} - {"isicrt"})
    sides += [(name, a.versions.get(name, "none"), b.versions.get(name, "none")) for name in names]
    return [f"{name}: {was} before, {now} now" for name, was, now in sides if was != now]


def _model_mismatches(old: ModelResult, new: ModelResult) -> list[str]:
    sides: list[tuple[str, object, object]] = [
        ("model", old.label, new.label),
        ("runtime", old.runtime, new.runtime),
        ("file", old.sha256[:12], new.sha256[:12]),
        ("batch of the pipeline", old.end_to_end.batch_size, new.end_to_end.batch_size),
        ("batch sizes", _batches(old), _batches(new)),
        ("the network's CPU time is of", _network_threads(old), _network_threads(new)),
    ]
    return [f"{new.label}: {name}: {was} before, {now} now" for name, was, now in sides if was != now]


def _network_threads(model: ModelResult) -> str:
    return "all threads" if model.stages.megapixels is None else "one thread"  # the first kind of report, and since


def _batches(model: ModelResult) -> str:
    return ", ".join(str(x.batch_size) for x in model.latencies)


def _changes(old: ModelResult, new: ModelResult) -> list[Change]:
    repeats_old, repeats_new = _repeats(old), _repeats(new)
    found = [
        Change(name, float(np.median(a)), float(np.median(b)), _verdict(name, a, b))
        for name, b in repeats_new.items()
        if (a := repeats_old.get(name))
    ]
    was, now = figures(old), figures(new)
    if (name := "peak_rss_mb") in was and name in now:
        calm = abs(now[name] / was[name] - 1) <= MEMORY_CHANGE
        found.append(Change(name, was[name], now[name], NOISE if calm else _direction(name, was[name], now[name])))
    return found + _score_changes(old, new)


def _repeats(model: ModelResult) -> dict[str, list[float]]:
    """What was measured several times: one figure for each repeat."""
    found = {"images_per_second": [r.images_per_second for r in model.end_to_end.runs]}
    for x in model.latencies:
        found[f"p50_ms@{x.batch_size}"] = x.window_medians
        found[f"p99_ms@{x.batch_size}"] = [float(np.percentile(w, 99)) for w in x.windows_ms]
        found[f"network_images_per_second@{x.batch_size}"] = x.window_rates
    return found | {f"{s}_cpu_ms": list(model.stages.cpu_ms[s]) for s in STAGES}


def _verdict(name: str, old: Sequence[float], new: Sequence[float]) -> str:
    if min(len(old), len(new)) < 2:
        return UNKNOWN
    a, b = float(np.median(old)), float(np.median(new))
    apart = max(old) < min(new) or max(new) < min(old)
    noise = max(relative_spread(old), relative_spread(new), SMALLEST_CHANGE)
    return _direction(name, a, b) if apart and abs(b / a - 1) > noise else NOISE


def _direction(name: str, old: float, new: float) -> str:
    higher = BETTER.get(name.partition("@")[0]) == HIGHER
    return "better" if (new > old) == higher else "worse"


def _score_changes(old: ModelResult, new: ModelResult) -> list[Change]:
    if old.accuracy is None or new.accuracy is None:
        return []
    a, b = old.accuracy.per_image, new.accuracy.per_image
    shared = sorted(a.keys() & b.keys())
    if not shared or len(shared) < max(len(a), len(b)):
        return []  # of other images; the mismatch has been said
    found = []
    for name in ("jaccard", "dice"):
        was = np.array([getattr(a[key], name) for key in shared])
        now = np.array([getattr(b[key], name) for key in shared])
        low, high = bootstrap_interval(now - was)
        verdict = NOISE if low <= 0 <= high else _direction(name, was.mean(), now.mean())
        found.append(Change(name, float(was.mean()), float(now.mean()), verdict))
    return found


def comparison_tables(found: Comparison, *, everything: bool = False) -> list[Table]:
    """One table for each model: what changed, or every figure."""
    tables = []
    for label, changes in found.changes:
        shown = [c for c in changes if everything or c.verdict in ("better", "worse", UNKNOWN)]
        tables.append(
            Table(
                title=f"{label}: against the older report",
                note="Changed: the repeats of the two reports do not overlap and their medians differ by more than the "
                f"repeats do. {len(changes) - len(shown)} of {len(changes)} figures are within noise and not shown.",
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
    caution = "do not quote what changed: measure again on a quiet machine, and not with --quick"
    return [caution, *found.unsettled] if found.unsettled else []


def comparison_lines(found: Comparison) -> list[str]:
    """What has no table: a sentence each."""
    lines = [f"not the same: {line}" for line in found.mismatches]
    lines += [f"{label}: not in the older report" for label in found.alone]
    return lines if found.changed else [*lines, "nothing changed beyond noise"]


def main(files: list[str]) -> None:
    """Print the comparison of two saved reports; exit with a message where one is not a report."""
    if len(files) != 2:
        sys.exit("Usage: python -m isicrt.benchmarks.comparison OLD.json NEW.json")
    try:
        found = compare(*(read_report(Path(file)) for file in files))
    except IsicrtError as error:
        sys.exit(f"Error: {error}")
    for line in comparison_cautions(found):
        print(line)
    for table in comparison_tables(found):
        print(table.title)
        for row in (table.header, *table.rows):
            print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, _widths(table), strict=True)).rstrip())
    print("\n".join(comparison_lines(found)))


def _widths(table: Table) -> list[int]:
    return [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]


if __name__ == "__main__":
    main(sys.argv[1:])
