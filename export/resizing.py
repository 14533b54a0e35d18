"""A checkpoint exported for another input size than it was trained at. The networks are fully convolutional.

    python -m isicrt.export.resizing runs/NAME/best.pt --size 224 --out unet-light-224.onnx

A cheaper or a finer model from the same weights, for the accuracy-speed table. Its card says the size that it takes
and, under ``training``, the one that it learned at; the scores are marked as those of the old size.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click
import numpy as np

from isicrt._command import ModuleCommand, NamedPath
from isicrt.engine.card import MAX_SIDE, ModelCard
from isicrt.engine.errors import BuildError, SettingsError
from isicrt.engine.geometry import resize_image
from isicrt.engine.images import decode_image
from isicrt.engine.last_names import last_names
from isicrt.engine.masks import replace_file
from isicrt.engine.photographs import find_photographs
from isicrt.export.build import Built, Destination, build, open_source
from isicrt.export.output_file import check_output
from isicrt.export.parity import Sample
from isicrt.export.tensorrt_build import Profile

STRIDE = 32
"""The encoder halves its input five times."""


def resized_card(card: ModelCard, size: tuple[int, int]) -> ModelCard:
    """The card of the same weights at another input size.

    Args:
        card: of the checkpoint.
        size: (height, width), pixels.

    Raises:
        SettingsError: a side is no multiple of 32, or out of range.
    """
    if any(side % STRIDE or not STRIDE <= side <= MAX_SIDE for side in size):
        raise SettingsError(f"size {size[0]} x {size[1]}: both sides must be multiples of {STRIDE}, up to {MAX_SIDE}")
    if size == card.input_size:
        return card
    old = " x ".join(map(str, card.input_size))
    return card.replace(
        name=f"{card.name}-{'x'.join(map(str, dict.fromkeys(size)))}",
        input_height=size[0],
        input_width=size[1],
        training={"input_size": list(card.input_size)} | dict(card.training),
        scores={f"{data_set}, at {old} px": scores for data_set, scores in card.scores.items()},
    )


def resize_model(
    checkpoint: Path, size: tuple[int, int], out: Path, samples: Sequence[Sample] | None = None, *, images: str = ""
) -> Built:
    """Export a checkpoint at another input size, with the proofs of `isicrt.export.build.build`.

    Args:
        checkpoint: a ``.pt`` of `isicrt train`.
        size: (height, width), pixels; multiples of 32.
        out: the ONNX file to write; its folder exists.
        samples: images at that size to compare torch and ONNX on; None for random colours, which suffice where
            nothing but the input's shape changes.
        images: what the samples are, for people.

    Returns:
        As `build`, with ``onnx`` at its final place.

    Raises:
        SettingsError: see `resized_card`.
        BuildError, ModelError: see `check_output`, `build` and `open_source`; or the file is no checkpoint. Nothing is
            written then.
    """
    check_output(out, checkpoint)
    source = open_source(checkpoint, str(checkpoint))
    if source.deployed is None:
        raise BuildError(f"{checkpoint}: give the checkpoint (.pt), an ONNX file has its size built in")
    source = dataclasses.replace(source, card=resized_card(source.card, size))
    if samples is None:
        samples, images = _random_colours(size), "8 images of random colours"
    with tempfile.TemporaryDirectory(prefix="isicrt-resize-") as folder:
        built = build(
            source,
            samples,
            precision="fp32",
            profile=Profile(1, 8, 8),
            destination=Destination(None, None, ""),
            out=Path(folder),
            images=images,
            report=lambda stage, fraction: None,
        )
        replace_file(out, built.onnx.read_bytes())
    return dataclasses.replace(built, onnx=out)


def _random_colours(size: tuple[int, int]) -> list[Sample]:
    """Smooth blobs of every colour."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (8, 6, 8, 3), dtype=np.uint8)
    return [Sample(f"colours {index}", resize_image(image, size)) for index, image in enumerate(coarse)]


@click.command(cls=ModuleCommand)
@click.argument("checkpoint", type=NamedPath(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--size", required=True, type=click.IntRange(STRIDE, MAX_SIDE), help="Side of the input; a multiple of 32."
)
@click.option("--out", required=True, type=NamedPath(dir_okay=False, path_type=Path))
@click.option("--images", type=NamedPath(path_type=Path), help="Compare torch and ONNX on 32 of these.")
def main(checkpoint: Path, size: int, out: Path, images: Path | None) -> None:
    """Write CHECKPOINT, a best.pt of `isicrt train`, as an ONNX file for another input size."""
    samples, origin = None, ""
    if images is not None:
        files = find_photographs(images, partial(click.echo, err=True)).images
        picks = np.unique(np.linspace(0, len(files) - 1, 32).astype(int))
        samples = [Sample(files[n].name, decode_image(files[n], (size, size)).pixels) for n in picks]
        origin = f"{len(samples)} of {len(files)} images of {last_names(images)}"
    built = resize_model(checkpoint, (size, size), out, samples, images=origin)
    assert built.parity is not None  # a checkpoint is always compared
    click.echo(
        f"{out}: {size} px, {out.stat().st_size / 1e6:.1f} MB; masks of torch and ONNX differ in "
        f"{built.parity.disagreement_mean:.3%} of the pixels on {built.parity.source}"
    )


if __name__ == "__main__":
    main()
