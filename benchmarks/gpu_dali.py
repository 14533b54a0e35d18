"""How far DALI's decoding on the GPU (`mixed`, nvJPEG) is from its decoding on the CPU (libjpeg-turbo), and its speed.

python -m isicrt.benchmarks.gpu_dali IMAGES
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from isicrt._command import ModuleCommand
from isicrt.engine.errors import DataError, MissingDependencyError
from isicrt.engine.geometry import UInt8Array


def decode_with_dali(files: Sequence[Path], device: str, size: tuple[int, int] | None) -> list[UInt8Array]:
    """uint8, H x W x 3, RGB, of each JPEG.

    Args:
        files: JPEGs that can be decoded: one that cannot ends the pipeline.
        device: ``cpu`` or ``mixed``, which needs a GPU.
        size: (height, width) to resize to, antialiased, on the same device; None for the image's own.

    Raises:
        MissingDependencyError: DALI is not installed.
    """
    try:
        from nvidia.dali import fn, pipeline_def, types
    except (ImportError, OSError) as error:
        raise MissingDependencyError("DALI", "gpu", str(error)) from error

    @pipeline_def(batch_size=len(files), num_threads=4, device_id=0 if device == "mixed" else None)  # type: ignore[untyped-decorator]
    def pipeline() -> Any:
        encoded = fn.external_source(source=lambda: [np.fromfile(file, np.uint8) for file in files])
        images = fn.decoders.image(
            encoded, device=device, output_type=types.RGB, adjust_orientation=False, jpeg_fancy_upsampling=True
        )
        return images if size is None else fn.resize(images, size=list(size), antialias=True)

    built = pipeline()
    built.build()
    (batch,) = built.run()
    if device == "mixed":
        batch = batch.as_cpu()
    return [np.array(batch.at(index)) for index in range(len(files))]


def differences(files: Sequence[Path], devices: tuple[str, str], size: tuple[int, int] | None) -> dict[str, float]:
    """Mean and largest difference, in levels of 255, of the same files on two devices; and seconds of each."""
    decoded, seconds = [], []
    for device in devices:
        started = time.perf_counter()
        decoded.append(decode_with_dali(files, device, size))
        seconds.append(time.perf_counter() - started)
    gaps = [np.abs(a.astype(int) - b) for a, b in zip(*decoded, strict=True)]
    return {
        "images": len(files),
        "mean": float(np.mean([gap.mean() for gap in gaps])),
        "max": float(max(gap.max() for gap in gaps)),
        "seconds_first": seconds[0],
        "seconds_second": seconds[1],
    }


@click.command(cls=ModuleCommand)
@click.argument("images", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--limit", type=click.IntRange(min=1), default=64, show_default=True)
def command(images: Path, limit: int) -> None:
    """Compare the JPEGs of a folder, at their own size and resized to 256 px."""
    files = sorted(path for path in images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:limit]
    if not files:
        raise DataError(f"{images}: no JPEG")
    for size in (None, (256, 256)):
        found = differences(files, ("mixed", "cpu"), size)
        click.echo(json.dumps({"size": size, **found}))
        # Where the two disagree by more, a model sees other pixels on the GPU than those it was trained on.
        if found["mean"] > 1.0:
            raise click.ClickException(f"the two differ by {found['mean']:.2f} levels in the mean")


if __name__ == "__main__":
    command()
