"""What an image costs in each stage of the pipeline when that stage has the machine to itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from isicrt.engine.images import decode_image
from isicrt.engine.masks import restore_mask, write_mask
from isicrt.engine.pipeline import STAGES
from isicrt.engine.runtime import Runtime


@dataclass(frozen=True)
class StageSplit:
    """What an image costs in each stage when that stage has the machine to itself."""

    batch_size: int
    images: int
    """Images a pass."""
    cores: int
    """CPU cores that the process may use."""
    wall_ms: Mapping[str, tuple[float, ...]]
    """By stage: milliseconds an image, one figure for each pass."""
    cpu_ms: Mapping[str, tuple[float, ...]]
    """By stage: CPU milliseconds an image over all threads, one figure for each pass."""

    def wall(self, stage: str) -> float:
        """Milliseconds an image, median of the passes. The stage runs alone, in its own thread (the network in its
        own threads)."""
        return float(np.median(self.wall_ms[stage]))

    def cpu(self, stage: str) -> float:
        """CPU milliseconds an image, median of the passes."""
        return float(np.median(self.cpu_ms[stage]))

    def load(self, stage: str) -> float:
        """Milliseconds an image for which the stage would keep the whole machine busy.

        One call of the network runs at a time, so its load is its wall time. The other stages spread over the cores:
        CPU time / cores.
        """
        return self.wall(stage) if stage == "infer" else self.cpu(stage) / self.cores

    def share(self, stage: str) -> float:
        """The stage's part, 0..1, of the loads of all stages."""
        return self.load(stage) / sum(map(self.load, STAGES))

    @property
    def bottleneck(self) -> str:
        """The stage with the largest load: speed that one up first."""
        return max(STAGES, key=self.load)

    @property
    def limit_ms(self) -> float:
        """What no pipeline of these stages can beat, milliseconds an image: all CPU time / cores, or the network's
        wall time where that is longer (a GPU)."""
        return max(sum(map(self.cpu, STAGES)) / self.cores, self.wall("infer"))

    def to_dict(self) -> dict[str, Any]:
        """Derived figures first, then the passes."""
        return {
            "batch_size": self.batch_size,
            "images": self.images,
            "cores": self.cores,
            "bottleneck": self.bottleneck,
            "limit_ms": self.limit_ms,
            "stages": {
                s: {
                    "wall_ms": self.wall(s),
                    "cpu_ms": self.cpu(s),
                    "load_ms": self.load(s),
                    "share": self.share(s),
                    "passes_wall_ms": list(self.wall_ms[s]),
                    "passes_cpu_ms": list(self.cpu_ms[s]),
                }
                for s in STAGES
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StageSplit:
        """The inverse of `to_dict`, from its passes."""
        stages = data["stages"]
        return cls(
            int(data["batch_size"]),
            int(data["images"]),
            int(data["cores"]),
            {s: tuple(map(float, stages[s]["passes_wall_ms"])) for s in STAGES},
            {s: tuple(map(float, stages[s]["passes_cpu_ms"])) for s in STAGES},
        )


@dataclass
class _Stopwatch:
    """Nanoseconds of wall time, and of CPU time over all threads of the process, by stage."""

    wall: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    cpu: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))

    @contextmanager
    def running(self, stage: str) -> Iterator[None]:
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        yield
        self.cpu[stage] += time.process_time_ns() - cpu
        self.wall[stage] += time.perf_counter_ns() - wall


def stage_pass(
    images: Sequence[Path], runtime: Runtime, batch_size: int, out: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """Take `images` through the four stages, one after the other and never two at once.

    Args:
        images: files that can be decoded; not none.
        runtime: the loaded model.
        batch_size: of the network's calls; the last call may have fewer.
        out: existing folder for the masks.

    Returns:
        Wall milliseconds and CPU milliseconds (all threads of the process) an image, by stage.
    """
    watch = _Stopwatch()
    card = runtime.card
    for first in range(0, len(images), batch_size):
        decoded = []
        for path in images[first : first + batch_size]:
            with watch.running("decode"):
                decoded.append(decode_image(path, card.input_size))
        with watch.running("infer"):
            probabilities = runtime.infer(np.stack([d.pixels for d in decoded]))
        for n, (probability, image) in enumerate(zip(probabilities, decoded, strict=True), first):
            with watch.running("restore"):
                mask = restore_mask(
                    probability,
                    image.native_size,
                    threshold=card.threshold,
                    keep_largest=card.keep_largest,
                    fill_holes=card.fill_holes,
                )
            with watch.running("write"):
                write_mask(mask, out / f"{n}.png")
    scale = 1e6 * len(images)
    return {s: watch.wall[s] / scale for s in STAGES}, {s: watch.cpu[s] / scale for s in STAGES}
