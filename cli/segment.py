"""`isicrt segment`: images into masks, with progress, a summary and a report."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from isicrt.engine.errors import DataError, SettingsError

if TYPE_CHECKING:
    from isicrt.engine.pipeline import Outcome

_SHOWN = 20
_PLAIN_SECONDS = 10.0


@click.command("segment")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the masks. It is made; masks that are in it already are written again.",
)
@click.option("--model", metavar="FILE|NAME", help="An .onnx or .plan file, or a shipped model. [default: unet-light]")
@click.option("--batch-size", type=click.IntRange(1, 4096), help="Images in one network call. [default: 8]")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="A pixel whose probability is above it is lesion. [default: the model's]",
)
@click.option("--threads", type=click.IntRange(1, 256), help="CPU threads to use. [default: all cores]")
@click.option(
    "--mask-bits",
    type=click.Choice(["1", "8"]),
    default="1",
    show_default=True,
    help="Bits a pixel. Either way a reader sees 0 and 255.",
)
@click.option(
    "--overlay",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Also draw each mask's outline on its image, as a JPEG of at most 1024 pixels a side.",
)
@click.option(
    "--json",
    "report_path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write settings, versions and every image's outcome as JSON.",
)
@click.pass_context
def command(
    ctx: click.Context,
    images: tuple[Path, ...],
    out: Path,
    model: str | None,
    batch_size: int | None,
    threshold: float | None,
    threads: int | None,
    mask_bits: str,
    overlay: Path | None,
    report_path: Path | None,
) -> None:
    """Segment IMAGES into masks: NAME.png for each image, at the image's own size, 0 background, 255 lesion.

    IMAGES is a folder (searched recursively), a quoted glob pattern, images, or a .txt file with a path in each line
    (relative to that file). The masks lie below --out as the images do. What counts is the stored pixel grid: EXIF
    orientation is ignored.

    An image that cannot be read costs that image: the others are done, the failures are listed, and the exit code is
    1. Every run segments all images again. Interrupt it when you like: a mask is there whole or not at all.
    """
    from isicrt.engine import shipped
    from isicrt.engine.overlay import OverlayFolder
    from isicrt.engine.pipeline import default_threads, run_jobs
    from isicrt.engine.runtime import open_runtime
    from isicrt.engine.sources import find_jobs

    if overlay is not None and overlay.absolute() == out.absolute():
        raise SettingsError("--overlay and --out must be different folders")
    jobs = find_jobs(images, out, overlays=overlay)
    model_path = shipped.resolve(model)
    decode_threads, write_threads = default_threads(threads) if threads is not None else (None, None)
    with open_runtime(model_path, threads=threads) as runtime, warnings.catch_warnings():
        # Pillow warns of odd metadata; what matters here is whether the pixels can be read.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        batch_size = batch_size or min(8, runtime.max_batch or 8)
        settings = {
            "images": [str(argument) for argument in images],
            "out": str(out),
            "batch_size": batch_size,
            "threshold": runtime.card.threshold if threshold is None else threshold,
            "threads": threads,
            "mask_bits": int(mask_bits),
            "overlay": None if overlay is None else str(overlay),
        }
        _make_folder(out)
        tally = _Tally()
        with _Report(report_path, settings, model_path, runtime) as report, _Progress(len(jobs)) as progress:

            def note(outcome: Outcome) -> None:
                tally.add(outcome)
                report.add(outcome)
                progress.advance()

            try:
                summary = run_jobs(
                    jobs,
                    runtime,
                    batch_size=batch_size,
                    threshold=threshold,
                    decode_threads=decode_threads,
                    write_threads=write_threads,
                    mask_bits=int(mask_bits),
                    overlay=None if overlay is None else OverlayFolder(out, overlay),
                    on_outcome=note,
                )
            except KeyboardInterrupt:
                report.finish({"interrupted": True, "images": tally.images, "failed": tally.failed})
                progress.close()
                click.echo(f"Stopped after {tally.images} of {len(jobs)} images.", err=True)
                _leave_if_stuck()
                raise
            report.finish(
                {
                    "interrupted": False,
                    "images": summary.images,
                    "failed": summary.failed,
                    "seconds": round(summary.seconds, 3),
                    "images_per_second": round(summary.images_per_second, 2),
                    "megapixels_per_second": round(summary.megapixels_per_second, 2),
                    "stage_seconds": {name: round(value, 3) for name, value in summary.stage_seconds.items()},
                }
            )
    tally.list_failures(report_path)
    click.echo(
        f"{summary.images - summary.failed} masks in {_printable(out)}, {summary.failed} failed, "
        f"{summary.seconds:.1f} s: {summary.images_per_second:.1f} images/s, "
        f"{summary.megapixels_per_second:.1f} MP/s (model {runtime.card.name}, {runtime.name})"
    )
    if summary.failed:
        ctx.exit(1)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: the folder for the masks cannot be made: {error.strerror}") from error


def _printable(text: object) -> str:
    """File names may hold what a terminal would obey or could not show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def _leave_if_stuck() -> None:
    """End the process if a thread is still inside a native call, which the interpreter's own exit might crash."""
    from isicrt.engine.pipeline import THREAD_PREFIX

    if any(thread.name.startswith(THREAD_PREFIX) for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)


