"""The accuracy-speed table of a `isicrt.benchmarks.tradeoff` result, and its drawing.

    python -m isicrt.benchmarks.tradeoff_report tradeoff.json --svg tradeoff.svg

prints a committed result as Markdown, for the docs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from isicrt._command import ModuleCommand
from isicrt.benchmarks.plots import accuracy_plot
from isicrt.benchmarks.result_file import check_places, write_whole
from isicrt.benchmarks.tables import figure, markdown_text
from isicrt.engine.errors import DataError

SCHEMA = "isicrt-tradeoff/1"
_STYLE = """<style>
text { font: 13px system-ui, "Segoe UI", Roboto, Arial, sans-serif; fill: #1b2127; }
.name { font-weight: 600; } .muted { fill: #586370; } path { fill: none; } .grid { stroke: #dde3e8; }
.interval { stroke: #0a66c2; stroke-width: 2; stroke-opacity: .6; } .point { fill: #0a66c2; }
.measured { stroke: #1b2127; stroke-width: 2; stroke-dasharray: 4 3; } .paper { fill: #fff; }
@media (prefers-color-scheme: dark) { text { fill: #e8ecef; } .muted { fill: #a0abb6; } .grid { stroke: #2f3840; }
.interval { stroke: #62aef7; } .point { fill: #62aef7; } .measured { stroke: #e8ecef; } .paper { fill: #181e24; } }
</style>"""


def read_tradeoff(path: Path) -> dict[str, Any]:
    """Read what `isicrt.benchmarks.tradeoff` wrote.

    Raises:
        DataError: there is no such file, or it is something else.
    """
    try:
        data: dict[str, Any] = json.loads(path.read_bytes())
        schema = data["schema"]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a result of isicrt.benchmarks.tradeoff: {error!r}") from error
    if schema != SCHEMA:
        raise DataError(f"{path}: its schema is {schema!r}; this isicrt reads {SCHEMA!r}. Measure again.")
    return data


def to_markdown(result: Mapping[str, Any]) -> str:
    """The table, how it was measured, and the warnings."""
    settings = [(t["threads"], t["batch_size"]) for t in result["models"][0]["timings"]]
    most = max(threads for threads, _ in settings)
    header = ["Model", "Input", "Parameters", "GMAC", "ONNX MB", "plan MB"]
    header += [f"ms, {threads} core{'s' * (threads > 1)}, batch {batch}" for threads, batch in settings]
    header += [f"x peer, {most} cores, batch {batch}" for threads, batch in settings if threads == most]
    header += ["Jaccard (95 %)", "against the best (95 %)"]
    lines = [_cells(header), _cells([":--", ":--"] + ["--:"] * (len(header) - 2))]
    lines += [_cells([markdown_text(cell) for cell in _row(model, most)]) for model in result["models"]]
    data, environment = result["data"], result["environment"]
    versions = ", ".join(
        f"{name} {environment['versions'][name]}"
        for name in ("isicrt", "onnxruntime", "openvino")
        if name in environment["versions"]
    )
    chosen = f", the ids in {data['ids']}" if data["ids"] else ""
    images = result.get("images_in_turn")  # results of before called it on one batch again and again
    turn = f" over {images} images in turn" if images else ""
    notes = [
        f"Network alone, milliseconds an image{turn}, medians of {result['protocol']['repeats']} repeats; x peer: "
        "median of the repeats' ratios.",
        *_runtimes(result["models"]),
        f"Jaccard index of {data['images']} images ({', '.join(data['sets'])}, {data['split']}{chosen}), official "
        "protocol; difference to the best model with its paired bootstrap interval.",
        f"Measured {result['date'][:10]} on {environment['cpu']} ({environment['cores']} cores), {versions}, with "
        f"`{result['command']}`.",
    ]
    notes += [f"Warning: {warning}." for warning in result["warnings"]]
    return "\n".join([*lines, "", *(f"- {markdown_text(note)}" for note in notes), ""])


def _runtimes(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """What computed the networks, by name where it was not one for all; nothing in results that did not note it."""
    found = {str(model["label"]): str(model.get("runtime", "")) for model in models}
    if not all(found.values()):
        return []
    names = sorted(set(found.values()))
    by_name = [f"{name} ({', '.join(label for label in found if found[label] == name)})" for name in names]
    return [f"Computed by {names[0] if len(names) == 1 else ' and '.join(by_name)}."]


def _row(model: Mapping[str, Any], most: int) -> list[str]:
    height, width = model["input"]
    plan = model["plan_bytes"]
    label = model["label"] + (", peer, not trained" if model["peer"] else "")
    cells = [
        f"{label}, {model['precision']}",
        f"{height}" if height == width else f"{height} x {width}",
        f"{model['parameters'] / 1e6:.2f} M",
        f"{model['macs'] / 1e9:.2f}",
        f"{model['bytes'] / 1e6:.1f}",
        "" if plan is None else f"{plan / 1e6:.1f}",
    ]
    cells += [figure(t["ms_per_image"]) for t in model["timings"]]
    ratios = [t["times_as_fast_as_peer"] for t in model["timings"] if t["threads"] == most]
    cells += ["" if ratio is None else f"{ratio:.1f}" for ratio in ratios]
    if model["accuracy"] is None:
        return [*cells, "", ""]
    summary, behind = model["accuracy"]["summary"], model["accuracy"]["against_best"]
    cells.append(f"{summary['jaccard']:.4f} ({summary['jaccard_low']:.3f} to {summary['jaccard_high']:.3f})")
    if not any(behind.values()):
        return [*cells, "best"]
    if behind["low"] is None:
        return [*cells, f"{behind['jaccard']:+.4f} (too few images)"]
    return [*cells, f"{behind['jaccard']:+.4f} ({behind['low']:+.4f} to {behind['high']:+.4f})"]


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def to_svg(result: Mapping[str, Any], width: int = 880) -> str:
    """Mean IoU against images/s of the network on all cores at the largest batch, as a file of its own.

    Bars are 95 % intervals; dashed lines the peer's speed and four times that.
    """
    points = [(m["label"], _rate(m), m["accuracy"]["summary"]) for m in result["models"] if m["accuracy"]]
    peers = [
        (f"{times} {m['label']}".removeprefix("1x "), k * _rate(m))
        for m in result["models"]
        if m["peer"]
        for k, times in ((1, "1x"), (4, "4x"))
    ]
    last = max(result["models"][0]["timings"], key=lambda t: (t["threads"], t["batch_size"]))
    across = f"images/s of the network, {last['threads']} cores, batch {last['batch_size']}"
    opening, rest = accuracy_plot(points, width, across=across, marks=peers).split(">", 1)
    paper = '<rect class="paper" width="100%" height="100%"/>'
    return f'{opening} xmlns="http://www.w3.org/2000/svg">{_STYLE}{paper}{rest}\n'


def _rate(model: Mapping[str, Any]) -> float:
    """Images a second on all cores at the largest batch."""
    last = max(model["timings"], key=lambda t: (t["threads"], t["batch_size"]))
    return 1e3 / float(last["ms_per_image"])


@click.command(cls=ModuleCommand)
@click.argument("result", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path))
def main(result: Path, svg: Path | None) -> None:
    """Print RESULT, the JSON of isicrt.benchmarks.tradeoff, as Markdown."""
    check_places(svg)
    data = read_tradeoff(result)
    if svg is not None:
        write_whole(svg, to_svg(data))
    click.echo(to_markdown(data))


if __name__ == "__main__":
    main()
