"""The report as one HTML page: no script, no external file, readable on a phone, light and dark."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from isicrt.benchmarks.latency import SETTLED_WINDOWS, TOLERANCE
from isicrt.benchmarks.plots import latency_plot, stage_plot, timeline_plot, tradeoff_plot
from isicrt.benchmarks.result import ModelResult, Report
from isicrt.benchmarks.tables import Table, figure, machine, tables
from isicrt.benchmarks.workload import RENDERED_NOTE

_WIDE, _NARROW = 880, 340

_STYLE = """
:root { color-scheme: light dark; --page: #f4f6f8; --card: #fff; --ink: #1b2127; --muted: #586370; --line: #dde3e8;
  --accent: #0a66c2; --warn: #8a4b00; --warn-card: #fff4e0; --p90: #b4541a; --p99: #a3173f; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1317; --card: #181e24; --ink: #e8ecef; --muted: #a0abb6;
  --line: #2f3840; --accent: #62aef7; --warn: #ffcf87; --warn-card: #33270f; --p90: #f0a060; --p99: #ff8095; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: anywhere; }
main { max-width: 960px; margin: 0 auto; padding: 24px 16px 48px; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.15rem; margin: 0 0 2px; }
p { margin: 0 0 8px; }
.muted, .note { color: var(--muted); }
.note { font-size: .9rem; margin-bottom: 12px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px 20px;
  margin-top: 16px; }
.warn { background: var(--warn-card); color: var(--warn); }
.warn ul { margin: 0; padding-left: 1.2em; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px 16px; }
.tiles b { display: block; font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tiles h2 { grid-column: 1 / -1; margin: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 6px 8px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--muted); font-weight: 600; vertical-align: bottom; }
tr:last-child td { border-bottom: 0; }
.word { text-align: left; }
.word:first-child { white-space: normal; min-width: 9em; } /* or the figures leave a name one letter a line */
dl { display: grid; grid-template-columns: fit-content(40%) 1fr; gap: 4px 16px; margin: 8px 0 0; font-size: .9rem; }
dt { color: var(--muted); }
dd { margin: 0; }
svg { display: block; max-width: 100%; height: auto; margin-top: 8px; }
svg.narrow { display: none; }
svg text { font-size: 13px; fill: var(--ink); }
svg .name { font-weight: 600; }
svg .muted { fill: var(--muted); }
svg .on-bar { fill: #fff; font-size: 12px; }
svg path { fill: none; }
.grid { stroke: var(--line); }
.dots { stroke: var(--accent); stroke-width: 4; stroke-linecap: round; stroke-opacity: .55; }
.p50 { stroke: var(--ink); stroke-width: 3; }
.p90 { stroke: var(--p90); stroke-width: 2.5; }
.p99 { stroke: var(--p99); stroke-width: 2.5; }
.measured { stroke: var(--ink); stroke-width: 3; stroke-dasharray: 4 3; }
.limit { stroke: var(--p99); stroke-width: 3; }
.interval { stroke: var(--accent); stroke-width: 2; stroke-opacity: .6; }
.point { fill: var(--accent); }
.decode { fill: #3a6ea5; } .infer { fill: #b4541a; } .restore { fill: #2f7d4f; } .write { fill: #7b4f9d; }
@media (max-width: 760px) { svg.wide { display: none; } svg.narrow { display: block; width: 100%; max-width: 480px; } }
@media (max-width: 640px) {
  main { padding: 16px 10px 32px; }
  section { padding: 14px 14px; }
  .tiles { grid-template-columns: 1fr 1fr; }
  table, tbody, tr, td { display: block; width: 100%; }
  thead { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
  tr { padding: 8px 0; border-bottom: 1px solid var(--line); }
  tr:last-child { border-bottom: 0; }
  td, .word:first-child { min-width: 0; white-space: normal; }
  td { display: flex; justify-content: space-between; gap: 16px; border: 0; padding: 2px 0; text-align: right; }
  td::before { content: attr(data-name); color: var(--muted); flex: none; }
  td:first-child { font-weight: 600; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 8px; }
}
"""


def to_html(report: Report) -> str:
    """The whole page as text, to be written as UTF-8."""
    scored = any(m.accuracy and m.accuracy.per_image for m in report.models)
    rendered = f" ({RENDERED_NOTE})" if report.workload.rendered else ""
    sections = [_warnings(report), *map(_tiles, report.models)]
    sections.append(
        _plot(
            report,
            latency_plot,
            "Latency",
            "Each dot is one call of the network, as a multiple of the median of its row; warm-up calls are not among "
            "them. The tighter, the steadier.",
        )
    )
    sections.append(
        _plot(
            report,
            stage_plot,
            "Where the time goes",
            "How long an image would keep the whole machine busy in each stage, measured alone: CPU time divided by "
            "the cores that it can use, and for a network on a GPU its wall time. L is the limit of any pipeline of "
            "these stages: all of them together, or with a GPU, which works beside the cores, the larger of its time "
            "and theirs. The dashed line is the measured pipeline: how far it is to the right of L is what it loses.",
        )
    )
    if any(m.timeline for m in report.models):
        sections.append(
            _plot(
                report,
                timeline_plot,
                "Timeline",
                "The first images of a run: which thread was in which stage, and when. A gap is a thread that waited.",
            )
        )
    if scored:
        sections.append(
            _plot(
                report,
                tradeoff_plot,
                f"Accuracy against speed{rendered}",
                "Mean IoU over the images, with the 95 % bootstrap interval of that mean. Up and right is better.",
            )
        )
    sections += [_table(t) for t in tables(report)] + [_facts(report)]
    names = ", ".join(m.label for m in report.models)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>isicrt bench: {escape(names)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>isicrt bench</h1>
<p class="muted">{escape(machine(report))}<br>Images: {escape(report.workload.source)}{escape(rendered)}<br>
{escape(report.date[:16].replace("T", " "))} UTC</p>
{"".join(sections)}
</main>
</body>
</html>
"""


def _warnings(report: Report) -> str:
    if not report.warnings:
        return ""
    items = "".join(f"<li>{escape(w)}</li>" for w in report.warnings)
    return f'<section class="warn"><h2>Read this first</h2><ul>{items}</ul></section>\n'


def _tiles(model: ModelResult) -> str:
    """The three or four figures that most readers come for."""
    first = model.latencies[0]
    tiles = [
        (figure(model.end_to_end.images_per_second), "images/s, files to masks"),
        (figure(first.percentile(50)), f"ms latency p50, batch {first.batch_size}"),
        (f"{model.limit_ratio:.2f}", f"times L, the limit of {figure(model.stages.limit_ms)} ms an image"),
        (model.stages.bottleneck, f"is the bottleneck ({model.stages.bottleneck_share:.0%} of L)"),
    ]
    if model.accuracy and model.accuracy.per_image:
        summary = model.accuracy.summary
        tiles.append((f"{summary['jaccard']:.3f}", f"mean IoU of {summary['images']} images"))
    cells = "".join(
        f'<div><b>{escape(value)}</b><span class="muted">{escape(name)}</span></div>' for value, name in tiles
    )
    return f'<section class="tiles"><h2>{escape(model.label)}, {escape(model.runtime)}</h2>{cells}</section>\n'


def _plot(report: Report, draw: Callable[[Report, int], str], title: str, note: str) -> str:
    drawings = "".join(
        draw(report, width).replace("<svg ", f'<svg class="{kind}" ', 1)
        for width, kind in ((_WIDE, "wide"), (_NARROW, "narrow"))
    )
    return f'<section><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>{drawings}</section>\n'


def _table(table: Table) -> str:
    def row(cells: tuple[str, ...], tag: str) -> str:
        return "".join(
            f'<{tag}{" class=word" if n < table.labels else ""} data-name="{escape(name)}">{escape(cell)}</{tag}>'
            for n, (name, cell) in enumerate(zip(table.header, cells, strict=True))
        )

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in table.rows)
    return (
        f'<section><h2>{escape(table.title)}</h2><p class="note">{escape(table.note)}</p><div class="scroll"><table>'
        f"<thead><tr>{row(table.header, 'th')}</tr></thead><tbody>{body}</tbody></table></div></section>\n"
    )


def _facts(report: Report) -> str:
    e, p, w = report.environment, report.protocol, report.protocol.window
    taken = max(len(m.end_to_end.runs) for m in report.models)
    repeats = str(taken)
    if (p.max_repeats or p.repeats) > p.repeats:
        repeats += f" (at least {p.repeats}, until the last {SETTLED_WINDOWS} agree within {TOLERANCE:.0%})"
    facts = [
        ("Command", report.command),
        ("Date", report.date),
        ("CPU", f"{e.cpu}, {e.cores} cores"),
        ("GPU", ", ".join(e.gpus) or "none"),
        ("System", e.os),
        ("Load before", "unknown" if e.load_average is None else f"{e.load_average:.2f}"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in e.versions.items())),
        ("Images", f"{report.workload.source}; {report.workload.images} files, {report.workload.megabytes:.1f} MB"),
        ("Threads", "one a core" if p.threads is None else str(p.threads)),
        (
            "Latency windows",
            f"{repeats} of at least {w.calls} calls and {w.seconds:g} s, each after a warm-up of at least "
            f"{w.warmup_calls} calls and {w.warmup_seconds:g} s",
        ),
        ("Pipeline runs", f"{repeats} over all images, after a warm-up"),
        ("Stage passes", f"{repeats} over at most {p.stage_images} images, after a warm-up"),
        ("Memory", "isicrt segment on all images, as a process of its own"),
    ]
    facts += [
        (
            m.label,
            f"{m.file}, {m.bytes / 1e6:.2f} MB, SHA-256 {m.sha256}; {m.card.architecture}, {m.card.precision}, "
            f"{m.card.input_height} x {m.card.input_width} px, threshold {m.card.threshold:g}",
        )
        for m in report.models
    ]
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return f"<section><h2>How it was measured</h2><dl>{items}</dl></section>\n"
