"""From files to masks: how fast the whole pipeline is, as `isicrt segment` runs it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isicrt.benchmarks.energy import EnergyMeter
from isicrt.benchmarks.latency import counted, relative_spread, settled
from isicrt.benchmarks.other_work import OtherWork
from isicrt.benchmarks.stages import on_device
from isicrt.engine.gpu_stages import open_chain
from isicrt.engine.isolation import ImageDecoder
from isicrt.engine.ledger import Ledger
from isicrt.engine.model_identity import mask_settings
from isicrt.engine.pipeline import Outcome, run_jobs
from isicrt.engine.runtime import Runtime
from isicrt.engine.sources import Job


@dataclass(frozen=True)
class TimedRun:
    """One run of the pipeline over all files."""

    images: int
    """Masks and failures together."""
    failed: int
    seconds: float
    """Wall clock, from the first image read to the last mask written."""
    megapixels: float
    """Native pixels of the masks that were written, in millions."""
    stage_seconds: Mapping[str, float]
    """Busy seconds of each stage, summed over its threads."""
    cpu_seconds: float | None = None
    """CPU time meanwhile, over all threads and the run's own processes; None in results that did not note it."""
    joules: float | None = None
    """Energy of the processors meanwhile, other programs' too; None where it cannot be read."""
    gpu_joules: float | None = None
    """Energy of all GPUs meanwhile, other programs' too; None where the network is on the CPU or it cannot be read."""
    other_cpu_seconds: float | None = None
    """CPU time of other programs meanwhile on the cores that the run may use, see
    `isicrt.benchmarks.other_work.OtherWork`; None where that cannot be read, and in results that did not note it."""

    @property
    def images_per_second(self) -> float:
        """Masks written a second; failures do not count."""
        return (self.images - self.failed) / self.seconds if self.seconds else 0.0

    @property
    def megapixels_per_second(self) -> float:
        """Native megapixels of masks written a second."""
        return self.megapixels / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class EndToEnd:
    """Repeated runs of the pipeline over the same files, each into an empty folder."""

    batch_size: int
    runs: tuple[TimedRun, ...]
    failures: tuple[str, ...] = ()
    """What was wrong with each image that gave no mask, in the last run."""

    @property
    def counted(self) -> Sequence[TimedRun]:
        """The runs that the figures below are of, see `isicrt.benchmarks.latency.counted`."""
        return counted(self.runs, self.settled)

    @property
    def images_per_second(self) -> float:
        """Median of the runs."""
        return float(np.median([r.images_per_second for r in self.counted]))

    @property
    def megapixels_per_second(self) -> float:
        """Median of the runs; megapixels of the files, not of the network's input."""
        return float(np.median([r.megapixels_per_second for r in self.counted]))

    @property
    def ms_per_image(self) -> float:
        """1000 / images_per_second."""
        return 1e3 / self.images_per_second

    @property
    def megapixels_per_image(self) -> float:
        """Mean of the masks that were written."""
        return self.megapixels_per_second / self.images_per_second

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median of their seconds."""
        return relative_spread([r.seconds for r in self.counted])

    @property
    def settled(self) -> bool:
        """Whether the last runs agree."""
        return settled([r.seconds for r in self.runs])

    @property
    def busy_cores(self) -> float | None:
        """CPU seconds a second, median of the runs: the cores' number where none was ever idle."""
        found = [r.cpu_seconds / r.seconds for r in self.counted if r.cpu_seconds is not None]
        return float(np.median(found)) if found else None

    @property
    def other_cores(self) -> float | None:
        """CPU seconds a second of other programs, median of the runs: cores that the runs did not have."""
        found = [r.other_cpu_seconds / r.seconds for r in self.counted if r.other_cpu_seconds is not None]
        return float(np.median(found)) if found else None

    @property
    def cpu_ms_per_image(self) -> float | None:
        """CPU milliseconds an image, median of the runs."""
        found = [1e3 * r.cpu_seconds / (r.images - r.failed) for r in self.counted if r.cpu_seconds is not None]
        return float(np.median(found)) if found else None

    @property
    def joules_per_image(self) -> float | None:
        """Median of the runs."""
        found = [r.joules / (r.images - r.failed) for r in self.counted if r.joules is not None]
        return float(np.median(found)) if found else None

    @property
    def gpu_joules_per_image(self) -> float | None:
        """Median of the runs."""
        found = [r.gpu_joules / (r.images - r.failed) for r in self.counted if r.gpu_joules is not None]
        return float(np.median(found)) if found else None

    @property
    def gpu_watts(self) -> float | None:
        """Mean power of all GPUs during a run, median of the runs."""
        found = [r.gpu_joules / r.seconds for r in self.counted if r.gpu_joules is not None]
        return float(np.median(found)) if found else None

    def busy_threads(self, stage: str) -> float:
        """Threads that were inside a stage, waiting for a core or not, on average; median of the runs."""
        return float(np.median([r.stage_seconds[stage] / r.seconds for r in self.counted]))

    def to_dict(self) -> dict[str, Any]:
        """Derived figures first, then the runs."""
        return {
            "batch_size": self.batch_size,
            "images_per_second": self.images_per_second,
            "megapixels_per_second": self.megapixels_per_second,
            "ms_per_image": self.ms_per_image,
            "cpu_ms_per_image": self.cpu_ms_per_image,
            "busy_cores": self.busy_cores,
            "other_cores": self.other_cores,
            "joules_per_image": self.joules_per_image,
            "gpu_joules_per_image": self.gpu_joules_per_image,
            "gpu_watts": self.gpu_watts,
            "spread": self.spread,
            "settled": self.settled,
            "runs": [asdict(r) | {"stage_seconds": dict(r.stage_seconds)} for r in self.runs],
            "failures": list(self.failures),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EndToEnd:
        """The inverse of `to_dict`."""
        return cls(int(data["batch_size"]), tuple(TimedRun(**r) for r in data["runs"]), tuple(data["failures"]))


def run_once(
    jobs: Sequence[Job], out: Path, runtime: Runtime, batch_size: int, threads: int | None = None
) -> tuple[TimedRun, tuple[str, ...]]:
    """Segment every job as `isicrt segment` does, with its journal and its decoders, and hand masks to the disk as it.

    Args:
        jobs: images, and masks in `out`.
        out: an empty folder, or none yet.
        runtime: the loaded model.
        batch_size: of the network's calls.
        threads: as for `isicrt.Segmenter`; None for all cores.

    Returns:
        The run, and one line for each image that failed.
    """
    failures: list[str] = []

    def note(outcome: Outcome) -> None:
        if outcome.error is not None:
            failures.append(outcome.error)

    model = {"name": runtime.card.name, "sha256": ""}  # for a later run, of which there is none
    settings = mask_settings(runtime.card, None, 1)
    with (
        Ledger(out, jobs, model=model, settings=settings, existing="overwrite", fsync="batch") as ledger,
        open_chain(runtime, threads=threads) or nullcontext() as chain,
    ):
        energy, others, cpu = EnergyMeter(), OtherWork(_cpu_seconds), _cpu_seconds()
        with ImageDecoder() as decoder:
            summary = run_jobs(
                jobs,
                runtime,
                batch_size=batch_size,
                threads=threads,
                on_outcome=note,
                ledger=ledger,
                decode=decoder,
                chain=chain,
            )
            joules = energy.joules()
            gpu_joules = energy.gpu_joules() if on_device(runtime) else None
        # The decoder's processes have ended: until then their work would be that of others.
        spent, other = _cpu_seconds() - cpu, others.cpu_seconds()
    run = TimedRun(
        images=summary.images,
        failed=summary.failed,
        seconds=summary.seconds,
        megapixels=summary.megapixels,
        stage_seconds=dict(summary.stage_seconds),
        cpu_seconds=spent,
        joules=joules,
        gpu_joules=gpu_joules,
        other_cpu_seconds=other,
    )
    return run, tuple(sorted(failures))


def _cpu_seconds() -> float:
    """Of this process and of those of its own that have ended."""
    return time.process_time() + sum(os.times()[2:4])
