"""`isicrt bench`: measure models side by side."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
from click.core import ParameterSource

from isicrt._command import NamedPath
from isicrt.benchmarks.benchmark import run_benchmark
from isicrt.benchmarks.comparison import (
    compare,
    comparison_cautions,
    comparison_lines,
    comparison_tables,
    pair_models,
)
from isicrt.benchmarks.gates import SCORES, Gate, failures, parse_gate
from isicrt.benchmarks.latency import QUICK_WINDOW, Window
from isicrt.benchmarks.report_html import to_html
from isicrt.benchmarks.result import Protocol, Report, read_report
from isicrt.benchmarks.tables import Table as Figures
from isicrt.benchmarks.tables import machine, tables, to_csv, to_markdown
from isicrt.benchmarks.workload import RENDERED_NOTE
from isicrt.cli.plan_notice import say_plan_is_code
from isicrt.cli.recording import RecordingCommand, command_line
from isicrt.cli.result_files import check_results, say_written, write_result
from isicrt.cli.stopping import sigterm_as_ctrl_c
from isicrt.cli.tables import open_console, print_table
from isicrt.engine.errors import DataError, SettingsError
from isicrt.engine.heap import keep_buffers, share_heaps
from isicrt.engine.pipeline import available_cores, default_processes

_FILE_WIDTH = 100
"""Letters a line where the output goes to a file or a pipe, and from which on a table's columns are two apart."""
_REDRAW = "\r\x1b[K"
_FILE = NamedPath(dir_okay=False, path_type=Path)


