"""What an image costs in each stage of the pipeline when that stage has the machine to itself.

From that follows the limit L of any pipeline of these stages: CPU milliseconds an image of all of them / cores, or the
wall time of a network on a GPU where that is more. The network on the CPU is measured on one thread, as the others are:
what several threads lose among each other is the pipeline's loss and not the limit's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isicrt.benchmarks.latency import counted, settled
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.images import decode_image
from isicrt.engine.in_flight import infer_batches
from isicrt.engine.masks import restore_window, write_mask
from isicrt.engine.opencv_threads import WITHOUT_OPENCV_THREADS
from isicrt.engine.pipeline import STAGES
from isicrt.engine.runtime import PipelinedRuntime, Runtime

MOST_BESIDE = 0.05
"""Of `StageSplit.beside`; clocks alone differ by less."""
_GPU_BOUND = "wall time of the network on the GPU"


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
    on_device: bool = False
    """Whether the network runs on a GPU and not on the cores."""
    megapixels: float | None = None
    """Native megapixels of an image, mean of those measured; None in results that did not note it."""
    crowded_ms: tuple[float, ...] = ()
    """CPU milliseconds an image of the network alone on every core at once, one figure for each pass; none for a
    network on a device, and in results that did not note it."""
    threads: int | None = None
    """That the run was told to take; None for all cores."""

    @property
    def settled(self) -> bool:
        """Whether the last passes agree, all stages together."""
        return settled([sum(costs) for costs in zip(*self.cpu_ms.values(), strict=True)])

    def wall(self, stage: str) -> float:
        """Milliseconds an image on the stage's own thread, median of the passes that count."""
        return float(np.median(counted(self.wall_ms[stage], self.settled)))

    def cpu(self, stage: str) -> float:
        """CPU milliseconds an image, median of the passes that count, see `isicrt.benchmarks.latency.counted`."""
        return float(np.median(counted(self.cpu_ms[stage], self.settled)))

    @property
    def usable_cores(self) -> int:
        """Cores that the pipeline's threads, or its processes, can keep busy: fewer than `cores` with few `threads`."""
        return self.cores if self.threads is None or self.on_device else min(self.cores, self.threads)

    def load(self, stage: str) -> float:
        """Milliseconds an image for which the stage would keep the whole machine busy: CPU time / `usable_cores`, and
        for a network on a GPU, of which one call runs at a time, its wall time."""
        return self.wall(stage) if stage == "infer" and self.on_device else self.cpu(stage) / self.usable_cores

    @property
    def waited(self) -> float:
        """Share of the time, 0..1, in which the stages on the CPU did not run although they could have: other programs
        held the cores, or the disk was slow."""
        stages = [s for s in STAGES if s != "infer" or not self.on_device]
        return max(0.0, 1 - sum(map(self.cpu, stages)) / sum(map(self.wall, stages)))

    @property
    def beside(self) -> float:
        """Share by which the CPU time of a stage is above its wall time, of the worst stage on the CPU; 0 where none
        is. One thread works at a time here: what is above was another thread's, which the stage has no use for."""
        stages = [s for s in STAGES if s != "infer" or not self.on_device]
        return max(0.0, *(self.cpu(s) / self.wall(s) - 1 for s in stages if self.wall(s)))

    def share(self, stage: str) -> float:
        """The stage's part, 0..1, of the loads of all stages."""
        return self.load(stage) / sum(map(self.load, STAGES))

    @property
    def bottleneck(self) -> str:
        """What L is most of: the network on a GPU where its wall time is L, else the stage with the most CPU time.
        Speed that one up first."""
        return "infer" if self.limit_of == _GPU_BOUND else max(STAGES, key=self.cpu)

    @property
    def bottleneck_share(self) -> float:
        """Part, 0..1, of L that the `bottleneck` is."""
        return 1.0 if self.limit_of == _GPU_BOUND else self.cpu(self.bottleneck) / sum(map(self.cpu, STAGES))

    @property
    def bounds(self) -> dict[str, float]:
        """What no pipeline of these stages can beat, each on its own account, milliseconds an image: by what it is."""
        cores = self.usable_cores
        found = {f"CPU time of all stages / {_count(cores, 'core')}": sum(map(self.cpu, STAGES)) / cores}
        if self.on_device:
            found[_GPU_BOUND] = self.wall("infer")
        return found

    @property
    def limit_ms(self) -> float:
        """L, milliseconds an image: the largest of `bounds`."""
        return max(self.bounds.values())

    @property
    def limit_of(self) -> str:
        """What L is, in words: what was divided by what."""
        return max(self.bounds, key=self.bounds.__getitem__)

    @property
    def crowding(self) -> float | None:
        """CPU time of the network on every core at once / on one while the others rest. What is above 1 is the
        machine's: cores that share caches, memory, power or execution units. No pipeline can win it back."""
        crowded = counted(self.crowded_ms, self.settled)
        return float(np.median(crowded)) / self.cpu("infer") if crowded else None

    def to_dict(self) -> dict[str, Any]:
        """Derived figures first, then the passes."""
        return {
            "batch_size": self.batch_size,
            "images": self.images,
            "cores": self.cores,
            "threads": self.threads,
            "on_device": self.on_device,
            "megapixels": self.megapixels,
            "bottleneck": self.bottleneck,
            "limit_ms": self.limit_ms,
            "limit_of": self.limit_of,
            "crowding": self.crowding,
            "passes_crowded_ms": list(self.crowded_ms),
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
            bool(data.get("on_device", False)),
            data.get("megapixels"),
            tuple(map(float, data.get("passes_crowded_ms", ()))),
            data.get("threads"),
        )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def on_device(runtime: Runtime) -> bool:
    """Whether a runtime leaves the CPU's cores to the other stages."""
    return not runtime.name.endswith("-cpu")


