"""`isicrt evaluate`: parse, score each model on a data set, print and write what came out."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

from isicrt._command import NamedPath, Number
from isicrt.cli.candidates import open_candidates
from isicrt.cli.learned_from import say_learned_from
from isicrt.cli.plain_text import printable
from isicrt.cli.progress import Progress
from isicrt.cli.recording import RecordingCommand, command_line
from isicrt.cli.result_files import check_figures, check_results, say_written, write_result
from isicrt.cli.tables import open_console, print_table
from isicrt.engine.errors import DataError, MissingDependencyError, SettingsError
from isicrt.engine.last_names import last_names

if TYPE_CHECKING:
    from isicrt.benchmarks.evaluation import Candidate, Case, Scored
    from isicrt.benchmarks.evaluation_result import Evaluation
    from isicrt.benchmarks.scoring_protocol import ScoringProtocol

_SHOWN = 20
_FILE_WIDTH = 120
"""Letters a line where the output goes to a file or a pipe, and from which on a table has all its columns."""
_FILE = NamedPath(dir_okay=False, path_type=Path)


@click.command("evaluate", cls=RecordingCommand)
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option(
    "--data",
    type=NamedPath(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="A data set: images/ and masks/, or train/ and test/ with those, or the official ISIC 2016 folders.",
)
@click.option(
    "--split",
    type=click.Choice(("test", "train")),
    default="test",
    show_default=True,
    help="Of a data set that has both.",
)
@click.option(
    "--ids",
    "ids_file",
    type=NamedPath(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Only the images that FILE names, one id or file a line, as validation.txt of a run does.",
)
@click.option(
    "--protocol",
    "protocol_name",
    type=click.Choice(("official", "report")),
    default="official",
    show_default=True,
    help="`official`: each image at its own size. `report`: as the report's code did it, at 64 x 64 px.",
)
@click.option("--csv", "csv_file", type=_FILE, help="Write one row for each model and image.")
@click.option("--json", "json_file", type=_FILE, help="Write everything, with model hashes and versions.")
@click.option(
    "--figures",
    type=NamedPath(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Draw the best, median and worst cases beside their truth, and the spread of the scores, as PNG.",
)
@click.option(
    "--cases", type=click.IntRange(1, 50), default=3, show_default=True, help="So many of each kind in a figure."
)
@click.option(
    "--runs",
    multiple=True,
    type=NamedPath(exists=True, file_okay=False, path_type=Path),
    metavar="RUN",
    help="Also draw the training curves of this run folder; several times for several runs in one figure.",
)
@click.option(
    "--threshold",
    type=Number(0, 1, min_open=True, max_open=True),
    help="A pixel whose probability is above it is lesion. [default: the model's]",
)
@click.option("--no-clean", is_flag=True, help="Keep every component and hole, whatever the model's card says.")
@click.option("--batch-size", type=click.IntRange(1, 4096), help="Images in one network call. [default: 8]")
@click.option("--threads", type=click.IntRange(1, 256), help="CPU threads to use. [default: all cores]")
@click.pass_context
def command(
    ctx: click.Context,
    models: tuple[str, ...],
    data: Path,
    split: str,
    ids_file: Path | None,
    protocol_name: str,
    csv_file: Path | None,
    json_file: Path | None,
    figures: Path | None,
    cases: int,
    runs: tuple[Path, ...],
    threshold: float | None,
    no_clean: bool,
    batch_size: int | None,
    threads: int | None,
) -> None:
    """Score one or several models against true masks.

    MODEL is a shipped model's name, an .onnx or .plan file, or a checkpoint of `isicrt train` (best.pt). Default:
    unet-light-int8. Of several, each is compared with the first by a paired bootstrap.

    An image that cannot be scored is listed, the others are scored, and the exit code is 1.

    isicrt evaluate frozen/best.pt tuned/best.pt --data data/isic2016 --figures figures
    """
    from isicrt.benchmarks.environment import read_environment
    from isicrt.benchmarks.evaluation import check_batch_size, compare, score_model
    from isicrt.benchmarks.evaluation_result import Evaluation
    from isicrt.trainer.dataset import NoSuchHalfError
    from isicrt.trainer.halves import notes_on_test

    if runs and figures is None:
        raise SettingsError("--runs needs --figures: the folder that their curves are drawn into")
    check_results({"--csv": csv_file, "--json": json_file}, (figures,), reads=(ids_file,), make=False)
    _check_runs(runs)
    protocol = _protocol(protocol_name, threshold, clean=not no_clean)
    try:
        every, label, left_out = _find(data, split)
    except NoSuchHalfError as error:
        raise DataError(f"{error}. Score the other with --split {'train' if split == 'test' else 'test'}") from None
    if figures is not None:
        check_figures(figures, (file.parent for case in every for file in (case.image, case.truth)))
        check_results({}, (figures,))
    pairs = every
    if ids_file is not None:
        left_out = 0
        pairs = _named(every, ids_file, data, split)
        label += f", {len(pairs)} of {len(every)} images ({ids_file.name})"
    elif split == "test":
        for note in notes_on_test([data]):
            click.echo(printable(note), err=True)
    environment = read_environment()
    with ExitStack() as stack:
        # Pillow warns of odd metadata; what matters here is whether the pixels can be read.
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module=r"PIL\.")
        candidates = open_candidates(models, stack, threads)
        for candidate in candidates:
            check_batch_size(batch_size, candidate.runtime)
        scored = []
        for candidate in candidates:
            with Progress(len(pairs), f"Scoring {candidate.label}", candidate.label) as progress:
                result = score_model(
                    candidate, pairs, protocol, batch_size=batch_size, threads=threads, on_image=progress.advance
                )
            inside = [
                dataclasses.replace(problem, reason=problem.reason.replace(f"{data}{os.sep}", ""))
                for problem in result.problems
            ]
            scored.append(dataclasses.replace(result, problems=tuple(inside)))
        evaluation = Evaluation(
            command=command_line(ctx),
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            environment=environment,
            protocol=protocol,
            data=label,
            split=split,
            left_out=left_out,
            models=tuple(scored),
            differences=tuple(compare(scored[0], scored[1:])),
        )
        written: list[Path] = []
        try:
            for path, text in ((csv_file, evaluation.to_csv), (json_file, evaluation.to_json)):
                if path is not None:
                    write_result(path, text(), quiet=True)
                    written.append(path)
            if figures is not None:
                written += _draw(candidates, scored, protocol, label, figures, cases, runs)
        finally:  # after the files, which are not to be lost where printing fails
            _print(evaluation, pairs, every)
        say_written(written)
    if evaluation.failed:
        ctx.exit(1)


def _check_runs(runs: Sequence[Path]) -> None:
    """Whatever would fail after minutes of scoring fails now."""
    if runs:
        from isicrt.benchmarks.curves import new_figure, read_run

        new_figure("")
        for run in runs:
            read_run(run)


def _protocol(name: str, threshold: float | None, *, clean: bool) -> ScoringProtocol:
    from isicrt.benchmarks.report_protocol import ReportProtocol
    from isicrt.benchmarks.scoring_protocol import OfficialProtocol

    if name == "official":
        return OfficialProtocol(threshold=threshold, clean=clean)
    if threshold is not None or not clean:
        raise SettingsError("--protocol report has its own threshold (0.5) and no clean-up: leave the options away")
    return ReportProtocol()


def _find(data: Path, split: str) -> tuple[list[Case], str, int]:
    """The pairs of a data set, its name without this machine's folders, and how many further pairs are left out."""
    from isicrt.benchmarks.evaluation import Case
    from isicrt.trainer.data_notes import say_left_out
    from isicrt.trainer.dataset import count_left_out, find_folders, find_pairs
    from isicrt.trainer.twins import TEST_TWINS

    # Whoever scores test images may well have them in a folder of training images.
    pairs, left_out = find_pairs(data, split, TEST_TWINS.keys()), count_left_out(data, split, TEST_TWINS.keys())
    if not pairs:
        reason = f". {say_left_out(left_out, 0)}" if left_out else ""
        raise DataError(f"{data}: no pair of image and mask to score{reason}")
    images, _ = find_folders(data, split)
    label = last_names(images.parent if images.name == "images" else images)
    return [Case(pair.id, pair.image, pair.mask, pair.group) for pair in pairs], label, left_out


