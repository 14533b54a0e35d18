"""From files to masks: how fast the whole pipeline is, as `isicrt segment` runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isicrt.benchmarks.latency import relative_spread
from isicrt.engine.pipeline import Outcome, RunSummary, available_cores, default_threads, run_jobs
from isicrt.engine.runtime import Runtime
from isicrt.engine.sources import Job


@dataclass(frozen=True)
class EndToEnd:
    """Repeated runs of the pipeline over the same files, each into an empty folder."""

    batch_size: int
    runs: tuple[RunSummary, ...]
    failures: tuple[str, ...] = ()
    """What was wrong with each image that gave no mask, in the last run."""

    @property
    def images_per_second(self) -> float:
        """Median of the runs."""
        return float(np.median([r.images_per_second for r in self.runs]))

    @property
    def megapixels_per_second(self) -> float:
        """Median of the runs; megapixels of the files, not of the network's input."""
        return float(np.median([r.megapixels_per_second for r in self.runs]))

    @property
    def ms_per_image(self) -> float:
        """1000 / images_per_second."""
        return 1e3 / self.images_per_second

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median of the runs' seconds."""
        return relative_spread([r.seconds for r in self.runs])

    def to_dict(self) -> dict[str, Any]:
        """Derived figures first, then the runs."""
        return {
            "batch_size": self.batch_size,
            "images_per_second": self.images_per_second,
            "megapixels_per_second": self.megapixels_per_second,
            "ms_per_image": self.ms_per_image,
            "spread": self.spread,
            "runs": [
                {
                    "images": r.images,
                    "failed": r.failed,
                    "seconds": r.seconds,
                    "megapixels": r.megapixels,
                    "stage_seconds": dict(r.stage_seconds),
                }
                for r in self.runs
            ],
            "failures": list(self.failures),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EndToEnd:
        """The inverse of `to_dict`."""
        return cls(int(data["batch_size"]), tuple(RunSummary(**r) for r in data["runs"]), tuple(data["failures"]))


def run_once(
    jobs: Sequence[Job], runtime: Runtime, batch_size: int, threads: int | None = None
) -> tuple[RunSummary, tuple[str, ...]]:
    """Segment every job as `isicrt segment` does.

    Args:
        jobs: images, and masks in an empty folder.
        runtime: the loaded model.
        batch_size: of the network's calls.
        threads: as for `isicrt.Segmenter`; None for all cores.

    Returns:
        The run's summary, and one line for each image that failed.
    """
    failures: list[str] = []

    def note(outcome: Outcome) -> None:
        if outcome.error is not None:
            failures.append(outcome.error)

    decoders, writers = default_threads(available_cores() if threads is None else threads)
    summary = run_jobs(
        jobs,
        runtime,
        batch_size=batch_size,
        decode_threads=decoders,
        write_threads=writers,
        on_outcome=note,
    )
    return summary, tuple(sorted(failures))
