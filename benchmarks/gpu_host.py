"""What the host does on the GPU's way, measured without a GPU: how fast a run could be if the GPU took no time.

    python -m isicrt.benchmarks.gpu_host --images DIR --json gpu-host.json

The run is that of `isicrt segment` with a plan: files are read, batches go through a chain, masks are unpacked, cleaned
and written, and the journal has a line for each. Only the chain is not there: its batches are done when they are given
to it, and every mask is an ellipse. What is timed is therefore all that a GPU waits for.

Files are read and masks finished on threads, or in processes (`isicrt.engine.task_process`). The CPU time of this
process bounds a run in which everything else has cores of its own: most of it is Python's, which one thread at a time
can run, and the thread that keeps the GPU supplied needs it too. What it can do is measured by itself with as many
processes as on 16 cores, which answer without working, so that few cores are enough for them.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np

from isicrt._command import ModuleCommand
from isicrt.benchmarks.environment import read_environment, recorded_command
from isicrt.benchmarks.idle_processes import idle_processes
from isicrt.benchmarks.result_file import check_places, write_whole
from isicrt.benchmarks.scratch import fresh
from isicrt.engine import shipped
from isicrt.engine.card import ModelCard
from isicrt.engine.cores import available_cores
from isicrt.engine.errors import DataError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.gpu_batch import ChainImage, PackedMask
from isicrt.engine.ledger import Ledger
from isicrt.engine.model_identity import mask_settings
from isicrt.engine.onnx_file import read_onnx_card
from isicrt.engine.outcome import DecodeCounts
from isicrt.engine.pipeline import default_processes, default_threads, run_jobs
from isicrt.engine.sources import Job, find_jobs

SCHEMA = "isicrt-gpu-host/2"
BATCH = 256
DEPTH = 3
"""Batches in flight, as with a plan."""
REPEATS = 5
ALONE = 8
"""Idle processes of either kind: those of 16 cores."""
ALONE_COUNT = 32768
"""Masks of a run with them, of which the first quarter is not timed: they take their time to start."""


class InstantChain:
    """A `isicrt.engine.gpu_stages.Chain`, and what a run with a chain asks of its runtime: a GPU that takes no time."""

    name = "no GPU"
    max_batch: int | None = BATCH
    depth = DEPTH

    def __init__(self, card: ModelCard) -> None:
        self.card, self.threshold = card, card.threshold
        self.decoded = DecodeCounts()
        self._masks: dict[tuple[int, int], UInt8Array] = {}
        self._sizes: list[tuple[int, int]] = []  # of the batch in `_flat`
        self._flat = np.empty(0, np.uint8)

    def submit(self, images: Sequence[ChainImage]) -> Any:
        """The batch is its own ticket."""
        self.decoded += DecodeCounts(gpu=sum(image.source is not None for image in images))
        return images

    def collect(self, ticket: Sequence[ChainImage]) -> list[PackedMask]:
        """An ellipse for each image, in one copy of the batch: so they come from pinned memory."""
        sizes = [image.native_size for image in ticket]
        if sizes != self._sizes:
            self._sizes, self._flat = sizes, np.concatenate([self._bits(size).ravel() for size in sizes])
        copy, masks, first = np.array(self._flat), [], 0
        for size in sizes:
            shape = self._bits(size).shape
            masks.append(PackedMask(copy[first : first + shape[0] * shape[1]].reshape(shape), size))
            first += shape[0] * shape[1]
        return masks

    def _bits(self, size: tuple[int, int]) -> UInt8Array:
        if size not in self._masks:
            height, width = size
            mask = np.zeros(size, np.uint8)
            cv2.ellipse(mask, (width // 2, height // 2), (width // 3, height // 4), 25.0, 0.0, 360.0, 1, cv2.FILLED)
            self._masks[size] = np.packbits(mask, axis=1)
        return self._masks[size]


@dataclass(frozen=True)
class HostRun:
    """One run."""

    images_per_second: float
    own_user_us: float
    """CPU time of the run's own process for an image, in microseconds, outside the system's calls."""
    own_system_us: float
    """The same inside them, where Python's lock is free."""
    others_us: float
    """CPU time of its other processes."""
    steady: float
    """Images a second from the end of the first quarter to the last."""
    own_waits: float | None
    """How often a thread of this process gave up its core to wait, for an image; None where the system does not say."""


def host_run(
    files: Sequence[Path], count: int, card: ModelCard, out: Path, processes: int, threads: int | None = None
) -> HostRun:
    """One run of `count` images, `files` over and over, into a fresh folder.

    Args:
        files: JPEGs that a GPU would decode.
        count: of masks.
        card: of the model.
        out: the folder; what is there is set aside.
        processes, threads: see `run_jobs`.

    Raises:
        DataError: an image failed, or was not for the GPU.
    """
    fresh(out)
    jobs = [Job(file, out / f"{n}.png") for n, file in enumerate(islice(cycle(files), count))]
    chain: Any = InstantChain(card)
    ends: list[float] = []
    options: dict[str, Any] = {"batch_size": BATCH, "chain": chain, "processes": processes, "threads": threads}
    with Ledger(out, jobs, model={"sha256": ""}, settings=mask_settings(card, None, 1)) as ledger:
        before, waits, started = _cpu_seconds(), _waits(), time.perf_counter()
        summary = run_jobs(jobs, chain, ledger=ledger, on_outcome=lambda _: ends.append(time.perf_counter()), **options)
        seconds, after = time.perf_counter() - started, _cpu_seconds()
        own_waits = None if waits is None else ((_waits() or 0) - waits) / count
    if summary.failed or chain.decoded.gpu != count:
        raise DataError(
            f"{summary.failed} of {count} images failed, and {count - chain.decoded.gpu} were not for the GPU to "
            "decode: give JPEGs"
        )
    user, system, others = ((b - a) / count * 1e6 for a, b in zip(before, after, strict=True))
    first = count // 4
    steady = (count - 1 - first) / (ends[-1] - ends[first]) if ends[-1] > ends[first] else 0.0
    return HostRun(count / seconds, user, system, others, steady, own_waits)


