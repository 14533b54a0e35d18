"""Latency of the network alone: how long one synchronous call takes, host memory to host memory.

`Runtime.infer` takes pixels in host memory and returns when the probabilities are in host memory, so on a GPU both
transfers are in the figure. Warm-up calls are made and thrown away at the start of every window; no sample is
clipped afterwards. Calls take the images in turn and a window ends where their round ends, so that all windows are of
the same images: some take several looks (`isicrt.engine.second_look`). Windows are repeated until the last three agree,
which is how NVIDIA's perf_analyzer decides that it has measured enough; as there, these three are the figures, and
those before them are only kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from isicrt.engine.geometry import UInt8Array
from isicrt.engine.runtime import Runtime

T = TypeVar("T")

Clock = Callable[[], int]
"""Nanoseconds, never going back: `time.perf_counter_ns`."""
SETTLED_WINDOWS = 3
"""So many windows in a row must agree."""
TOLERANCE = 0.10
"""They agree where (largest - smallest) / median is at most this; perf_analyzer takes +-10 % of their mean."""


@dataclass(frozen=True)
class Window:
    """How long to measure. A window ends when it has enough calls and enough seconds, and every batch equally often."""

    calls: int = 20
    """At least so many timed calls."""
    seconds: float = 1.0
    """At least so many timed seconds."""
    warmup_calls: int = 5
    """At least so many calls before them that are not counted: memory is planned, caches and clocks settle."""
    warmup_seconds: float = 0.3
    """At least so many seconds before them that are not counted."""


QUICK_WINDOW = Window(calls=5, seconds=0.05, warmup_calls=2, warmup_seconds=0.0)


@dataclass(frozen=True)
class Latency:
    """Every sample of one model at one batch size."""

    batch_size: int
    """Images a call."""
    windows_ms: tuple[tuple[float, ...], ...]
    """Milliseconds a call, one tuple for each repeat."""
    images: int | None = None
    """How many images the calls took in turn; None in results whose calls all took one and the same batch."""

    @property
    def samples_ms(self) -> npt.NDArray[np.float64]:
        """All windows that count in one row, milliseconds."""
        return np.concatenate([np.asarray(w, np.float64) for w in counted(self.windows_ms, self.settled)])

    def percentile(self, q: float) -> float:
        """The q-th percentile (0..100) of `samples_ms`; linear between neighbours (Hyndman and Fan 7)."""
        return float(np.percentile(self.samples_ms, q))

    @property
    def mad_ms(self) -> float:
        """Median absolute deviation from the median, milliseconds."""
        samples = self.samples_ms
        return float(np.median(np.abs(samples - np.median(samples))))

    @property
    def spread(self) -> float:
        """(largest - smallest) / median of the medians of the windows that count: how well the repeats agree."""
        return relative_spread(counted(self.window_medians, self.settled))

    @property
    def window_medians(self) -> list[float]:
        """Milliseconds a call, one for each window, also of those that do not count."""
        return [float(np.median(w)) for w in self.windows_ms]

    @property
    def window_rates(self) -> list[float]:
        """Images a second of calls made back to back, one for each window, also of those that do not count."""
        return [1e3 * self.batch_size * len(w) / sum(w) for w in self.windows_ms]

    @property
    def images_per_second(self) -> float:
        """Network-only throughput of calls made back to back: images / time of a window, median of those that count."""
        return float(np.median(counted(self.window_rates, self.settled)))

    @property
    def settled(self) -> bool:
        """Whether the last windows agree, in their latency and in their throughput."""
        return settled(self.window_medians) and settled(self.window_rates)

    def to_dict(self) -> dict[str, Any]:
        """Derived figures first, then the raw samples."""
        return {
            "batch_size": self.batch_size,
            "images": self.images,
            "calls": len(self.samples_ms),
            "p50_ms": self.percentile(50),
            "p90_ms": self.percentile(90),
            "p99_ms": self.percentile(99),
            "mad_ms": self.mad_ms,
            "spread": self.spread,
            "settled": self.settled,
            "images_per_second": self.images_per_second,
            "windows_ms": [[round(ms, 4) for ms in w] for w in self.windows_ms],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Latency:
        """The inverse of `to_dict`, from its raw samples."""
        windows = tuple(tuple(float(ms) for ms in w) for w in data["windows_ms"])
        return cls(int(data["batch_size"]), windows, data.get("images"))


def relative_spread(values: Sequence[float]) -> float:
    """(largest - smallest) / median; 0 for a single value."""
    return (max(values) - min(values)) / float(np.median(values))


def settled(values: Sequence[float]) -> bool:
    """Whether the last `SETTLED_WINDOWS` of `values` (all, where there are fewer) agree within `TOLERANCE`."""
    return relative_spread(values[-SETTLED_WINDOWS:]) <= TOLERANCE


def counted(values: Sequence[T], agree: bool) -> Sequence[T]:
    """Those that figures are of: the last `SETTLED_WINDOWS`, if these `agree`; else all, with all their noise."""
    return values[-SETTLED_WINDOWS:] if agree else values


def measure_latency(
    runtime: Runtime, batches: Sequence[UInt8Array], window: Window, *, clock: Clock = time.perf_counter_ns
) -> tuple[float, ...]:
    """One window of `runtime.infer` on each batch in turn, called back to back.

    Args:
        runtime: the loaded model.
        batches: at least one, each uint8, N x input_height x input_width x 3.
        window: how long.
        clock: nanoseconds.

    Returns:
        Milliseconds of each call after the warm-up, in order: whole rounds of the batches.
    """
    _calls(runtime, batches, window.warmup_calls, window.warmup_seconds, clock)
    return _calls(runtime, batches, window.calls, window.seconds, clock, round_of=len(batches))


def _calls(
    runtime: Runtime, batches: Sequence[UInt8Array], calls: int, seconds: float, clock: Clock, round_of: int = 1
) -> tuple[float, ...]:
    samples: list[float] = []
    total = 0
    while len(samples) < calls or total < seconds * 1e9 or len(samples) % round_of:
        images = batches[len(samples) % len(batches)]
        start = clock()
        runtime.infer(images)
        elapsed = clock() - start
        total += elapsed
        samples.append(elapsed / 1e6)
    return tuple(samples)
