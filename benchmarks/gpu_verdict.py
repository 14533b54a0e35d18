"""What a report of `gpu_speed` comes to: each engine against the slowest stage alone, and against the goals.

python -m isicrt.benchmarks.gpu_verdict speed.json       # as Markdown
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from isicrt._command import ModuleCommand
from isicrt.benchmarks.gpu_files import SIZES

STAGES = ("read", "gpu decode", "gpu resize", "network", "gpu restore and pack", "write")
"""Of the GPU's way, in its order. All but the network are measured without an engine."""
GOALS = {
    "end to end at 512 px, images/s": (5000.0, "at least"),
    "end to end at 512 px / slowest stage alone": (0.9, "at least"),
    "batch 1, p50 of a call, ms": (0.5, "at most"),
}


def conclude(report: Mapping[str, Any]) -> dict[str, Any]:
    """``ratios`` and ``goals`` of each engine, as far as the report has what they need.

    Args:
        report: of `isicrt.benchmarks.gpu_speed`, finished or not.

    Returns:
        By engine: the ratio of its run to the slowest stage alone, by size of image; and each goal with what was
        measured and whether it is met, None where that was not measured.
    """
    ratios: dict[str, Any] = {}
    goals: dict[str, Any] = {}
    for engine, sections in report.get("engines", {}).items():
        ratios[engine] = {size: found for size in SIZES if (found := _ratio(report, engine, size)) is not None}
        at_512 = ratios[engine].get("512", {})
        measured = (
            _rate(sections.get("end to end", {}).get("512")),
            at_512.get("ratio"),
            _result(sections.get("network")).get("1", {}).get("call_ms", {}).get("p50"),
        )
        goals[engine] = {
            goal: {"limit": f"{sense} {limit:g}", "measured": value, "met": _met(value, limit, sense)}
            for (goal, (limit, sense)), value in zip(GOALS.items(), measured, strict=True)
        }
    return {"ratios": ratios, "goals": goals}


def _result(section: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return {} if section is None else section["result"]


def _rate(section: Mapping[str, Any] | None) -> float | None:
    return _result(section).get("images_per_second")


def _met(value: float | None, limit: float, sense: str) -> bool | None:
    if value is None:
        return None
    return value >= limit if sense == "at least" else value <= limit


def stage_rates(report: Mapping[str, Any], engine: str, size: str) -> dict[str, float | None]:
    """Images a second of each of `STAGES` alone; None for one that was not measured."""
    stages = dict(report.get("stages", {}).get(size, {}))
    stages["network"] = report["engines"][engine].get("network in the chain", {}).get(size)
    return {stage: _rate(stages.get(stage)) for stage in STAGES}


def _ratio(report: Mapping[str, Any], engine: str, size: str) -> dict[str, Any] | None:
    whole = _rate(report["engines"][engine].get("end to end", {}).get(size))
    rates = stage_rates(report, engine, size)
    known = {stage: value for stage, value in rates.items() if value is not None}
    # A ratio to some of the stages would flatter: the slowest may be the one that is missing.
    if whole is None or len(known) < len(STAGES):
        return None
    slowest = min(known, key=lambda stage: known[stage])
    return {"end_to_end": whole, "slowest": slowest, "slowest_alone": known[slowest], "ratio": whole / known[slowest]}


def to_markdown(report: Mapping[str, Any]) -> str:
    """Stages, end to end and goals as tables; a figure that was not measured is a dash."""
    gpus = ", ".join(report["environment"]["gpus"]) or "no GPU"
    lines = [f"On {gpus}, {report['environment']['cores']} cores; images a second.", ""]
    lines += ["| engine | images | " + " | ".join(STAGES) + " | end to end | of the slowest |"]
    lines += ["|---|---|" + "---|" * (len(STAGES) + 2)]
    concluded = conclude(report)
    for engine, sections in report.get("engines", {}).items():
        for size in SIZES:
            rates = stage_rates(report, engine, size)
            whole = _rate(sections.get("end to end", {}).get(size))
            ratio = concluded["ratios"][engine].get(size)
            cells = [_number(value) for value in (*rates.values(), whole)]
            cells.append("-" if ratio is None else f"{ratio['ratio']:.2f} ({ratio['slowest']})")
            lines.append(f"| {engine} | {size} | " + " | ".join(cells) + " |")
    lines += ["", "| engine | goal | limit | measured | met |", "|---|---|---|---|---|"]
    for engine, goals in concluded["goals"].items():
        for goal, found in goals.items():
            met = {True: "yes", False: "no", None: "not measured"}[found["met"]]
            lines.append(f"| {engine} | {goal} | {found['limit']} | {_number(found['measured'])} | {met} |")
    notes = [f"- {note}" for note in report["notes"]]
    return "\n".join([*lines, *(["", *notes] if notes else []), ""])


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


@click.command(cls=ModuleCommand)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def command(file: Path) -> None:
    """Print a saved report as Markdown."""
    click.echo(to_markdown(json.loads(file.read_text())), nl=False)


if __name__ == "__main__":
    command()
