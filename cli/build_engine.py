"""`isicrt build-engine`: parse, call `isicrt.export.build.build`, print what was proven and written."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isicrt._command import NamedPath
from isicrt.cli.plain_text import shell_word
from isicrt.cli.stopping import sigterm_as_ctrl_c
from isicrt.engine.errors import DataError, MissingDependencyError
from isicrt.engine.last_names import last_names

if TYPE_CHECKING:
    from isicrt.export.build import Built, Destination, Source
    from isicrt.export.parity import Parity, Sample

Pair = tuple[Path, Path | None]
"""An image and its ground truth."""
TARGETS = ("auto", "tensorrt", "tensorrt-rtx", "onnx")
COMPATIBILITIES = ("none", "ampere-plus", "same-compute-capability")
RENDERED_SIZE = (384, 512)


def parse_batch_sizes(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, int, int]:
    """``N`` as 1,N,N; ``MIN,OPT,MAX`` as it is."""
    try:
        numbers = tuple(int(part) for part in value.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) == 1:
        numbers = (1, *numbers, *numbers)
    if len(numbers) != 3 or not 1 <= numbers[0] <= numbers[1] <= numbers[2] <= 4096:
        raise click.BadParameter(f"{value!r}: expected N, or MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX <= 4096")
    return numbers


def parse_compute_capabilities(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    """``8.0,8.9`` or ``current``; which of them TensorRT knows, it says itself."""
    parts = tuple(part.strip() for part in value.split(",")) if value else ()
    if any(not re.fullmatch(r"\d+\.\d|current", part) for part in parts) or len(set(parts)) < len(parts):
        raise click.BadParameter(f"{value!r}: expected compute capabilities such as 8.0,8.9, or `current`")
    return parts


@click.command()
@click.argument("checkpoint", required=False)
@click.option("--fp16/--fp32", help="Precision of the network; put into the ONNX graph.  [default: fp32]")
@click.option(
    "--batch-size",
    metavar="N|MIN,OPT,MAX",
    callback=parse_batch_sizes,
    default="32",
    show_default=True,
    help="Batches that the plan takes; N: 1,N,N.",
)
@click.option(
    "--target",
    type=click.Choice(TARGETS),
    default="auto",
    show_default=True,
    help="`auto`: TensorRT if it and a GPU are there, else TensorRT for RTX, else ONNX only.",
)
@click.option(
    "--hardware-compatibility",
    type=click.Choice(COMPATIBILITIES),
    default="none",
    show_default=True,
    help="TensorRT: other GPUs that the plan has to run on. It gets slower.",
)
@click.option(
    "--compute-capability",
    metavar="X.Y[,X.Y...]|current",
    callback=parse_compute_capabilities,
    default="",
    help="TensorRT for RTX: GPUs to prepare the plan for.  [default: all that it knows from 8.0]",
)
@click.option(
    "--opt-level",
    type=click.IntRange(0, 5),
    help="How long to look for faster kernels.  [default: TensorRT's, 3]",
)
@click.option(
    "--workspace",
    metavar="MIB",
    type=click.IntRange(1, 1 << 20),
    help="Device memory that one layer may use.  [default: all there is]",
)
@click.option(
    "--images",
    type=NamedPath(path_type=Path),
    help="Images of the parity gate.  [default: those of $ISICRT_DATA, else rendered ones]",
)
@click.option(
    "--masks",
    type=NamedPath(path_type=Path, exists=True, file_okay=False),
    help="Their ground truth: the gate then also compares Jaccard indices.",
)
@click.option(
    "--parity-images",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Compare on at most this many, spread evenly; on those with ground truth first.",
)
@click.option(
    "--out", type=NamedPath(path_type=Path, file_okay=False), default=Path(), help="Folder.  [default: this one]"
)
def command(
    checkpoint: str | None,
    fp16: bool,
    batch_size: tuple[int, int, int],
    target: str,
    hardware_compatibility: str,
    compute_capability: tuple[str, ...],
    opt_level: int | None,
    workspace: int | None,
    images: Path | None,
    masks: Path | None,
    parity_images: int,
    out: Path,
) -> None:
    """Compile a trained model to ONNX and to a TensorRT plan, and prove that they agree with it.

    CHECKPOINT is a best.pt of `isicrt train`, an .onnx with a model card, or the name of a shipped model. Default: the
    run under ./runs with the best validation Jaccard index, else `unet-light`.

    Writes model.onnx and model.plan. Nothing is written if the masks of what was built differ from the model's: in more
    than 0.5 % of the pixels, or by more than 0.005 of the Jaccard index.
    """
    if masks is not None and images is None:
        raise click.UsageError("--masks needs --images: the images that the masks belong to.")
    from isicrt.export.build import build, check_tuning, choose_target, open_source
    from isicrt.export.model_folder import ONNX_NAME
    from isicrt.export.output_file import check_not_shipped
    from isicrt.export.tensorrt_build import Profile, Tuning

    check_not_shipped(out / ONNX_NAME)
    destination = choose_target(target)
    tuning = Tuning(hardware_compatibility, compute_capability, opt_level, workspace)
    check_tuning(destination, tuning)
    with sigterm_as_ctrl_c():
        source = open_source(*_find(checkpoint))
        precision = "fp16" if fp16 else "fp32"
        h, w = source.card.input_size
        click.echo(
            f"Model: {source.name} ({source.card.architecture}, {h} x {w} px) -> {precision} {_describe(destination)}"
        )
        samples, origin = _samples(images, masks, parity_images, source)
        with _Bar() as bar:
            built = build(
                source,
                samples,
                precision=precision,
                profile=Profile(*batch_size),
                tuning=tuning,
                destination=destination,
                out=out,
                images=origin,
                report=bar.show,
            )
    _print(built, destination, batch_size)


def _find(checkpoint: str | None) -> tuple[Path, str]:
    """The file to compile, and its name for people."""
    from isicrt.engine.shipped import FLOAT, resolve

    if checkpoint is not None:
        return resolve(checkpoint), checkpoint
    if any(Path("runs").glob("*/best.pt")):
        try:
            from isicrt.trainer.checkpoint import best_run, load
        except ImportError as error:
            raise MissingDependencyError("PyTorch", "train", str(error)) from error
        if best := best_run():
            validated = load(best)[0].scores.get("validation", {})
            score = f"{validated['jaccard']:.3f} on {validated['images']} of them" if validated else "unknown"
            click.echo(
                f"{best}: the run with the highest Jaccard index on its validation images ({score}); runs with other "
                "validation images do not compare",
                err=True,
            )
            return best, str(best)
    return resolve(FLOAT), FLOAT


def _describe(destination: Destination) -> str:
    target = f"ONNX and {destination.flavour} plan" if destination.flavour else "ONNX"
    return target + (f" ({destination.reason})" if destination.reason else "")


def _samples(images: Path | None, masks: Path | None, count: int, source: Source) -> tuple[list[Sample], str]:
    """Images for the gate, and what they are."""
    import os
    import tempfile

    from isicrt.engine.geometry import resize_image
    from isicrt.export.parity import Sample

    size = source.card.input_size
    data = os.environ.get("ISICRT_DATA")
    if images is not None:
        from isicrt.benchmarks.workload import open_workload

        with tempfile.TemporaryDirectory() as folder:
            workload = open_workload(images, masks, Path(folder))
        pairs = [(f, workload.truths.get(n)) for n, f in zip(workload.names, workload.files, strict=True)]
        origin = last_names(images)
    elif data:
        from isicrt.trainer.dataset import find_pairs

        # As `isicrt train` reads it: it may name several.
        roots = data.split(os.pathsep)
        if "" in roots:
            raise click.BadParameter("it is empty; the current folder is .", param_hint="'$ISICRT_DATA'")
        try:
            pairs = [(pair.image, pair.mask) for root in roots for pair in find_pairs(root)]
        except DataError as error:
            raise DataError(
                f"$ISICRT_DATA cannot be compared on. Name images with --images, or mend it: {error}"
            ) from error
        origin = f"{', '.join(last_names(Path(root)) for root in roots)} ($ISICRT_DATA)"
        if not pairs:
            raise DataError(
                f"{origin}: no pair to compare on. All are left out: they are test images of ISIC 2016, or show a "
                "lesion of one (docs/data.md). Name others with --images"
            )
    else:
        from isicrt.benchmarks.rendered import render

        click.echo(
            f"No --images and no $ISICRT_DATA: comparing on {count} rendered images, which say less than real ones."
        )
        drawn = [render(n, RENDERED_SIZE) for n in range(count)]
        return [
            Sample(f"rendered {n}", resize_image(i, size), m > 0) for n, (i, m) in enumerate(drawn)
        ], f"{count} rendered images"
    picks = _spread([pair for pair in pairs if pair[1] is not None], count)
    picks += _spread([pair for pair in pairs if pair[1] is None], count - len(picks))
    samples = _decode(picks, size)
    if masks is not None and all(sample.truth is None for sample in samples):
        raise DataError(f"{masks}: no ground truth that can be read and fits its image belongs to one that can be read")
    return samples, f"{len(samples)} of {len(pairs)} images of {origin}"


def _spread(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """At most `count` of them, spread evenly."""
    import numpy as np

    return [pairs[n] for n in np.unique(np.linspace(0, len(pairs) - 1, count).astype(int))] if pairs else []


def _decode(pairs: Sequence[Pair], size: tuple[int, int]) -> list[Sample]:
    from isicrt.export.parity import read_sample

    samples, problems = [], []
    for image, mask in pairs:
        try:
            samples.append(read_sample(image, mask, size))
        except DataError as error:
            problems.append(str(error))
    if not samples:
        raise DataError(f"not one of {len(pairs)} images is fit for the parity gate. The first: {problems[0]}")
    for problem in problems:
        click.echo(f"Left out of the comparison: {problem}", err=True)
    return samples


class _Bar:
    """A rich progress bar on stderr, one task a stage."""

    def __enter__(self) -> _Bar:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        # Named, not looked up at each line: torch's exporter is silenced by swapping sys.stderr.
        console = Console(file=sys.stderr)
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._tasks: dict[str, Any] = {}
        self._progress.start()
        return self

    def show(self, stage: str, fraction: float | None) -> None:
        if stage not in self._tasks:
            for task in self._tasks.values():
                self._progress.update(task, total=1, completed=1)
            self._tasks[stage] = self._progress.add_task(stage, total=None if fraction is None else 1.0)
        if fraction is not None:
            self._progress.update(self._tasks[stage], completed=fraction)

    def __exit__(self, *error: object) -> None:
        self._progress.stop()


def _print(built: Built, destination: Destination, batch_size: tuple[int, int, int]) -> None:
    for parity in (built.parity, built.plan_parity):
        if parity is not None:
            _print_parity(parity)
    if built.parity is None:
        click.echo("Parity: the ONNX file is the source as it came, nothing was converted.")
    if built.share:
        click.echo(f"FP16 share: {built.share}")
    click.echo(f"Wrote {built.onnx}  {_megabytes(built.onnx)}")
    if built.plan is not None:
        builder = built.card.builder
        sizes = ",".join(map(str, batch_size))
        made = f"{destination.flavour} {builder['version']}, batch {sizes}"
        made += f", {' '.join(builder['options'])}" if builder["options"] else ""
        click.echo(f"Wrote {built.plan}  {_megabytes(built.plan)}  ({made})")
        click.echo("A plan is code that runs on the GPU: load only plans that you trust, and send the ONNX file.")
    for note in built.notes:
        click.echo(note)
    if built.card.precision == "fp16" and built.plan_parity is None:
        click.echo(f"{built.onnx.name} is FP16 too: it runs on a CPU, where one built with --fp32 is faster.")
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in built.seconds.items())
    click.echo(f"{sum(built.seconds.values()):.1f} s ({stages})")
    best = built.plan if built.plan is not None and built.plan_parity is not None else built.onnx
    click.echo(f"Next: isicrt segment ./images --out ./masks --model {shell_word(best)}")


def _print_parity(parity: Parity) -> None:
    click.echo(
        f"Parity on {parity.source}: {parity.reference} against {parity.candidate}\n"
        f"  masks differ in {parity.disagreement_mean:.3%} of the pixels (worst image {parity.disagreement_max:.3%})"
    )
    if parity.jaccard_change is not None:
        click.echo(
            f"  Jaccard index {parity.jaccard_reference:.4f} -> {parity.jaccard_candidate:.4f} "
            f"({parity.jaccard_change:+.4f}; {parity.images_with_truth} images with ground truth)"
        )
    largest = parity.largest_activation
    click.echo(
        f"  probability: median difference {parity.difference_median:.5f}, p99 {parity.difference_p99:.5f}, "
        f"max {parity.difference_max:.5f}; {parity.non_finite} not finite"
        + (f"; largest activation {largest:.4g} of 65504" if largest is not None else "")
    )


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.2f} MB"
