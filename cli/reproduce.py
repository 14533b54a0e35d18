"""`isicrt reproduce`: train the rows of the report's table, score them, and write the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isicrt._command import NamedPath
from isicrt.cli.candidates import open_candidates
from isicrt.cli.plain_text import shell_word
from isicrt.cli.recording import RecordingCommand, command_line
from isicrt.cli.result_files import check_figures, write_result
from isicrt.engine.errors import MissingDependencyError, SettingsError

if TYPE_CHECKING:
    from isicrt.benchmarks.evaluation import Case
    from isicrt.benchmarks.report_table import ReportTable, TestSet, Trials
    from isicrt.trainer.report_runs import Run

ROWS = ("unet", "segnet-attention", "segnet-attention-atrous", "segnet-attention-atrous-augmented")
SEARCHED = ROWS[0]
"""The row of `--search-lr` without a name."""
SHORT_EPOCHS = 40
TABLE, PAGE = "report-table.json", "results.md"
_FILE = NamedPath(dir_okay=False, path_type=Path)


class RowsType(click.ParamType):  # type: ignore[type-arg]
    """Names of rows with commas between them, ``all`` or ``none``."""

    name = "row,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        if value in ("all", "none"):
            return ROWS if value == "all" else ()
        names = [name.strip() for name in str(value).split(",")]
        for name in names:
            if name not in ROWS:
                self.fail(f"{name!r} is not a row: choose from {', '.join(ROWS)}, or all, or none", param, ctx)
        return tuple(row for row in ROWS if row in names)


@click.command("reproduce", cls=RecordingCommand)
@click.option(
    "--data",
    type=NamedPath(exists=True, file_okay=False, path_type=Path),
    envvar="ISICRT_DATA",
    required=True,
    help="ISIC 2016 with its train and test split, see `isicrt data isic2016`. Default: $ISICRT_DATA.",
)
@click.option(
    "--rows",
    type=RowsType(),
    default="all",
    show_default=True,
    help=f"Rows to train, with commas between them: {', '.join(ROWS)}; or `none`.",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=2),
    help="Of a row in all, half of them with the encoder frozen.  [default: the report's, 100 and 100]",
)
@click.option(
    "--layout",
    type=click.Choice(("light", "report")),
    default="light",
    show_default=True,
    help="Widths: `report` has the report's own, up to 140 million parameters. Without a GPU its cells stay "
    "empty, unless --device cpu asks for them.",
)
@click.option(
    "--out",
    type=NamedPath(path_type=Path, file_okay=False),
    default=Path("runs/report"),
    show_default=True,
    help="Folder of the runs.",
)
@click.option("--device", type=click.Choice(("auto", "cpu", "cuda")), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1, 256), help="CPU threads to use.  [default: all cores]")
@click.option("--seed", type=click.IntRange(min=0), help="[default: 0]")
@click.option(
    "--search-lr",
    "searched",
    type=click.Choice(ROWS),
    is_flag=False,
    flag_value=SEARCHED,
    help=f"First find the encoder's rate among 1e-4, 1e-5 and 1e-6 with short runs of this row ({SEARCHED} if none is "
    "named); rows that begin after it take the best.",
)
@click.option("--cross-validate", "validated", type=click.Choice(ROWS), help="Also train this row on every fold.")
@click.option("--folds", type=click.IntRange(min=2), help="Of --cross-validate.  [default: 5]")
@click.option(
    "--short-epochs",
    type=click.IntRange(min=2),
    default=SHORT_EPOCHS,
    show_default=True,
    help="Of each run of --search-lr and --cross-validate, in all.",
)
@click.option(
    "--encoder-weights",
    envvar="ISICRT_ENCODER_WEIGHTS",
    default="imagenet",
    show_default="torchvision's ImageNet weights, downloaded",
    help="File of MobileNetV2's weights, or `none`. Environment: ISICRT_ENCODER_WEIGHTS.",
)
@click.option(
    "--score/--no-score",
    default=False,
    show_default=True,
    help="At the end, score the finished rows on the test split by both protocols. A model that the table has "
    "scores of is not scored again.",
)
@click.option("--label", help="What the test split is, for the table.  [default: its folder and number of images]")
@click.option(
    "--figures",
    type=NamedPath(file_okay=False, path_type=Path),
    metavar="DIR",
    help="With --score: draw cases of each row that is scored now, frozen beside tuned, as PNG.",
)
@click.option(
    "--table",
    "table_file",
    type=_FILE,
    help=f"JSON of the table; rows that are in it stay, so all are of one copy of the data.  [default: OUT/{TABLE}]",
)
@click.option(
    "--markdown",
    "page",
    type=_FILE,
    help=f"Page that has the table between its markers; it is made where there is none.  [default: OUT/{PAGE}]",
)
@click.pass_context
def command(
    ctx: click.Context,
    data: Path,
    rows: tuple[str, ...],
    epochs: int | None,
    layout: str,
    out: Path,
    device: str,
    threads: int | None,
    seed: int | None,
    searched: str | None,
    validated: str | None,
    folds: int | None,
    short_epochs: int,
    encoder_weights: str,
    score: bool,
    label: str | None,
    figures: Path | None,
    table_file: Path | None,
    page: Path | None,
) -> None:
    """Reproduce the report's table: U-Net, SegNet with attention, with atrous convolutions, and on augmented data.

    Each row is one run with two stages, encoder frozen and then tuned, and gives both columns of the table. Runs that
    were stopped go on with the same command; runs that are finished are left alone. Only --score reads the test split.
    Runs, table and page are in OUT; nothing else is written unless it is named.

    isicrt reproduce --data data/isic2016 --search-lr --cross-validate unet

    isicrt reproduce --data data/isic2016 --score
    """
    if folds is not None and validated is None:
        raise SettingsError("--folds needs --cross-validate ROW")
    if not score and (figures is not None or label is not None):
        raise SettingsError("--figures and --label belong to --score")
    try:
        import torch

        from isicrt.trainer import report_runs
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "train", str(error)) from error

    gpu = torch.cuda.is_available()
    if device == "cuda" and not gpu:
        raise SettingsError("--device cuda: torch finds no GPU here. Use --device cpu, or see docs/training.md.")
    trains = layout == "light" or gpu or device == "cpu"
    if threads is not None:
        torch.set_num_threads(threads)
    pretrained = None if encoder_weights == "none" else encoder_weights
    from isicrt.benchmarks.report_markdown import render_page
    from isicrt.benchmarks.report_table import merge, read_table
    from isicrt.cli.reproduce_checks import check_places, check_training, find_test_split
    from isicrt.cli.run_queue import RunQueue
    from isicrt.trainer.dataset import find_folders

    training = RunQueue(data, "cuda" if gpu and device != "cpu" else "cpu", pretrained)
    named = [(name, path) for name, path in (("--table", table_file), ("--markdown", page)) if path is not None]
    table_file, page = table_file or out / TABLE, page or out / PAGE
    check_places(table_file, page, figures, make=False)
    table = read_table(table_file)
    test = find_test_split(data, label, table) if score else None
    if test is not None and figures is not None:
        check_figures(figures, (*find_folders(data, "train"), *find_folders(data, "test")))

    def plan() -> tuple[list[Run], list[Run]]:
        """The rows and the folds, with the rates that are found by now."""
        rates = {row: report_runs.found_rate(out, row, layout) for row in ROWS}
        planned = [report_runs.plan_row(out, r, layout, epochs=epochs, seed=seed, encoder_lr=rates[r]) for r in rows]
        if validated is None or not trains:
            return planned, []
        return planned, report_runs.plan_folds(
            out, validated, layout, epochs=short_epochs, folds=folds, seed=seed, encoder_lr=rates[validated]
        )

    search: list[Run] = []
    if searched is not None and trains:
        search = report_runs.plan_search(out, searched, layout, epochs=short_epochs, seed=seed)
    planned, fold_runs = plan()
    if trains:
        done, folders = _collect(out, {}, gpu=gpu)
        hashes = {folders[row.name, row.layout]: row.data_sha256 for row in done.rows}
        check_training(data, [*search, *planned, *fold_runs], table, table_file, hashes, pretrained)
    check_places(table_file, page, figures)
    if search:
        training.run(f"Search of the encoder's rate, layout {layout}", search)
        planned, fold_runs = plan()
    if trains:
        training.run(f"Rows, layout {layout}", planned)
    training.run(f"Cross-validation, layout {layout}", fold_runs)

    found, folders = _collect(out, training.failures, gpu=gpu)
    found = replace(
        found,
        search=_trials(search, lambda run: run.recipe.stages[-1].encoder_lr),
        cross_validation=_trials(fold_runs, lambda run: run.fold),
        command=command_line(ctx),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    # Read again: another process may have scored while this one trained.
    table = merge(read_table(table_file), found)
    problems = 0
    if test is not None:
        table, problems = _score(table, folders, test, threads=threads, figures=figures, file=table_file)
    write_result(table_file, table.to_json())
    write_result(page, render_page(page, table))
    _draw_runs(out, [*folders.values()], fold_runs)
    _say_next(table, folders, data, out, named)
    if training.failures or problems:
        ctx.exit(1)


def _collect(out: Path, failures: Mapping[Path, str], *, gpu: bool) -> tuple[ReportTable, dict[tuple[str, str], Path]]:
    """The rows that are finished, why the others are not, and the folders of the first."""
    from isicrt.benchmarks.report_table import LAYOUTS, NotRun, ReportTable, read_row
    from isicrt.trainer.report_runs import count_parameters, plan_row

    rows, missing, folders = [], [], {}
    for layout in LAYOUTS:
        for name in ROWS:
            run = plan_row(out, name, layout)
            if run.finished and run.folder not in failures:
                rows.append(read_row(run.folder, name))
                folders[name, layout] = run.folder
                continue
            reason = "not trained yet"
            if run.epochs_done:
                reason = f"stopped after epoch {run.epochs_done} of {run.recipe.epochs}"
            elif layout == "report" and not gpu:
                reason = "no GPU on this machine; `isicrt reproduce --layout report` trains it on one that has"
            reason = failures.get(run.folder, reason)
            missing.append(NotRun(name, layout, count_parameters(run.recipe), reason))
    return ReportTable(rows=tuple(rows), not_run=tuple(missing)), folders


def _trials(runs: Sequence[Run], setting: Callable[[Run], float]) -> Trials | None:
    from isicrt.benchmarks.report_table import read_trials

    if not runs or not all(run.finished for run in runs):
        return None
    return read_trials([(setting(run), run.folder) for run in runs], runs[0].row)


def _score(
    table: ReportTable,
    folders: Mapping[tuple[str, str], Path],
    test: tuple[TestSet, Sequence[Case]],
    *,
    threads: int | None,
    figures: Path | None,
    file: Path,
) -> tuple[ReportTable, int]:
    """Score what has no scores, and write the table after each row: no model meets the test images twice.

    Returns:
        The table, and how many images could not be scored.
    """
    from isicrt.benchmarks.evaluation import score_model
    from isicrt.benchmarks.figures import draw_panels
    from isicrt.benchmarks.report_protocol import ReportProtocol
    from isicrt.benchmarks.report_table import with_scores
    from isicrt.benchmarks.scoring_protocol import OfficialProtocol

    test_set, cases = test
    problems = 0
    for row in table.rows:
        folder = folders.get((row.name, row.layout))
        if row.scored or folder is None:
            click.echo(f"{row.name}, {row.layout}: {'scored before' if row.scored else 'its run is not here'}")
            continue
        click.echo(f"{row.name}, {row.layout}: scoring {len(cases)} images of {test_set.label}")
        with ExitStack() as stack:
            candidates = open_candidates([str(folder / f"{cell.stage}.pt") for cell in row.cells], stack, threads)
            scores: dict[str, dict[str, Any]] = {candidate.sha256: {} for candidate in candidates}
            for protocol in (OfficialProtocol(), ReportProtocol()):
                scored = [score_model(candidate, cases, protocol, threads=threads) for candidate in candidates]
                for one in scored:
                    problems += len(one.problems)
                    scores[one.sha256][protocol.name] = one.summary | {
                        "threshold": one.threshold,
                        "clean_up": list(one.clean_up),
                        "unscored": len(one.problems),
                        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                    }
                if figures is not None and protocol.name == "official":
                    panels = figures / f"{row.name}-{row.layout}"
                    panels.mkdir(parents=True, exist_ok=True)
                    for path in draw_panels(candidates[::-1], scored[::-1], protocol, panels):
                        click.echo(f"Wrote {path}")
        table = with_scores(table, test_set, scores)
        write_result(file, table.to_json(), quiet=True)
    return table, problems


def _draw_runs(out: Path, rows: Sequence[Path], folds: Sequence[Run]) -> None:
    """Loss curves of the rows in one figure, and of the folds in another."""
    from isicrt.benchmarks.curves import draw_runs

    for folders, path in ((rows, out / "rows.png"), ([run.folder for run in folds if run.finished], None)):
        if folders:
            path = path or folders[0].parent / "folds.png"
            draw_runs(folders, path)
            click.echo(f"Wrote {path}")


def _say_next(
    table: ReportTable,
    folders: Mapping[tuple[str, str], Path],
    data: Path,
    out: Path,
    named: Sequence[tuple[str, Path]],
) -> None:
    unscored = [row.name for row in table.rows if not row.scored and (row.name, row.layout) in folders]
    for missing in table.not_run:
        click.echo(f"Not run: {missing.name}, {missing.layout}: {missing.reason}")
    if unscored:
        places = "".join(f" {option} {shell_word(path)}" for option, path in (("--out", out), *named))
        offered = f"isicrt reproduce --data {shell_word(data)}{places} --rows none --score"
        click.echo(f"Next: {offered}  (scores {', '.join(unscored)})")
