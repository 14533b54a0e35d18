"""The tables of ``docs/performance.md``, from the results beside it.

    python -m isicrt.benchmarks.performance_page docs/performance.md benchmarks/results

Each table stands between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``; the rest of the page is kept. What a result
warns of stands under its table. A test holds the page to the results.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from isicrt._command import ModuleCommand
from isicrt.benchmarks.peers.race import race_markdown
from isicrt.benchmarks.result import ModelResult, Report, read_report
from isicrt.engine.errors import DataError
from isicrt.engine.masks import replace_file
from isicrt.engine.pipeline import STAGES

CROPS, FRAMES, PHOTOGRAPHS = ("339 crops of 512 px", 1.05), ("300 of 1022 x 767", 1.10), ("48 of 10 to 12 MP", 1.15)
"""What the images are, and the ratio to L that was wanted."""
PIPELINE = (
    ("performance-512.json", "Xeon", CROPS),
    ("performance-512-2.json", "Xeon, again", CROPS),
    ("performance-512-3.json", "Xeon, again", CROPS),
    ("performance-1022.json", "Xeon", FRAMES),
    ("performance-12mp.json", "Xeon, older weights", PHOTOGRAPHS),
    ("performance-512-epyc.json", "EPYC", CROPS),
    ("performance-1022-epyc.json", "EPYC", FRAMES),
    ("performance-12mp-epyc.json", "EPYC", PHOTOGRAPHS),
)
"""Result, the machine, and the images."""
LIMITS = (
    *("images", "machine", "model", "L, ms", "measured, ms", "ratio", "wanted", "crowding"),
    *("images/s", "MP/s", "peak MB"),
)
PEERS = ("peers-512", "peers-512-epyc", "peers-512-float", "peers-512-load", "peers-12mp", "peers-baseline")


def sections(results: Path) -> dict[str, str]:
    """Every table, without its markers, by name.

    Args:
        results: the folder of the JSON files.

    Raises:
        DataError: one is missing, or is no such result.
    """
    reports = [(read_report(results / file), machine, images) for file, machine, images in PIPELINE]
    found = {"limits": _limits(reports), "stages": _stages(reports), "memory": _memory(_read(results / "memory.json"))}
    return found | {name: race_markdown(_read(results / f"{name}.json")).rstrip("\n") for name in PEERS}


def fill(page: str, tables: Mapping[str, str]) -> str:
    """The page with the tables between their markers.

    Raises:
        DataError: a table has not exactly one place.
    """
    for name, table in tables.items():
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise DataError(f"the page has not exactly one place '{begin.strip()}' ... '{end}'")
        before, rest = page.split(begin)
        page = f"{before}{begin}\n{table}\n\n{end}{rest.split(end)[1]}"
    return page


Measured = Sequence[tuple[Report, str, tuple[str, float]]]


def _limits(reports: Measured) -> str:
    rows = [_limit_row(model, machine, *images) for report, machine, images in reports for model in report.models]
    notes = [f"> - {machine}, {what}: {w}" for report, machine, (what, _) in reports for w in report.warnings]
    return "\n".join([f"| {' | '.join(LIMITS)} |", "|---" * len(LIMITS) + "|", *rows, *(["", *notes] if notes else [])])


def _limit_row(model: ModelResult, machine: str, what: str, wanted: float) -> str:
    run, stages = model.end_to_end, model.stages
    crowding = "" if stages.crowding is None else f"{stages.crowding:.2f}"
    peak = model.process.peak_rss_mb if model.process is not None else None
    return (
        f"| {what} | {machine} | `{model.label}` | {_ms(stages.limit_ms)} | {_ms(run.ms_per_image)} | "
        f"{model.limit_ratio:.2f} | {wanted:.2f} | {crowding} | {run.images_per_second:.0f} | "
        f"{run.megapixels_per_second:.0f} | {'' if peak is None else f'{peak:.0f}'} |"
    )


def _stages(reports: Measured) -> str:
    rows = []
    for report, machine, (what, _) in reports:
        for model in report.models:
            cells = [f"{_ms(model.stages.cpu(s))} ({100 * model.stages.share(s):.0f} %)" for s in STAGES]
            rows.append(f"| {what} | {machine} | `{model.label}` | {' | '.join(cells)} |")
    return "\n".join([f"| images | machine | model | {' | '.join(STAGES)} |", "|---" * 7 + "|", *rows])


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _memory(data: Mapping[str, Any]) -> str:
    peaks = {(r["what"], r["images"], r["batch_size"]): f"{r['peak_rss_mb']:.0f}" for r in data["readings"]}
    counts = sorted({images for what, images, _ in peaks if what == "count"})
    rows = [f"| {n:,} | 8 | {peaks['count', n, 8]} | {peaks['resume', n, 8]} |" for n in counts]
    rows += [f"| {n:,} | {b} | {peak} | |" for (what, n, b), peak in peaks.items() if what == "batch" and b != 8]
    large = [(b, n, peak) for (what, n, b), peak in peaks.items() if what == "large"]
    sizes, found = (" / ".join(str(entry[k]) for entry in large) for k in (0, 2))
    rows.append(f"| {large[0][1]} of 12 MP | {sizes} | {found} | |")
    grown = (
        f"{counts[-1]:,} images take {100 * data['growth']:.1f} % more than {counts[0]:,}, and "
        f"{100 * data['resume_growth']:.1f} % more where the journal of an earlier run is read."
    )
    header = ["| images of 512 px | batch | peak MB | again, when every mask is there |", "|---|---|---|---|"]
    return "\n".join([*header, *rows, "", grown])


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if not re.match(r"isicrt-(peers|memory)/", str(found.get("schema"))):
        raise DataError(f"{path}: is no result of peers or memory")
    return found


@click.command(cls=ModuleCommand)
@click.argument("page", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(page: Path, results: Path) -> None:
    """Put the tables from RESULTS, a folder of JSON files, between their markers in PAGE."""
    replace_file(page, fill(page.read_text(encoding="utf-8"), sections(results)).encode())


if __name__ == "__main__":
    main()
