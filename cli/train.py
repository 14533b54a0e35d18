"""`isicrt train`: parse, call `isicrt.trainer.loop.train`, draw its progress."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isicrt._command import NamedPath
from isicrt.cli.learned_from import say_learned_from
from isicrt.cli.plain_text import printable, shell_word
from isicrt.engine import shipped
from isicrt.engine.cuda_driver import find_gpu
from isicrt.engine.errors import MissingDependencyError, ModelError, SettingsError

if TYPE_CHECKING:
    from isicrt.trainer.dataset import DatasetReport
    from isicrt.trainer.recipe import Recipe


class FoldType(click.ParamType):  # type: ignore[type-arg]
    """A fold's number, or ``none``."""

    name = "fold"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value == "none":
            return None
        if not str(value).isdecimal():
            self.fail(f"{value!r} is neither a number of a fold nor `none`", param, ctx)
        return int(value)


MODELS = ("unet", "segnet-attention", "segnet-attention-atrous")


@click.command()
@click.option(
    "--data",
    type=NamedPath(path_type=Path),
    envvar="ISICRT_DATA",
    required=True,
    multiple=True,
    help="A data set; give it again for more: images/ and masks/, or train/ and test/ with those, or the four official "
    "ISIC 2016 folders (see `isicrt data isic2016`). Default: $ISICRT_DATA.",
)
@click.option("--model", type=click.Choice(MODELS), help="Architecture.  [default: the recipe's; unet]")
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    help="A recipe that ships, or a YAML file.  [default: MODEL-light]",
)
@click.option("--epochs", type=click.IntRange(min=1), help="In all; shared out among the recipe's stages.")
@click.option("--device", type=click.Choice(("auto", "cpu", "cuda")), default="auto", show_default=True)
@click.option(
    "--out",
    type=NamedPath(path_type=Path, file_okay=False),
    help="Run folder, which the model is called after.  [default: runs/RECIPE-foldK, or the folder of --resume PATH]",
)
@click.option(
    "--resume",
    metavar="auto|PATH",
    help="Go on from a checkpoint, in its own folder. `auto`: from the run folder's last.pt if there is one, else from "
    "its teachers, else from the start.",
)
@click.option(
    "--start-from",
    metavar="NAME|FILE",
    help="A model whose weights the run begins with, in place of ImageNet's: one that ships, an .onnx file in float32 "
    "or float16, or a checkpoint. Recipe `fine-tune` takes any network. On the data that it learned from, with the "
    "fold that it held out, or --fold none.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--fold",
    type=FoldType(),
    default="0",
    show_default=True,
    help="The fold that validates; `none` learns from every pair and keeps the last epoch.",
)
@click.option(
    "--cache/--no-cache",
    default=True,
    show_default=True,
    help="Decode the data once and keep them resized, in $ISICRT_CACHE or the user's cache folder.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of torch and of DALI.  [default: all cores]")
