"""The figures as tables: one list of cells for the terminal, Markdown and HTML, and flat rows for CSV.

``python -m isicrt.benchmarks.tables RESULT.json`` prints a committed result as Markdown, for the docs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from isicrt._command import ModuleCommand
from isicrt.benchmarks.result import ModelResult, Report, read_report
from isicrt.benchmarks.workload import RENDERED_NOTE
from isicrt.engine.csv_row import csv_table
from isicrt.engine.pipeline import STAGES


@dataclass(frozen=True)
class Table:
    """Text cells under headings. The first `labels` columns are words, the others figures."""

    title: str
    note: str
    """Units and definitions, in a sentence or two."""
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    labels: int


def tables(report: Report) -> list[Table]:
    """Latency, throughput, stages, resources, and accuracy where something was scored."""
    found = [_latency(report), _throughput(report), _stages(report), _busy(report), _resources(report)]
    if any(m.accuracy and m.accuracy.per_image for m in report.models):
        found.append(_accuracy(report))
    return found


def figure(value: float) -> str:
    """Three significant digits, or all before the point, and never an exponent: 0.0123, 1.23, 12.3, 123, 1234."""
    if not math.isfinite(value):
        return str(value)
    exponent = int(f"{value:.2e}".partition("e")[2])
    return f"{value:.{max(0, 2 - exponent)}f}"


def _latency(report: Report) -> Table:
    counts = sorted({x.images for m in report.models for x in m.latencies if x.images is not None})
    return Table(
        title="Network alone",
        note="Milliseconds a call from host memory to host memory, warm-up excluded, nothing clipped; images/s of "
        "calls made back to back." + (f" Calls take {', '.join(map(str, counts))} images in turn." if counts else ""),
        header=("Model", "Runtime", "Batch", "p50", "p90", "p99", "MAD", "Calls", "images/s"),
        rows=tuple(
            (m.label, m.runtime, str(x.batch_size))
            + tuple(figure(v) for v in (x.percentile(50), x.percentile(90), x.percentile(99), x.mad_ms))
            + (str(len(x.samples_ms)), figure(x.images_per_second))
            for m in report.models
            for x in m.latencies
        ),
        labels=2,
    )


def _throughput(report: Report) -> Table:
    return Table(
        title="Files to masks",
        note=f"The whole pipeline, median of {_runs(report)} over {report.workload.images} images. L: "
        f"{_limits(report)}, each stage measured alone on one thread; no pipeline of them is faster. Ratio: measured / "
        "L. Crowding: CPU time of the network on every core at once / on one alone, which the machine adds to the "
        "ratio.",
        header=("Model", "Batch", "images/s", "MP/s", "ms/image", "L ms", "Ratio", "Crowding", "Bottleneck"),
        rows=tuple(
            (m.label, str(m.end_to_end.batch_size))
            + tuple(
                figure(v)
                for v in (
                    m.end_to_end.images_per_second,
                    m.end_to_end.megapixels_per_second,
                    m.end_to_end.ms_per_image,
                    m.stages.limit_ms,
                    m.limit_ratio,
                )
            )
            + ("" if m.stages.crowding is None else figure(m.stages.crowding), m.stages.bottleneck)
            for m in report.models
        ),
        labels=1,
    )


def _limits(report: Report) -> str:
    """What L is; by model where it is not the same for all."""
    return _by_model({m.label: m.stages.limit_of for m in report.models})


def _runs(report: Report) -> str:
    """How many runs the figures are medians of; by model where it is not the same for all."""
    counts = {m.label: len(m.end_to_end.counted) for m in report.models}
    return _by_model({label: f"{n} run{'s' * (n != 1)}" for label, n in counts.items()})


def _by_model(said: Mapping[str, str]) -> str:
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return ", ".join(f"{text} ({label})" for label, text in said.items())


def _stages(report: Report) -> Table:
    return Table(
        title="Stages, each alone",
        note="CPU milliseconds an image on one thread (of a network on a GPU, wall milliseconds), and the stage's "
        "share of the machine's time.",
        header=("Model",) + STAGES,
        rows=tuple(
            (m.label,) + tuple(f"{figure(_cost(m, s))} ({m.stages.share(s):.0%})" for s in STAGES)
            for m in report.models
        ),
        labels=1,
    )


def _cost(model: ModelResult, stage: str) -> float:
    alone = model.stages
    return alone.wall(stage) if alone.on_device and stage == "infer" else alone.cpu(stage)


def _busy(report: Report) -> Table:
    return Table(
        title="Stages, together",
        note="Threads inside each stage while the pipeline ran, on average; some of them wait for a core.",
        header=("Model",) + STAGES,
        rows=tuple((m.label,) + tuple(f"{m.end_to_end.busy_threads(s):.2f}" for s in STAGES) for m in report.models),
        labels=1,
    )


def _resources(report: Report) -> Table:
    def cell(value: float | None, absent: str) -> str:
        return absent if value is None else figure(value)

    no_gpu = "not noted" if report.environment.gpus else "no GPU"
    cores = max(m.stages.usable_cores for m in report.models)
    # Two more columns, where a GPU worked and counts.
    gpu = any(m.end_to_end.gpu_watts is not None for m in report.models)
    return Table(
        title="Resources",
        note="Cores kept busy, of those that the pipeline's threads can use, and CPU time of the timed runs, beside "
        "the CPU time of the stages alone. Largest memory of isicrt segment on these images as a process of its own, "
        "and where it has others of the largest of them, MB of 10^6 bytes. Energy of the processors, other programs' "
        "too." + (" GPU: energy and mean power of all GPUs in the timed runs." if gpu else ""),
        header=("Model", f"Busy of {cores} cores", "CPU ms/image", "Alone", "Peak RSS MB", "GPU MB", "J/image")
        + (("GPU J/image", "GPU W") if gpu else ()),
        rows=tuple(
            (
                m.label,
                cell(m.end_to_end.busy_cores, "not noted"),
                cell(m.end_to_end.cpu_ms_per_image, "not noted"),
                figure(sum(map(m.stages.cpu, STAGES))),
                cell(m.process.peak_rss_mb if m.process else None, "not noted"),
                cell(m.process.gpu_memory_mb if m.process else None, no_gpu),
                cell(m.end_to_end.joules_per_image, "not readable"),
            )
            + ((cell(m.end_to_end.gpu_joules_per_image, "-"), cell(m.end_to_end.gpu_watts, "-")) if gpu else ())
            for m in report.models
        ),
        labels=1,
    )


def _accuracy(report: Report) -> Table:
    rows: list[tuple[str, ...]] = []
    for m in report.models:
        if m.accuracy is None or not m.accuracy.per_image:
            continue
        s = m.accuracy.summary
        interval = f"{s['jaccard_low']:.3f}-{s['jaccard_high']:.3f}" if s["images"] > 1 else "-"
        rows.append(
            (m.label, str(s["images"]), f"{s['jaccard']:.4f}", interval)
            + tuple(f"{s[name]:.4f}" for name in ("dice", "threshold_jaccard"))
            + tuple(f"{s[name]:.3f}" for name in ("accuracy", "sensitivity", "specificity"))
            + (str(s["failures"]),)
        )
    rendered = f" ({RENDERED_NOTE})" if report.workload.rendered else ""
    return Table(
        title=f"Accuracy{rendered}",
        note="ISIC scores of the masks that the last timed run wrote: per image at the image's own size, then "
        "averaged. Interval: 95 % bootstrap of the mean IoU. IoU*: 0 where below 0.65. <0.65: number of such images.",
        header=("Model", "Images", "IoU", "Interval", "Dice", "IoU*", "Acc.", "Sens.", "Spec.", "<0.65"),
        rows=tuple(rows),
        labels=1,
    )


def to_markdown(report: Report) -> str:
    """The warnings, every table with its title and note, then the machine: what a README quotes."""
    parts = ["\n".join(f"> - {markdown_text(line)}" for line in report.warnings)] if report.warnings else []
    for table in tables(report):
        lines = [f"**{table.title}.** {table.note}", "", _pipes(table.header)]
        lines.append(_pipes([":--" if n < table.labels else "--:" for n in range(len(table.header))], escape=False))
        lines += [_pipes(row) for row in table.rows]
        parts.append("\n".join(lines))
    parts.append(f"Measured {report.date[:10]} on {markdown_text(machine(report))}, with ``{report.command}``.")
    return "\n\n".join(parts) + "\n"


def machine(report: Report) -> str:
    """Processor, GPU and the versions that matter, in one line."""
    e = report.environment
    names = ("isicrt", "onnxruntime", "openvino", "tensorrt")
    software = [f"{name} {e.versions[name]}" for name in names if name in e.versions]
    return ", ".join([f"{e.cpu} ({e.cores} cores)", *e.gpus, f"Python {e.versions['python']}", *software])


def _pipes(cells: tuple[str, ...] | list[str], *, escape: bool = True) -> str:
    return "| " + " | ".join(markdown_text(c) if escape else c for c in cells) + " |"


def markdown_text(text: str) -> str:
    """Keep a name with a pipe, a tag or a star in it from ending a cell or turning into markup."""
    for sign in "\\|*_<":
        text = text.replace(sign, "\\" + sign)
    return text


def to_csv(report: Report) -> str:
    """One row for each model and batch size, unrounded; a model's end-to-end figures and scores stand in each row."""
    rows: list[dict[str, object]] = []
    for m in report.models:
        fixed: dict[str, object] = {
            "pipeline_batch_size": m.end_to_end.batch_size,
            "images": report.workload.images,
            "images_per_second": m.end_to_end.images_per_second,
            "megapixels_per_second": m.end_to_end.megapixels_per_second,
            "ms_per_image": m.end_to_end.ms_per_image,
            "limit_ms": m.stages.limit_ms,
            "limit_ratio": m.limit_ratio,
            "crowding": m.stages.crowding,
            "cpu_ms_per_image": m.end_to_end.cpu_ms_per_image,
            "busy_cores": m.end_to_end.busy_cores,
            "other_cores": m.end_to_end.other_cores,
            "peak_rss_mb": m.process.peak_rss_mb if m.process else None,
            "gpu_memory_mb": m.process.gpu_memory_mb if m.process else None,
            "joules_per_image": m.end_to_end.joules_per_image,
            "gpu_joules_per_image": m.end_to_end.gpu_joules_per_image,
            "gpu_watts": m.end_to_end.gpu_watts,
            "bottleneck": m.stages.bottleneck,
        }
        fixed |= {f"{s}_ms": m.stages.wall(s) for s in STAGES}
        fixed |= {f"{s}_cpu_ms": m.stages.cpu(s) for s in STAGES}
        if m.accuracy and m.accuracy.per_image:
            summary = m.accuracy.noted
            fixed |= {"scored_images": summary["images"]} | {k: v for k, v in summary.items() if k != "images"}
        rows += [
            {
                "model": m.label,
                "runtime": m.runtime,
                "file": m.file,
                "sha256": m.sha256,
                "rendered": report.workload.rendered,
                "batch_size": x.batch_size,
                "calls": len(x.samples_ms),
                "p50_ms": x.percentile(50),
                "p90_ms": x.percentile(90),
                "p99_ms": x.percentile(99),
                "mad_ms": x.mad_ms,
                "network_images_per_second": x.images_per_second,
            }
            | fixed
            for x in m.latencies
        ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return csv_table(columns, rows)


@click.command(cls=ModuleCommand)
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(files: tuple[Path, ...]) -> None:
    """Print FILES, JSON results of isicrt bench, as Markdown."""
    click.echo("\n".join(to_markdown(read_report(file)) for file in files), nl=False)


if __name__ == "__main__":
    main()
