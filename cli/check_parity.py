"""`isicrt check-parity`: two models on the same images; do they give the same masks?"""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isicrt._command import NamedPath, Number
from isicrt.cli.plain_text import printable
from isicrt.cli.plan_notice import say_plan_is_code
from isicrt.cli.recording import RecordingCommand, command_line
from isicrt.cli.result_files import check_results, write_result
from isicrt.engine.errors import DataError, ModelError
from isicrt.engine.last_names import last_names

if TYPE_CHECKING:
    from isicrt.benchmarks.agreement import Agreement, Limits
    from isicrt.engine.outcome import DecodeCounts
    from isicrt.engine.runtime import Runtime


@click.command("check-parity", cls=RecordingCommand)
@click.argument("reference")
@click.argument("candidate")
@click.option(
    "--images",
    required=True,
    type=NamedPath(path_type=Path),
    help="A folder (searched recursively), a quoted glob pattern, or a .txt file with a path in each line.",
)
@click.option(
    "--masks",
    type=NamedPath(path_type=Path, exists=True, file_okay=False),
    help="Their ground truth: the change of the score counts then too.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Compare on at most this many images, spread evenly.")
@click.option(
    "--min-jaccard",
    type=Number(0, 1),
    default=0.995,
    show_default=True,
    help="Smallest mean Jaccard index of the two masks that passes.",
)
@click.option(
    "--max-change",
    type=Number(0, 1, min_open=True),
    default=0.001,
    show_default=True,
    help="The mean score must change by less.",
)
@click.option(
    "--decode",
    type=click.Choice(["cpu", "gpu"]),
    default="cpu",
    show_default=True,
    help="Where CANDIDATE, a .plan then, gets its pixels from and restores its masks. REFERENCE stays on the CPU.",
)
@click.option("--worst", type=click.IntRange(min=0), default=5, show_default=True, help="Show the worst images.")
@click.option(
    "--json",
    "report_path",
    type=NamedPath(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write every image's figures as JSON.",
)
@click.pass_context
def command(
    ctx: click.Context,
    reference: str,
    candidate: str,
    images: Path,
    masks: Path | None,
    limit: int | None,
    min_jaccard: float,
    max_change: float,
    decode: str,
    worst: int,
    report_path: Path | None,
) -> None:
    """Compare the masks of two models, image by image: REFERENCE and CANDIDATE.

    Each is an .onnx or a .plan file or the name of a shipped model, and is used as `isicrt segment` uses it: with its
    own input size, threshold and clean-up. Before a plan goes into use, compare it with the ONNX file behind it:

        isicrt check-parity model.onnx model.plan --images DIR --masks DIR

    A plan gets full batches, where there are images enough, and its CUDA graphs are recorded before the first.

    The exit code is 1 if the two do not agree. Images that cannot be read are left out and named. With --decode gpu it
    is also 1 if the GPU decoded none of the images: nothing of its way was compared then.
    """
    from isicrt.benchmarks.agreement import Limits, cpu_masker, measure_agreement
    from isicrt.benchmarks.workload import open_workload
    from isicrt.engine import shipped
    from isicrt.engine.gpu_stages import check_decode, open_chain
    from isicrt.engine.model_identity import loaded_sha256
    from isicrt.engine.runtime import open_runtime

    check_results({"--json": report_path})
    paths = [shipped.resolve(model) for model in (reference, candidate)]
    check_decode(decode, paths[1])
    for path in paths:
        say_plan_is_code(path)
    with tempfile.TemporaryDirectory() as folder:
        workload = open_workload(images, masks, Path(folder))
    picks = _spread(len(workload.files), limit)
    with ExitStack() as stack:
        first, second = (stack.enter_context(open_runtime(path)) for path in paths)
        looks = [(r.card.second_look, r.card.second_look_zoom) for r in (first, second)]
        if looks[0] != looks[1]:
            click.echo(
                "Note: one of the two looks again where it is in doubt and the other not, or not so, and their masks "
                "differ for that too",
                err=True,
            )
        candidate_masker = cpu_masker(second)
        if (chain := open_chain(second, decode)) is not None:
            candidate_masker = stack.enter_context(chain).masks_of
        _settle(first, len(picks), network_alone=False)
        _settle(second, len(picks), network_alone=chain is not None)
        with _Bar() as bar:
            agreement = measure_agreement(
                cpu_masker(first),
                candidate_masker,
                [workload.files[n] for n in picks],
                [workload.names[n] for n in picks],
                dict(workload.truths),
                chunk=max(first.max_batch or 0, second.max_batch or 0) or 8,
                on_progress=bar.show,
            )
        if masks is not None and agreement.scores is None:
            raise DataError(f"{masks}: has no ground truth that fits the images compared. {_first(agreement.left_out)}")
        limits = Limits(min_jaccard, max_change)
        problems = agreement.problems(limits)
        models: list[dict[str, Any]] = [
            {"model": name, "file": path.name, "runtime": runtime.name, "precision": runtime.card.precision}
            for name, path, runtime in zip((reference, candidate), paths, (first, second), strict=True)
        ]
        for model, runtime in zip(models, (first, second), strict=True):
            model |= _graphs(runtime)
        models[1]["decode"] = decode
        files = [
            {"name": path.name, "sha256": loaded_sha256(runtime, path)}
            for path, runtime in zip(paths, (first, second), strict=True)
        ]
        if chain is not None:
            models[1]["decoded"] = _checked(chain.decoded)
    if report_path is not None:
        _write(report_path, command_line(ctx), files, models, images, limits, problems, agreement)
    _print(agreement, models, worst, problems)
    if problems:
        ctx.exit(1)


def _settle(runtime: Runtime, images: int, *, network_alone: bool) -> None:
    """What answers a full batch from here on is what answers it in a run: the CUDA graph that was recorded of it."""
    if runtime.max_batch is None:
        return
    if images < runtime.max_batch:
        click.echo(
            f"Note: {images} images are less than a batch of {runtime.max_batch}, so that {runtime.name} is compared "
            "on partial batches alone",
            err=True,
        )
        return
    for slot in getattr(runtime, "slots", ()):
        slot.settle(network_alone=network_alone)


def _graphs(runtime: Runtime) -> dict[str, Any]:
    """CUDA graphs of a plan as a report has them; nothing where isicrt records none. One that was refused is said."""
    from isicrt.engine.tensorrt_slot import GraphCounts

    counts = [slot.graphs for slot in getattr(runtime, "slots", ()) if slot.graphs is not None]
    if not counts:
        return {}
    graphs = sum(counts, GraphCounts())
    if graphs.refused:
        click.echo(
            f"Note: {runtime.name}: {graphs.refused} CUDA graphs could not be recorded ({graphs.problem}): "
            "batches are queued call by call, which costs speed",
            err=True,
        )
    return {"cuda_graphs": {"recorded": graphs.recorded, "refused": graphs.refused}}


def _checked(decoded: DecodeCounts) -> dict[str, int]:
    """Where the images were decoded, as a report has it. What the GPU was asked for, and the CPU did, is said.

    Raises:
        ModelError: the GPU decoded none.
    """
    given = decoded.gpu + decoded.refused
    advice = "isicrt doctor says what nvImageCodec lacks" if given else "its decoder takes ordinary JPEG only"
    if not decoded.gpu:
        raise ModelError(
            f"--decode gpu: the GPU decoded none of the images, so nothing of its way was compared: it refused "
            f"{decoded.refused} JPEGs, and the CPU decoded {decoded.cpu} images; {advice}"
        )
    if decoded.refused:
        click.echo(f"Note: the GPU's decoder refused {decoded.refused} of {given} JPEGs; {advice}", err=True)
    return {"gpu": decoded.gpu, "cpu": decoded.cpu, "refused_by_gpu": decoded.refused}


def _first(problems: tuple[str, ...]) -> str:
    return f"The first problem: {printable(problems[0])}" if problems else "Try a larger --limit."


def _spread(count: int, limit: int | None) -> list[int]:
    if limit is None or limit >= count:
        return list(range(count))
    return sorted({round(n * (count - 1) / max(1, limit - 1)) for n in range(limit)})


def _print(agreement: Agreement, models: list[dict[str, Any]], worst: int, problems: list[str]) -> None:
    for text in agreement.left_out:
        click.echo(f"Left out: {printable(text)}", err=True)
    first, second = (f"{model['model']} ({model['runtime']})" for model in models)
    where = ""
    if (decoded := models[1].get("decoded")) is not None:
        where = f"; {decoded['gpu']} decoded on the GPU, {decoded['cpu']} on the CPU"
    if (graphs := models[1].get("cuda_graphs")) is not None:
        where += f"; {graphs['recorded']} CUDA graphs"
    click.echo(f"{first} against {second}, {len(agreement.images)} images{where}")
    click.echo(
        f"  masks: Jaccard index {agreement.jaccard_mean:.5f} in the mean, {agreement.jaccard_min:.5f} at worst; "
        f"{agreement.differing_share:.4%} of the pixels differ; {agreement.identical} images are the same"
    )
    if agreement.scores is not None:
        before, after = agreement.scores
        click.echo(
            f"  score with the ground truth: {before:.5f} -> {after:.5f} ({after - before:+.5f}; "
            f"{agreement.scored} images)"
        )
    for image in agreement.worst(worst):
        click.echo(f"  {image.jaccard:.5f}  {image.pixels_differing} of {image.pixels} pixels  {printable(image.name)}")
    if problems:
        click.echo(f"They do NOT agree: {'; '.join(problems)}.", err=True)
    else:
        click.echo("They agree.")


def _write(
    path: Path,
    command_line: str,
    files: list[dict[str, str]],
    models: list[dict[str, Any]],
    images: Path,
    limits: Limits,
    problems: list[str],
    agreement: Agreement,
) -> None:
    from dataclasses import asdict

    from isicrt.benchmarks.environment import provenance, read_environment

    report: dict[str, Any] = {
        "schema": "isicrt-check-parity/1",
        "format": 1,
        "command": command_line,
        **provenance(),
        "files": files,
        "reference": models[0],
        "candidate": models[1],
        "source": last_names(images),
        "limits": asdict(limits),
        "problems": problems,
        "environment": read_environment().to_dict(),
        "agreement": agreement.to_dict(),
    }
    write_result(path, json.dumps(report, indent=1) + "\n", quiet=True)


class _Bar:
    """A progress bar on stderr, where that is a terminal."""

    def __enter__(self) -> _Bar:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._progress = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("Comparing", total=1.0)
        self._progress.start()
        return self

    def show(self, fraction: float) -> None:
        self._progress.update(self._task, completed=fraction)

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
