"""How much memory `isicrt segment` needs: on few and on many images, the first time and when all masks are there, by
batch size, and on large images.

    python -m isicrt.benchmarks.memory --images DIR --counts 1000,100000 --json memory.json

Links stand for many images. Every run is a process of its own, and its peak is what the system counted.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from PIL import Image

from isicrt._command import ModuleCommand, NamedPath
from isicrt.benchmarks.environment import Environment, provenance, read_environment, recorded_command
from isicrt.benchmarks.process import isicrt_command, run_command
from isicrt.benchmarks.rendered import render
from isicrt.benchmarks.result_file import check_places, write_whole
from isicrt.engine import shipped
from isicrt.engine.sources import find_jobs

SCHEMA = "isicrt-memory/1"
LARGE_SIZE = (3000, 4000)
"""(height, width) of a rendered large image: 12 megapixels."""
_FOLDER_FILES = 1000


@dataclass(frozen=True)
class Reading:
    """One run."""

    what: str
    """``count``, ``resume`` (the same again: every mask is there), ``batch`` or ``large``."""
    images: int
    batch_size: int
    peak_rss_mb: float | None
    """10^6 bytes; None where the system does not tell."""
    seconds: float
    """Of the whole process."""


def link_images(files: Sequence[Path], folder: Path, count: int) -> Path:
    """A new folder with `count` symbolic links to `files`, over and over, in sub-folders of 1,000."""
    for n, file in zip(range(count), itertools.cycle([f.resolve() for f in files]), strict=False):
        part = folder / f"{n // _FOLDER_FILES:05d}"
        if n % _FOLDER_FILES == 0:
            part.mkdir(parents=True)
        (part / f"{n:07d}{file.suffix}").symlink_to(file)
    return folder


def read_peak(what: str, images: Path, count: int, batch_size: int, model: Path, out: Path) -> Reading:
    """Segment a folder of `count` images in a process of its own.

    Args:
        what: see `Reading`.
        out: the folder of the masks, which stay.

    Raises:
        DataError: some image failed.
    """
    command = isicrt_command("segment", str(images), "--out", str(out))
    usage = run_command([*command, "--model", str(model), "--batch-size", str(batch_size)])
    return Reading(what, count, batch_size, usage.peak_rss_mb, usage.seconds)


def growth(readings: Sequence[Reading], what: str = "count") -> float | None:
    """Peak on the most images / peak on the fewest - 1; None where there are not two or the system does not tell."""
    counts = sorted((r for r in readings if r.what == what), key=lambda r: r.images)
    if len(counts) < 2 or counts[0].peak_rss_mb is None or counts[-1].peak_rss_mb is None:
        return None
    return counts[-1].peak_rss_mb / counts[0].peak_rss_mb - 1


def _numbers(ctx: click.Context, option: click.Parameter, text: str) -> list[int]:
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise click.BadParameter("whole numbers from 1, with commas", ctx, option)
    return found


@click.command(cls=ModuleCommand)
@click.option("--images", required=True, type=NamedPath(path_type=Path), help="What the links point to.")
@click.option("--model", metavar="FILE|NAME", help="As for segment. [default: the shipped model]")
@click.option("--counts", default="1000,100000", show_default=True, callback=_numbers, help="Links to segment.")
@click.option("--batch-sizes", default="1,8,32", show_default=True, callback=_numbers, help="Each on the fewest links.")
@click.option("--large-images", type=NamedPath(path_type=Path), help="Large images. [default: rendered, 12 MP]")
@click.option("--large-count", default=64, show_default=True, type=click.IntRange(min=1), help="Links to those.")
@click.option("--json", "json_file", type=NamedPath(dir_okay=False, path_type=Path), help="Write everything.")
def command(
    images: Path,
    model: str | None,
    counts: list[int],
    batch_sizes: list[int],
    large_images: Path | None,
    large_count: int,
    json_file: Path | None,
) -> None:
    """Measure the peak memory of isicrt segment."""
    check_places(json_file)
    environment, file = read_environment(), shipped.resolve(model)  # its load average is of other work only before
    readings = _read_all(images, file, counts, batch_sizes, large_images, large_count)
    try:
        write_whole(json_file, json.dumps(_report(readings, environment, file), indent=2) + "\n")
    finally:  # hours are not lost where the file cannot be written
        for reading in readings:
            click.echo(_line(reading))
        for what in ("count", "resume"):
            if (more := growth(readings, what)) is not None:
                click.echo(f"{what}: {counts[-1]} images against {counts[0]}: {more:+.1%}")


def _line(r: Reading) -> str:
    peak = "unknown" if r.peak_rss_mb is None else f"{r.peak_rss_mb:.0f} MB"
    return f"{r.what}: {r.images} images, batch {r.batch_size}: {peak}, {r.seconds:.0f} s"


def _read_all(
    images: Path, model: Path, counts: list[int], batch_sizes: list[int], large: Path | None, large_count: int
) -> list[Reading]:
    readings: list[Reading] = []
    with tempfile.TemporaryDirectory(prefix="isicrt-memory-") as name:
        folder = Path(name)

        def read(whats: Sequence[str], files: Sequence[Path], count: int, batch_size: int) -> None:
            links, out = link_images(files, folder / "links", count), folder / "masks"
            for what in whats:
                readings.append(read_peak(what, links, count, batch_size, model, out))
                click.echo(_line(readings[-1]), err=True)
            shutil.rmtree(out)
            shutil.rmtree(links)

        files = find_jobs(images, folder / "none").images
        big = find_jobs(large, folder / "none").images if large else _render_large(folder / "large")
        for count in counts:
            read(("count", "resume"), files, count, 8)
        for batch_size in batch_sizes:
            read(("batch",), files, counts[0], batch_size)
        for batch_size in batch_sizes:
            read(("large",), big, large_count, batch_size)
    return readings


def _render_large(folder: Path) -> list[Path]:
    folder.mkdir()
    for n in range(4):
        Image.fromarray(render(n, LARGE_SIZE)[0]).save(folder / f"{n}.jpg", quality=90)
    return sorted(folder.iterdir())


def _report(readings: Sequence[Reading], environment: Environment, model: Path) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "command": recorded_command(["python", "-m", "isicrt.benchmarks.memory", *sys.argv[1:]]),
        **provenance(model),
        "environment": environment.to_dict(),
        "growth": growth(readings),
        "resume_growth": growth(readings, "resume"),
        "readings": [asdict(r) for r in readings],
    }


if __name__ == "__main__":
    command()