@click.command("bench", cls=RecordingCommand)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="FILE|NAME",
    help="An .onnx or .plan file, or a shipped model's name (see: isicrt models). Several times for several models. "
    "[default: unet-light-int8]",
)
@click.option(
    "--images",
    type=NamedPath(path_type=Path),
    help="Folder, glob pattern or list of images, as for segment. [default: rendered images, made on the spot]",
)
@click.option(
    "--masks",
    type=NamedPath(exists=True, file_okay=False, path_type=Path),
    help="Folder of their ground truth, ISIC_0000000_Segmentation.png (or _lesion, _mask, _seg, _gt) or "
    "ISIC_0000000.png: adds IoU, Dice and the other ISIC scores.",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    multiple=True,
    type=click.IntRange(1, 4096),
    default=(1, 8),
    show_default="1 and 8",
    help="Images a call of the network. Several times for several sizes; the pipeline runs at the largest.",
)
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Measure at least so many times; the figures are medians.",
)
@click.option(
    "--max-repeats",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Measure on, up to so many times, until the last three repeats agree; then warn that the machine is noisy.",
)
@click.option(
    "--stage-images",
    type=click.IntRange(min=1),
    default=384,
    show_default=True,
    help="Images on which the stages are measured one by one, at most; the network alone is on up to 256 of them.",
)
@click.option("--threads", type=click.IntRange(1, 256), help="CPU threads, as for segment. [default: segment's own]")
@click.option("--quick", is_flag=True, help="Few calls and few rendered images: shows that it works, measures badly.")
@click.option("--json", "json_file", type=_FILE, help="Write everything, raw samples too.")
@click.option("--csv", "csv_file", type=_FILE, help="Write one row for each model and batch size.")
@click.option("--markdown", "markdown_file", type=_FILE, help="Write the tables for a README.")
@click.option("--html", "html_file", type=_FILE, help="Write one page with plots that needs no other file.")
@click.option(
    "--compare",
    "old_file",
    type=NamedPath(exists=True, dir_okay=False, path_type=Path),
    metavar="OLD.json",
    help="Say what changed beyond noise since an older --json.",
)
@click.option(
    "--fail-under",
    "under",
    multiple=True,
    metavar="NAME=VALUE",
    help="Exit code 1 where a figure of a model is less, such as images_per_second=50 or, with --images and --masks, "
    "jaccard=0.85.",
)
@click.option(
    "--fail-over",
    "over",
    multiple=True,
    metavar="NAME=VALUE",
    help="Exit code 1 where it is more, such as p99_ms=40, limit_ratio=1.1 or peak_rss_mb=600.",
)
@click.option(
    "--fail-under-ratio",
    "ratios",
    multiple=True,
    metavar="NAME=RATIO",
    help="With --compare: exit code 1 where a figure is less than this part of the older one, such as "
    "images_per_second=0.9; where lower is better, the older one's part of it.",
)
@click.pass_context
def command(
    ctx: click.Context,
    models: tuple[str, ...],
    images: Path | None,
    masks: Path | None,
    batch_sizes: tuple[int, ...],
    repeats: int,
    max_repeats: int,
    stage_images: int,
    threads: int | None,
    quick: bool,
    json_file: Path | None,
    csv_file: Path | None,
    markdown_file: Path | None,
    html_file: Path | None,
    old_file: Path | None,
    under: tuple[str, ...],
    over: tuple[str, ...],
    ratios: tuple[str, ...],
) -> None:
    """Measure latency, throughput and accuracy of one or several models, side by side.

    With no arguments: unet-light-int8 on rendered images.

    isicrt bench --model a.onnx --model b.plan --images DIR --masks DIR --html report.html

    A score can be bounded only with images and their ground truth:

    isicrt bench --images DIR --masks DIR --compare old.json --fail-under-ratio images_per_second=0.9 --fail-under
    jaccard=0.85
    """
    gates = [parse_gate(text, "--fail-under") for text in under]
    gates += [parse_gate(text, "--fail-over") for text in over]
    gates += [parse_gate(text, "--fail-under-ratio") for text in ratios]
    if ratios and old_file is None:
        raise SettingsError("--fail-under-ratio needs --compare: a ratio to what?")
    if masks is None and (scores := [g.name for g in gates if g.name in SCORES]):
        why = "a score on rendered images says nothing" if images is None else "there is no score without ground truth"
        raise SettingsError(f"a bound on {scores[0]} needs --images and --masks: {why}")
    old = read_report(old_file) if old_file is not None else None
    wanted = [(json_file, Report.to_json), (csv_file, to_csv), (markdown_file, to_markdown), (html_file, to_html)]
    files = [(path, text) for path, text in wanted if path is not None]
    check_results({"--json": json_file, "--csv": csv_file, "--markdown": markdown_file, "--html": html_file})
    if quick and ctx.get_parameter_source("stage_images") is ParameterSource.DEFAULT:
        stage_images = 8
    if quick and ctx.get_parameter_source("max_repeats") is ParameterSource.DEFAULT:
        max_repeats = repeats
    protocol = Protocol(
        batch_sizes=tuple(sorted(set(batch_sizes))),
        repeats=repeats,
        threads=threads,
        window=QUICK_WINDOW if quick else Window(),
        stage_images=stage_images,
        max_repeats=max(repeats, max_repeats),
    )
    for model in models:
        say_plan_is_code(Path(model))
    if default_processes(available_cores()):  # as `segment` does
        share_heaps(available_cores() // 2)
    keep_buffers()
    try:
        with sigterm_as_ctrl_c():  # the temporary folder is large
            report = run_benchmark(
                models,
                protocol,
                images=images,
                masks=masks,
                rendered=8 if quick else 48,
                command=command_line(ctx),
                on_step=_show_step,
            )
    except OSError as error:
        hint = f"masks are written to the temporary folder {tempfile.gettempdir()}; set TMPDIR for another"
        raise DataError(f"{error.filename or 'bench'}: {error.strerror or error} ({hint})") from error
    if sys.stderr.isatty():
        click.echo(_REDRAW, nl=False, err=True)
    try:
        for path, text in files:
            write_result(path, text(report), quiet=True)
    finally:  # after the files, which are not to be lost where printing fails
        _print(report)
    say_written(path for path, _ in files)
    problems = failures(report, gates, {}) if old is None else _print_comparison(report, old, gates)
    for problem in problems:
        click.echo(f"Failed: {problem}", err=True)
    if report.failed or problems:
        ctx.exit(1)


def _show_step(step: str, done: int, total: int) -> None:
    """One line, redrawn between measurements: a live progress bar would take CPU time from what is measured. In a log,
    a line for each."""
    terminal = sys.stderr.isatty()
    click.echo(f"{_REDRAW if terminal else ''}[{done}/{total}] {step}", nl=not terminal, err=True)


def _print(report: Report) -> None:
    rendered = f" ({RENDERED_NOTE})" if report.workload.rendered else ""
    click.echo(f"{machine(report)}\n{report.workload.source}{rendered}")
    _print_tables(tables(report), report.warnings)


def _print_comparison(report: Report, old: Report, gates: Sequence[Gate]) -> list[str]:
    """What changed since the older report, and what the gates do not let pass.

    Raises:
        DataError: no model is in both.
    """
    found = compare(old, report)
    _print_tables([], comparison_cautions(found))
    _print_tables(comparison_tables(found), comparison_lines(found))
    return failures(report, gates, pair_models(old, report), old)


def _print_tables(found: Sequence[Figures], notes: Sequence[str]) -> None:
    from rich.text import Text

    console = open_console(_FILE_WIDTH)
    for table in found:
        console.print()
        print_table(console, table, gap=2 if console.width >= _FILE_WIDTH else 1)
    if notes:
        console.print()
    for note in notes:
        console.print(Text(f"Note: {note}", style="yellow"))