def _named(cases: list[Case], ids_file: Path, data: Path, split: str) -> list[Case]:
    """Those that a file of ids names; a line on the standard error says which ids are not among them, and why."""
    from isicrt.benchmarks.tradeoff import read_ids
    from isicrt.trainer.dataset import find_pairs
    from isicrt.trainer.groups import id_of

    there = {case.id for case in cases}
    # An id that is there is taken as it is, but for spaces at its ends, which `read_ids` takes away: it may look like a
    # path.
    as_read = {id.strip(" \t\r"): id for id in there} | {id: id for id in there}
    ids = {as_read.get(line) or id_of(line, there) for line in read_ids(ids_file)}
    found = [case for case in cases if case.id in ids]
    missing = sorted(ids - {case.id for case in found})
    left_out = {pair.id for pair in find_pairs(data, split, frozenset())} - there if missing else set[str]()
    for some, why in (
        ([id for id in missing if id not in left_out], f"are not in {data}"),
        ([id for id in missing if id in left_out], "show lesions of test images and are left out"),
    ):
        if some:
            text = f"{ids_file}: {len(some)} of its {len(ids)} ids {why}, such as {some[0]}"
            click.echo(printable(text), err=True)
    if not found:
        raise DataError(f"{ids_file}: names no image of {data} to score. Is it another data set, or the other --split?")
    return found


