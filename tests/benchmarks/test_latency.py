from __future__ import annotations

from types import TracebackType

import numpy as np
import pytest

from isicrt.benchmarks.latency import Latency, Window, measure_latency, relative_spread
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.runtime import Runtime
from tests.tiny_models import darkness_card

BATCH = np.zeros((2, 64, 64, 3), np.uint8)


class SlowStart:
    """A runtime that moves its own clock: `slow` calls of 500 ms, then calls of 10 ms."""

    def __init__(self, slow: int) -> None:
        self.card = darkness_card()
        self.name = "slow-start"
        self.max_batch: int | None = None
        self.slow = slow
        self.calls = 0
        self.now = 0

    def infer(self, images: UInt8Array) -> UInt8Array:
        self.calls += 1
        self.now += 500_000_000 if self.calls <= self.slow else 10_000_000
        return images[..., 0]

    def clock(self) -> int:
        return self.now

    def close(self) -> None: ...

    def __enter__(self) -> SlowStart:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def test_the_slow_start_is_a_runtime() -> None:
    assert isinstance(SlowStart(0), Runtime)


@pytest.mark.parametrize(
    ("window", "slow", "expected"),
    [
        (Window(calls=4, seconds=0, warmup_calls=3, warmup_seconds=0), 3, [10.0] * 4),
        (Window(calls=4, seconds=0, warmup_calls=5, warmup_seconds=0), 3, [10.0] * 4),
        (Window(calls=4, seconds=0, warmup_calls=0, warmup_seconds=1.5), 3, [10.0] * 4),
        # A warm-up that is too short shows in the samples: nothing is clipped.
        (Window(calls=4, seconds=0, warmup_calls=2, warmup_seconds=0), 3, [500.0, 10.0, 10.0, 10.0]),
        (Window(calls=2, seconds=0, warmup_calls=0, warmup_seconds=0), 1, [500.0, 10.0]),
        # Both conditions must hold: here the seconds take longer than the calls.
        (Window(calls=2, seconds=0.05, warmup_calls=1, warmup_seconds=0), 1, [10.0] * 5),
        (Window(calls=8, seconds=0.05, warmup_calls=1, warmup_seconds=0), 1, [10.0] * 8),
    ],
)
def test_warm_up_is_excluded_and_windows_are_long_enough(window: Window, slow: int, expected: list[float]) -> None:
    runtime = SlowStart(slow)
    assert list(measure_latency(runtime, [BATCH], window, clock=runtime.clock)) == expected


class Recording(SlowStart):
    """Takes 10 ms a call and 40 ms for the batch of threes, as one that is looked at again."""

    def __init__(self) -> None:
        super().__init__(0)
        self.seen: list[int] = []

    def infer(self, images: UInt8Array) -> UInt8Array:
        self.seen.append(int(images.flat[0]))
        for _ in range(3 if self.seen[-1] == 3 else 0):
            super().infer(images)
        return super().infer(images)


@pytest.mark.parametrize(
    ("window", "rounds"),
    [
        (Window(calls=1, seconds=0, warmup_calls=2, warmup_seconds=0), 1),
        (Window(calls=6, seconds=0, warmup_calls=0, warmup_seconds=0), 2),
        (Window(calls=1, seconds=0.15, warmup_calls=0, warmup_seconds=0), 3),
    ],
)
def test_a_window_is_whole_rounds_of_the_batches(window: Window, rounds: int) -> None:
    runtime = Recording()
    batches = [np.full_like(BATCH, n) for n in (1, 2, 3)]
    assert list(measure_latency(runtime, batches, window, clock=runtime.clock)) == [10.0, 10.0, 40.0] * rounds
    assert runtime.seen[window.warmup_calls :] == [1, 2, 3] * rounds, "each window begins with the first"


def test_a_real_clock_gives_positive_milliseconds() -> None:
    samples = measure_latency(SlowStart(0), [BATCH], Window(3, 0, 0, 0))
    assert len(samples) == 3
    assert min(samples) > 0


def test_percentiles_are_of_every_sample() -> None:
    latency = Latency(1, (tuple(float(n) for n in range(1, 51)), tuple(float(n) for n in range(51, 102))))
    assert [latency.percentile(q) for q in (0, 50, 90, 99, 100)] == [1, 51, 91, 100, 101]
    assert latency.mad_ms == 25


@pytest.mark.parametrize(
    ("windows", "batch", "expected"),
    [
        (((10.0, 10.0),), 1, 100.0),
        (((10.0, 10.0),), 8, 800.0),
        # One slow call counts with its time: 2 calls of 8 images in 40 ms.
        (((10.0, 30.0),), 8, 400.0),
        # Median of the windows, not of all calls together.
        (((10.0,), (20.0,), (10.0,)), 1, 100.0),
    ],
)
def test_network_throughput(windows: tuple[tuple[float, ...], ...], batch: int, expected: float) -> None:
    assert Latency(batch, windows).images_per_second == pytest.approx(expected)


@pytest.mark.parametrize(("values", "expected"), [([5.0], 0.0), ([9.0, 10.0, 12.0], 0.3), ([2.0, 2.0], 0.0)])
def test_relative_spread(values: list[float], expected: float) -> None:
    assert relative_spread(values) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        (((10.0,), (10.5,), (11.0,)), True),
        # Only the last three count: the machine was busy and then was not.
        (((90.0,), (10.0,), (10.5,), (11.0,)), True),
        (((10.0,), (10.5,), (11.0,), (13.0,)), False),
        # The medians agree, but one call in the last window was so slow that the throughput does not.
        (((10.0,) * 3, (10.0,) * 3, (10.0, 10.0, 20.0)), False),
        (((10.0,), (12.0,)), False),
        (((10.0,),), True),
    ],
)
def test_windows_settle_when_the_last_three_agree(windows: tuple[tuple[float, ...], ...], expected: bool) -> None:
    assert Latency(1, windows).settled == expected


def test_the_spread_compares_medians_of_windows() -> None:
    assert Latency(1, ((10.0, 10.0, 90.0), (11.0, 11.0, 11.0))).spread == pytest.approx(1 / 10.5)


def test_what_came_before_the_windows_that_agree_is_kept_and_does_not_count() -> None:
    windows = ((9.0, 9.0), (5.0, 5.0), (2.0, 2.0), (2.0, 2.1), (2.0, 2.2))
    latency = Latency(1, windows)
    assert latency.settled
    assert latency.percentile(100) == 2.2
    assert latency.images_per_second == pytest.approx(1000 / 2.05)
    assert latency.spread < 0.1
    assert len(latency.window_medians) == 5
    assert Latency.from_dict(latency.to_dict()) == latency
    assert latency.to_dict()["calls"] == 6
    unsettled = Latency(1, windows[:4])
    assert not unsettled.settled
    assert unsettled.percentile(100) == 9.0, "all of them, with all their noise"