def own_runs(files: Sequence[Path], card: ModelCard, folder: Path, *, count: int, repeats: int) -> list[HostRun]:
    """Runs of which only the run's own process works, after one that is not counted. Arguments as of `measure`."""
    with idle_processes():
        runs = [host_run(files, count, card, folder / "own", ALONE, 2 * ALONE) for _ in range(repeats + 1)]
    return runs[1:]


def _waits() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


def _cpu_seconds() -> tuple[float, float, float]:
    now = os.times()
    return now.user, now.system, now.children_user + now.children_system


def measure(
    files: Sequence[Path], card: ModelCard, folder: Path, *, count: int, processes: Sequence[int], repeats: int
) -> dict[int, list[HostRun]]:
    """Runs by number of processes, in turn, after one each that is not counted."""
    runs: dict[int, list[HostRun]] = {number: [] for number in processes}
    for repeat in range(repeats + 1):
        for number in processes:
            run = host_run(files, count, card, folder / f"masks-{number}", number)
            if repeat:
                runs[number].append(run)
    return runs


def to_dict(runs: dict[int, list[HostRun]], own: list[HostRun], **facts: Any) -> dict[str, Any]:
    """Plain JSON types; ``schema`` first."""
    by_processes = {str(number): _medians(of_one) for number, of_one in runs.items()}
    return {"schema": SCHEMA, **facts, "by_processes": by_processes, "own": _medians(own)}


def _medians(runs: list[HostRun]) -> dict[str, Any]:
    found = {name: [getattr(run, name) for run in runs] for name in asdict(runs[0])}
    medians = {name: None if None in values else statistics.median(values) for name, values in found.items()}
    return {**medians, "runs": [asdict(run) for run in runs]}


def to_markdown(data: dict[str, Any]) -> str:
    """A table of medians."""
    lines = [
        "| read and finished | images/s | this process, us an image: Python | in the system | other processes |",
        "| :-- | --: | --: | --: | --: |",
    ]
    for number, found in data["by_processes"].items():
        where = "on threads" if number == "0" else f"in {number} and {data['readers']} processes"
        cells = (found[name] for name in ("images_per_second", "own_user_us", "own_system_us", "others_us"))
        lines.append("| " + " | ".join([where, *(f"{cell:,.0f}" for cell in cells)]) + " |")
    own = data["own"]
    waits = "" if own["own_waits"] is None else f", {own['own_waits']:.2f} waits"
    lines += [
        "",
        f"This process with {data['own_processes']} and {data['own_processes']} that do not work: {own['steady']:,.0f} "
        f"images/s, {own['own_user_us']:,.0f} and {own['own_system_us']:,.0f} us{waits} an image.",
    ]
    return "\n".join(lines)


@click.command(cls=ModuleCommand)
@click.option("--images", required=True, type=click.Path(exists=True, path_type=Path), help="Folder of JPEGs.")
@click.option("--model", default=None, help="An .onnx file or a shipped model's name. [default: the shipped model]")
@click.option("--count", type=click.IntRange(min=1), default=8192, show_default=True, help="Masks of a run.")
@click.option(
    "--own-count",
    type=click.IntRange(min=8),
    default=ALONE_COUNT,
    show_default=True,
    help="The same, alone.",
)
@click.option("--processes", type=click.IntRange(min=1), default=None, help="That finish masks. [default: as a run's]")
@click.option("--repeats", type=click.IntRange(min=1), default=REPEATS, show_default=True)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def main(
    images: Path,
    model: str | None,
    count: int,
    own_count: int,
    processes: int | None,
    repeats: int,
    json_file: Path | None,
) -> None:
    """Measure what the host does on the GPU's way. No GPU is needed."""
    check_places(json_file)
    cores = available_cores()
    number = processes or default_processes(cores, on_gpu=True) or max(1, cores // 2)
    environment = read_environment()
    with tempfile.TemporaryDirectory(prefix="isicrt-gpu-host-") as name:
        files = find_jobs(images, Path(name)).images
        card = read_onnx_card(shipped.resolve(model))
        runs = measure(files, card, Path(name), count=count, processes=(0, number), repeats=repeats)
        own = own_runs(files, card, Path(name), count=own_count, repeats=repeats)
    data = to_dict(
        runs,
        own,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=recorded_command(["python", "-m", "isicrt.benchmarks.gpu_host", *sys.argv[1:]]),
        environment=environment.to_dict(),
        images=len(files),
        count=count,
        batch_size=BATCH,
        readers=default_threads(cores, on_gpu=True)[0],
        own_processes=ALONE,
        own_count=own_count,
    )
    try:
        write_whole(json_file, json.dumps(data, indent=1) + "\n")
    finally:  # nothing is lost where the file cannot be written
        click.echo(to_markdown(data))


if __name__ == "__main__":
    main()