def _print(evaluation: Evaluation, cases: Sequence[Case], data: Sequence[Case]) -> None:
    """The tables, and what is to be known of the `cases` that were scored, of all that the data set has."""
    from rich.text import Text

    from isicrt.benchmarks.evaluation_result import tables
    from isicrt.benchmarks.scoring_protocol import NEVER_COMPARE
    from isicrt.engine.mask_levels import say_inverted, say_without_lesion
    from isicrt.trainer.data_notes import say_left_out

    console = open_console(_FILE_WIDTH)
    for table in tables(evaluation, wide=console.width >= _FILE_WIDTH):
        print_table(console, table)
        console.print()
    console.print(Text(NEVER_COMPARE, style="yellow"))
    trainings = [(model.label, model.card.training) for model in evaluation.models]
    for line in say_learned_from(trainings, cases, data, of_training=evaluation.split == "train"):
        console.print(Text(line, style="yellow"))
    if evaluation.left_out:
        console.print(Text(f"{say_left_out(evaluation.left_out, len(cases))}.", style="yellow"))
    if empty := evaluation.models[0].without_lesion:
        found = printable(say_without_lesion(empty))
        console.print(Text(f"{found}. There an empty prediction scores 1, and any other 0.", style="yellow"))
    truths = evaluation.models[0].cases
    if inverted := say_inverted(sum(case.corners for case in truths), len(truths)):
        console.print(Text(f"{inverted}.", style="yellow"))
    elif whole := evaluation.models[0].nearly_whole:
        console.print(Text(printable(_say_nearly_whole(whole)), style="yellow"))
    for model in evaluation.models:
        if model.problems:
            click.echo(f"{model.label}: {len(model.problems)} of {model.images} images could not be scored:", err=True)
            for problem in model.problems[:_SHOWN]:
                click.echo(f"  {printable(problem.reason)}", err=True)
            if len(model.problems) > _SHOWN:
                click.echo(f"  ... and {len(model.problems) - _SHOWN} more (--csv FILE lists all)", err=True)


def _say_nearly_whole(ids: Sequence[str]) -> str:
    from isicrt.benchmarks.evaluation import NEARLY_WHOLE

    share = f"more than {100 * NEARLY_WHOLE:g} % of"
    if len(ids) == 1:
        return f"1 mask covers {share} its image: {ids[0]}. That may be a large lesion, or the mask is inverted."
    more = ", ..." if len(ids) > 3 else ""
    found = f"{len(ids)} masks cover {share} their images: {', '.join(ids[:3])}{more}"
    return f"{found}. Those may be large lesions, or masks that are inverted."


def _draw(
    candidates: Sequence[Candidate],
    scored: Sequence[Scored],
    protocol: ScoringProtocol,
    label: str,
    folder: Path,
    count: int,
    runs: Sequence[Path],
) -> list[Path]:
    """Draw the figures. Returns their files."""
    from isicrt.benchmarks.curves import draw_runs, draw_spread
    from isicrt.benchmarks.figures import draw_panels

    written = draw_panels(candidates, scored, protocol, folder, count=count)
    spread = folder / "spread.png"
    try:
        draw_spread(scored, spread, title=f"protocol {protocol.name}, {label}")
        written.append(spread)
    except MissingDependencyError as error:
        click.echo(f"{spread.name} is left out: {error}", err=True)
    if runs:
        draw_runs(runs, folder / "runs.png")
        written.append(folder / "runs.png")
    return written
