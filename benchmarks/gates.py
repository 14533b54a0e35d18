"""The figures of a model by name, and gates on them: what a benchmark in CI lets pass."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from isicrt.benchmarks.accuracy import on_both
from isicrt.benchmarks.result import ModelResult, Report
from isicrt.engine.errors import SettingsError

HIGHER, LOWER = "higher", "lower"

BETTER: Mapping[str, str] = {
    "images_per_second": HIGHER,
    "megapixels_per_second": HIGHER,
    "ms_per_image": LOWER,
    "limit_ms": LOWER,
    "limit_ratio": LOWER,
    "network_images_per_second": HIGHER,
    "p50_ms": LOWER,
    "p90_ms": LOWER,
    "p99_ms": LOWER,
    "peak_rss_mb": LOWER,
    "gpu_memory_mb": LOWER,
    "joules_per_image": LOWER,
    "gpu_joules_per_image": LOWER,
    "jaccard": HIGHER,
    "threshold_jaccard": HIGHER,
    "dice": HIGHER,
    "accuracy": HIGHER,
    "sensitivity": HIGHER,
    "specificity": HIGHER,
}
"""Every figure that can be named, and which way is better."""

SCORES = ("jaccard", "threshold_jaccard", "dice", "accuracy", "sensitivity", "specificity")
AT_BATCH = ("network_images_per_second", "p50_ms", "p90_ms", "p99_ms")
"""Of the network alone: at each batch size, and without one at the first."""


def figures(model: ModelResult) -> dict[str, float]:
    """Names and values; what was not measured is not in it.

    Those of the network alone are of the smallest batch, and of each batch with ``@8`` and so on behind the name.
    """
    found: dict[str, float | None] = {
        "images_per_second": model.end_to_end.images_per_second,
        "megapixels_per_second": model.end_to_end.megapixels_per_second,
        "ms_per_image": model.end_to_end.ms_per_image,
        "limit_ms": model.stages.limit_ms,
        "limit_ratio": model.limit_ratio,
        "joules_per_image": model.end_to_end.joules_per_image,
        "gpu_joules_per_image": model.end_to_end.gpu_joules_per_image,
    }
    if model.process is not None:
        found |= {"peak_rss_mb": model.process.peak_rss_mb, "gpu_memory_mb": model.process.gpu_memory_mb}
    for n, x in enumerate(model.latencies):
        values = (x.images_per_second, x.percentile(50), x.percentile(90), x.percentile(99))
        for name, value in zip(AT_BATCH, values, strict=True):
            found[f"{name}@{x.batch_size}"] = value
            if n == 0:
                found[name] = value
    if model.accuracy and model.accuracy.per_image:
        summary = model.accuracy.summary
        found |= {name: summary.get(name) for name in SCORES}
    return {name: float(value) for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Gate:
    """A bound on a figure of every model of a report."""

    name: str
    bound: float
    ratio: bool = False
    """Whether the bound is of the figure against that of an older report: 1.0 is as good as before, less is worse."""

    @property
    def better(self) -> str:
        """`HIGHER`: the figure must not be below the bound; `LOWER`: not above."""
        return BETTER[self.name.partition("@")[0]]

    def problem(self, model: ModelResult, old: ModelResult | None = None, *, other_images: bool = False) -> str | None:
        """What is wrong, in a sentence; None where the gate lets `model` pass.

        Args:
            model: of the report that is judged.
            old: the same model of the older report; None where that has none.
            other_images: whether the older report is of other images.
        """
        value = figures(model).get(self.name)
        if value is None:
            return f"{model.label}: {self.name} was not measured"
        if not self.ratio:
            if value < self.bound if self.better == HIGHER else value > self.bound:
                word = "under" if self.better == HIGHER else "over"
                return f"{model.label}: {self.name} is {value:.4g}, {word} {self.bound:g}"
            return None
        # Of the network alone without a batch: that of this report's smallest, whatever the older one's is.
        name = f"{self.name}@{model.latencies[0].batch_size}" if self.name in AT_BATCH else self.name
        stem, _, size = name.partition("@")
        before = figures(old).get(name) if old is not None else None
        if old is None or before is None:
            lacks = f", which has no batch {size}" if old is not None and size else ""
            return f"{model.label}: {name} is not in the older report{lacks}"
        of = ""
        if stem in AT_BATCH and _called_on(model, int(size)) != _called_on(old, int(size)):
            return f"{model.label}: {name} cannot be compared: the older report called the network on other images"
        if stem not in SCORES and other_images:
            return f"{model.label}: {name} cannot be compared: the older report is of other images"
        if self.name in SCORES and old.accuracy and model.accuracy:
            # A mean over other images says nothing, however it compares.
            were, are = on_both(old.accuracy, model.accuracy)
            if not are.per_image:
                return f"{model.label}: {self.name} cannot be compared: no image was scored in both reports"
            before, value = were.mean(self.name), are.mean(self.name)
            if len(are.per_image) < max(len(old.accuracy.per_image), len(model.accuracy.per_image)):
                of = f" on the images that both scored ({len(are.per_image)})"
        worst, best = (value, before) if self.better == HIGHER else (before, value)
        if worst < self.bound * best:
            went = f"{name} went from {before:.4g} to {value:.4g}{of}"
            return f"{model.label}: {went}, under {self.bound:g} of before"
        return None


def _called_on(model: ModelResult, batch_size: int) -> int | None:
    """How many images the calls at a batch size took in turn, see `Latency.images`."""
    return next(x.images for x in model.latencies if x.batch_size == batch_size)


def parse_gate(text: str, option: str) -> Gate:
    """``NAME=VALUE`` of ``--fail-under``, ``--fail-over`` or ``--fail-under-ratio``.

    Raises:
        SettingsError: not of that form, no such figure, or the wrong option for it.
    """
    name, sign, number = text.partition("=")
    name = name.strip()
    stem = name.partition("@")[0]
    if stem not in BETTER or (name != stem and (stem not in AT_BATCH or not re.fullmatch(r"[^@]+@[1-9]\d*", name))):
        raise SettingsError(
            f"{option} {text}: no figure has that name. There are {', '.join(BETTER)}; those of the network alone also "
            "with the batch, as p99_ms@8"
        )
    try:
        bound = float(number)
    except ValueError:
        bound = float("nan")
    if not sign or not abs(bound) < float("inf"):
        example = 0.8 if stem in SCORES or option == "--fail-under-ratio" else 50
        raise SettingsError(f"{option} {text}: expected NAME=VALUE, such as {stem}={example}")
    gate = Gate(name, bound, ratio=option == "--fail-under-ratio")
    right = "--fail-under" if gate.better == HIGHER else "--fail-over"
    if not gate.ratio and option != right:
        raise SettingsError(f"{option} {text}: of {stem} {gate.better} is better; use {right}")
    return gate


def failures(
    report: Report, gates: Sequence[Gate], old: Mapping[str, ModelResult], older: Report | None = None
) -> list[str]:
    """What the gates do not let pass.

    Args:
        report: that is judged.
        gates: on every model of it.
        old: the models of the older report by the labels of this one.
        older: the older report itself, for ratios: speeds of other images are not compared.
    """
    other = older is not None and _other_images(older, report)
    found = (gate.problem(m, old.get(m.label), other_images=other) for gate in gates for m in report.models)
    return [problem for problem in found if problem is not None]


def _other_images(old: Report, new: Report) -> bool:
    """By their contents and names; by their number where a report did not note those."""
    a, b = old.workload, new.workload
    return a.sha256 != b.sha256 if a.sha256 and b.sha256 else a.images != b.images
