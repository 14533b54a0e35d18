"""The GPU's way end to end: from file names to PNG files, as `isicrt segment` does it without a journal."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from isicrt.benchmarks.gpu_alone import GpuParts, batch_of, opened_chain, settling_batches
from isicrt.benchmarks.gpu_files import forget
from isicrt.engine.pipeline import run_jobs
from isicrt.engine.runtime import Runtime
from isicrt.engine.sources import Job

REPEATS = 3
"""Runs of an engine on one size of images."""
RUN_SECONDS = 6.0
"""A run takes no more files after so long: one that turns out slow must not take the time of what comes after it."""


class _FirstJobs:
    """Files over and over, as many as are known beforehand, as in a folder; the clock starts with the first.

    It is asked between batches only: a partial one would cost a slot its graph, and the next run seconds to record it.
    """

    def __init__(self, files: Sequence[Path], folder: Path, count: int, seconds: float, batch: int) -> None:
        self._files, self._folder, self._count = files, folder, count
        self._seconds, self._batch = seconds, batch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Job]:
        end = time.perf_counter() + self._seconds
        for n, file in enumerate(islice(cycle(self._files), self._count)):
            if n % self._batch == 0 and time.perf_counter() > end:
                return
            yield Job(file, self._folder / f"{n}.png")


def run_figures(
    runtime: Runtime,
    chain: Any,
    files: Sequence[Path],
    count: int,
    *,
    cpu_share: float = 0.0,
    cold: bool = False,
    seconds: float = RUN_SECONDS,
    batch: int = 1,
    processes: int | None = None,
) -> dict[str, Any]:
    """One run.

    Args:
        runtime: the engine's.
        chain: decodes on the GPU; None to decode on the CPU.
        files: taken over and over.
        count: masks to write, at most.
        cpu_share: of the JPEGs that CPU threads decode beside the GPU.
        cold: with an empty page cache, as far as the system empties it when asked.
        seconds: after which no more files are taken, once the batch is full.
        batch: of images of this size.
        processes: see `isicrt.engine.pipeline.run_jobs`.

    Returns:
        ``images_per_second`` is of the whole run. ``steady`` is of its middle, from the first fifth of the masks to
        the last tenth: what a longer run comes to.
    """
    if cold:
        forget(files)
    before = None if chain is None else chain.decoded
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        jobs = _FirstJobs(files, Path(folder), count, seconds, batch)
        options: dict[str, Any] = {"batch_size": runtime.max_batch, "chain": chain, "cpu_share": cpu_share}
        options["processes"] = processes
        summary = run_jobs(jobs, runtime, on_outcome=lambda _: ends.append(time.perf_counter()), **options)
    first, last = len(ends) // 5, len(ends) - 1 - len(ends) // 10
    return {
        "images_per_second": summary.images_per_second,
        "steady": (last - first) / (ends[last] - ends[first]) if last > first else None,
        "megapixels_per_second": summary.megapixels_per_second,
        "images": summary.images,
        "seconds": summary.seconds,
        "failed": summary.failed,
        "decoded": None if chain is None or before is None else asdict(chain.decoded - before),
        "stage_seconds": dict(summary.stage_seconds),
    }


def end_to_end_figures(
    runtime: Any, files: Sequence[Path], batches: int, parts: GpuParts, *, repeats: int = REPEATS, cold: bool = True
) -> dict[str, Any]:
    """The median of `repeats` runs of so many batches, after one that is not counted; and with `cold` a cold one."""
    with opened_chain(runtime, parts) as chain:
        batch = len(batch_of(files, runtime.card.input_size, runtime.max_batch))
        run_figures(runtime, chain, files, settling_batches(chain, batch) * batch, seconds=math.inf, batch=batch)
        runs = [run_figures(runtime, chain, files, batches * batch, batch=batch) for _ in range(repeats)]
        last = {"cold": run_figures(runtime, chain, files, batches * batch, cold=True, batch=batch)} if cold else {}
    rates = [run["images_per_second"] for run in runs]
    middle = runs[rates.index(statistics.median_low(rates))]
    return {**middle, "batch": batch, "runs": rates, **last}


def other_way_figures(
    runtime: Any, files: Sequence[Path], batches: int, parts: GpuParts, share: float | None
) -> dict[str, Any]:
    """One run with `share` of the JPEGs decoded by CPU threads beside the GPU; None: all, and masks restored there."""
    batch = len(batch_of(files, runtime.card.input_size, runtime.max_batch))
    with nullcontext() if share is None else opened_chain(runtime, parts) as chain:
        unmeasured = 1 if chain is None else settling_batches(chain, batch)
        run_figures(runtime, chain, files, unmeasured * batch, cpu_share=share or 0.0, seconds=math.inf, batch=batch)
        return run_figures(runtime, chain, files, batches * batch, cpu_share=share or 0.0, batch=batch)