class _Tally:
    """Counts, and the first failures; not all of them, because there may be a million."""

    def __init__(self) -> None:
        self.images = self.failed = 0
        self._first: list[str] = []

    def add(self, outcome: Outcome) -> None:
        self.images += 1
        if outcome.error is not None:
            self.failed += 1
            if len(self._first) < _SHOWN:
                self._first.append(outcome.error)

    def list_failures(self, report_path: Path | None) -> None:
        if not self.failed:
            return
        click.echo(f"{self.failed} of {self.images} images failed:", err=True)
        for error in self._first:
            click.echo(f"  {_printable(error)}", err=True)
        if self.failed > len(self._first):
            where = f"all in {report_path}" if report_path else "--json FILE lists all"
            click.echo(f"  ... and {self.failed - len(self._first)} more ({where})", err=True)


class _Progress:
    """A bar on a terminal; elsewhere a line now and then, which a log can hold."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._total, self._done = total, 0
        self._started = self._spoken = time.monotonic()
        self._bar = Progress(
            TextColumn("Segmenting"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=total, speed="")

    def advance(self) -> None:
        self._done += 1
        now = time.monotonic()
        speed = f"{self._done / max(now - self._started, 1e-9):.1f} images/s"
        self._bar.update(self._task, completed=self._done, speed=speed)
        if self._bar.disable and now - self._spoken >= _PLAIN_SECONDS:
            self._spoken = now
            click.echo(f"{self._done} of {self._total} images, {speed}", err=True)

    def close(self) -> None:
        self._bar.stop()

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Report:
    """The JSON report. Outcomes are written as they come, so that a million of them need no memory; the file has a
    temporary name until `finish`. Without a path nothing is written."""

    def __init__(self, path: Path | None, settings: Mapping[str, Any], model: Path, runtime: Any) -> None:
        self._path = path
        self._first = True
        if path is None:
            return
        from isicrt.benchmarks.environment import read_environment

        head = {
            "format": 1,
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "settings": settings,
            "model": {
                "name": runtime.card.name,
                "file": str(model),
                "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
                "runtime": runtime.name,
            },
            "versions": dict(read_environment().versions),
        }
        self._temporary = path.with_name(f".isicrt-{secrets.token_hex(8)}.tmp")
        try:
            self._file = self._temporary.open("x", encoding="ascii")
        except OSError as error:
            raise SettingsError(f"--json {path}: cannot be written: {error.strerror}") from error
        self._write(json.dumps(head, indent=1)[:-2] + ',\n "images": [')

    def _write(self, text: str) -> None:
        try:
            self._file.write(text)
        except OSError as error:
            raise DataError(f"--json {self._path}: cannot be written: {error.strerror}") from error

    def add(self, outcome: Outcome) -> None:
        if self._path is None:
            return
        height, width = outcome.native_size or (None, None)
        entry = {
            "image": str(outcome.job.image),
            "mask": str(outcome.job.mask) if outcome.error is None else None,
            "height": height,
            "width": width,
            "lesion_share": None if outcome.lesion_fraction is None else round(outcome.lesion_fraction, 6),
            "error": outcome.error,
        }
        self._write(("\n  " if self._first else ",\n  ") + json.dumps(entry))
        self._first = False

    def finish(self, summary: Mapping[str, Any]) -> None:
        if self._path is None:
            return
        self._write(f'\n ],\n "summary": {json.dumps(summary)}\n}}\n')
        try:
            self._file.close()
            self._temporary.replace(self._path)
        except OSError as error:
            raise DataError(f"--json {self._path}: cannot be written: {error.strerror}") from error

    def __enter__(self) -> _Report:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._path is not None:
            with suppress(OSError):  # of a full disk `finish` has spoken already
                self._file.close()
            self._temporary.unlink(missing_ok=True)