@click.option(
    "--encoder-weights",
    envvar="ISICRT_ENCODER_WEIGHTS",
    default="imagenet",
    show_default="torchvision's ImageNet weights, downloaded",
    help="File of MobileNetV2's weights, or `none`. Environment: ISICRT_ENCODER_WEIGHTS.",
)
def command(
    data: tuple[Path, ...],
    model: str | None,
    recipe: str | None,
    epochs: int | None,
    device: str,
    out: Path | None,
    resume: str | None,
    start_from: str | None,
    seed: int,
    fold: int | None,
    cache: bool,
    threads: int | None,
    encoder_weights: str,
) -> None:
    """Train a lesion segmentation model on pairs of images and masks.

    Writes a run folder: config.yaml, metrics.csv, curves.png, samples.png, best.pt (highest validation Jaccard) and
    last.pt (to resume). A run that is stopped goes on with the same command and --resume auto. A recipe with soft
    labels trains its teachers first, in the folder teachers/.
    """
    try:
        import torch

        from isicrt.trainer.allocator import keep_freed_memory
        from isicrt.trainer.checkpoint import BEST, LAST, load
        from isicrt.trainer.loop import RunSettings, train
        from isicrt.trainer.run_folder import has_begun, run_name
        from isicrt.trainer.start import read_card, with_network
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "train", str(error)) from error

    chosen = _recipe(model, recipe, epochs)
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("--device cuda: torch finds no GPU here. Use --device cpu, or see docs/training.md.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if threads is not None:
        torch.set_num_threads(threads)
    checkpoint = None if resume in (None, "auto") else Path(str(resume))
    if out is None:
        out = Path("runs") / run_name(chosen, fold) if checkpoint is None else checkpoint.parent
    if resume == "auto" and has_begun(out):
        checkpoint = out / LAST
    settings = RunSettings(
        recipe=chosen,
        data=data,
        out=out,
        fold=fold,
        seed=seed,
        device=device,
        cache=cache,
        pretrained=None if encoder_weights == "none" else encoder_weights,
        resume=checkpoint,
        start_from=None if start_from is None else _start(start_from, begun=checkpoint is not None),
    )
    settings = with_network(settings)
    chosen = settings.recipe
    click.echo(
        f"{chosen.name}: {chosen.architecture}, {chosen.input_size} px, {chosen.epochs} epochs on {device} "
        f"-> {printable(out)}"
    )
    if settings.start_from is not None and fold is not None:
        # Data are known by the hash of all of them: of a part, only the user knows.
        for line in say_learned_from([(str(start_from), read_card(settings.start_from).training)], []):
            click.echo(line)
    if checkpoint is not None and checkpoint.is_file() and not (out / BEST).exists():
        click.echo(f"{printable(out / BEST)} is gone and cannot come back: the best epoch to come takes its place")
    if device == "cpu":
        keep_freed_memory()
    with _progress(data) as listener:
        try:
            best = train(settings, listener)
        except KeyboardInterrupt:
            if (out / LAST).is_file():
                epoch = len(load(out / LAST, mapped=True)[1].get("history", ()))
                click.echo(
                    f"\nStopped. {printable(out / LAST)} is of epoch {epoch}; --resume auto goes on after that.",
                    err=True,
                )
            elif has_begun(out):
                click.echo("\nStopped before the first epoch began; go on with --resume auto.", err=True)
            else:
                click.echo("\nStopped before the first epoch was finished: nothing to resume.", err=True)
            raise
    click.echo(f"{'Best model' if best.name == BEST else 'Last epoch'}: {printable(best)}")
    compiled_for = "--fp16" if find_gpu() is not None else "--target onnx --fp32"  # which is the faster one on a CPU
    click.echo(f"Next: isicrt build-engine {shell_word(best)} {compiled_for}")


def _start(name: str, *, begun: bool) -> Path:
    """The file that a run starts from."""
    try:
        return shipped.resolve(name)
    except ModelError as error:
        if begun:
            raise ModelError(f"{error}. A run goes on only with the model that it began with") from None
        raise


def _recipe(model: str | None, recipe: str | None, epochs: int | None) -> Recipe:
    import dataclasses

    from isicrt.trainer.recipe import FROM_START, load_recipe

    chosen = load_recipe(recipe or f"{model or MODELS[0]}-light")
    if model is not None and chosen.architecture == FROM_START:
        raise SettingsError(f"--model: recipe {chosen.name} has the network of --start-from. Leave --model away")
    if model is not None and model != chosen.architecture:
        # Widths belong to an architecture.
        chosen = dataclasses.replace(chosen, name=f"{chosen.name}-{model}", architecture=model, decoder_channels=None)
    return chosen if epochs is None else chosen.with_epochs(epochs)


def _progress(data: Sequence[Path]) -> Any:
    """A listener and context manager that draws a bar on a terminal and prints one line an epoch."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from isicrt.trainer.data_notes import notes_on
    from isicrt.trainer.halves import notes_on_test
    from isicrt.trainer.loop import Listener

    console = Console(highlight=False)

    class ProgressListener(Listener):
        def __init__(self) -> None:
            self.bar = Progress(
                TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]} images/s  loss {task.fields[loss]}"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
                disable=not console.is_terminal,
            )
            self.task = self.bar.add_task("", total=None, epoch=0, epochs=0, rate="-", loss="-")

        def __enter__(self) -> ProgressListener:
            self.bar.start()
            return self

        def __exit__(self, *_: object) -> None:
            self.bar.stop()

        def checked(self, report: DatasetReport) -> None:
            for note in (*notes_on(report), *notes_on_test(data, report.contents)):
                console.print(printable(note), soft_wrap=True, markup=False)

        def started(self, recipe: Recipe, training: int, validation: int, grey_masks: int, done: int) -> None:
            console.print(f"{training} training images, {validation} validation images")
            if grey_masks:
                console.print(f"{grey_masks} masks have grey pixels, which are lesion above 128 of 255")
            if done:
                console.print(f"resuming after epoch {done}")
            # The bar counts the images of all epochs, so its estimate is of the whole run, or of this teacher's.
            per_epoch = max(training // recipe.batch_size, 1) * min(recipe.batch_size, training)
            self.bar.reset(
                self.task, total=per_epoch * recipe.epochs, completed=per_epoch * done, epoch=done, epochs=recipe.epochs
            )

        def teaching(self, teacher: int, teachers: int) -> None:
            console.print(f"teacher {teacher} of {teachers}")

        def predicting(self, images: int, teachers: int) -> None:
            console.print(f"{teachers} teachers predict {images} images; then the run itself")

        def stepped(self, epoch: int, images: int, loss: float) -> None:
            speed = self.bar.tasks[0].speed
            self.bar.update(
                self.task, advance=images, epoch=epoch, rate=f"{speed:.1f}" if speed else "-", loss=f"{loss:.4f}"
            )

        def finished(self, row: Mapping[str, Any]) -> None:
            validation = ""
            if not math.isnan(row["val_loss"]):  # there is no validation where every pair is learned
                validation = f"validation: loss {row['val_loss']:.4f}  Jaccard {row['val_jaccard']:.4f}  "
                validation += f"Dice {row['val_dice']:.4f}  "
            console.print(
                f"epoch {row['epoch']:>3} {row['stage']:<8} loss {row['train_loss']:.4f}  {validation}"
                f"({row['images_per_second']:.1f} images/s)",
                soft_wrap=True,
            )

    return ProgressListener()