class StagePass(NamedTuple):
    """What `stage_pass` measured."""

    wall_ms: dict[str, float]
    """Milliseconds an image, by stage."""
    cpu_ms: dict[str, float]
    """CPU milliseconds an image over all threads of the process, by stage."""
    megapixels: float
    """Native megapixels of an image, mean."""


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


def crowded_pass(runtime: Runtime, batch: UInt8Array, calls: int = 6) -> float | None:
    """CPU milliseconds an image of the network while every core computes it and does nothing else.

    Args:
        runtime: the loaded model with as many threads as the pipeline gives it.
        batch: uint8, N x h x w x 3.
        calls: for each thread.

    Returns:
        None where the network is not on the CPU's cores.
    """
    if on_device(runtime) or not isinstance(runtime, PipelinedRuntime):
        return None
    keys = range(calls * max(1, runtime.depth - 1))
    start = time.process_time_ns()
    with WITHOUT_OPENCV_THREADS:
        for _ in infer_batches(runtime, ((key, batch) for key in keys)):
            pass
    return (time.process_time_ns() - start) / 1e6 / (len(keys) * len(batch))


def quiet_pass(runtime: Runtime, batch: UInt8Array, calls: int = 6) -> float:
    """CPU milliseconds an image of the network, as in `stage_pass`, on one batch: uint8, N x h x w x 3."""
    with WITHOUT_OPENCV_THREADS:
        start = time.process_time_ns()
        for _ in range(calls):
            runtime.infer(batch)
    return (time.process_time_ns() - start) / 1e6 / (calls * len(batch))


def stage_pass(images: Sequence[Path], runtime: Runtime, batch_size: int, out: Path) -> StagePass:
    """Take `images` through the four stages, one after the other and never two at once, as a run does it: OpenCV's own
    threads would spin for a while after each call, and that would count as CPU time of whatever comes next.

    Args:
        images: files that can be decoded; not none.
        runtime: the loaded model; on the CPU, with one thread.
        batch_size: of the network's calls; the last call may have fewer.
        out: existing folder for the masks.
    """
    with WITHOUT_OPENCV_THREADS:
        return _stage_pass(images, runtime, batch_size, out)


def _stage_pass(images: Sequence[Path], runtime: Runtime, batch_size: int, out: Path) -> StagePass:
    watch = _Stopwatch()
    pixels = 0
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
                mask = restore_window(
                    probability,
                    image.native_size,
                    threshold=card.threshold,
                    **card.clean_up,
                )
            with watch.running("write"):
                write_mask(mask, out / f"{n}.png")
            pixels += image.native_size[0] * image.native_size[1]
    scale = 1e6 * len(images)
    return StagePass(
        {s: watch.wall[s] / scale for s in STAGES}, {s: watch.cpu[s] / scale for s in STAGES}, pixels / scale
    )
