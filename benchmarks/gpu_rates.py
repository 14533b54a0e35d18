"""How often a second something is done: items of a piece of work, and a network by batch size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from isicrt.benchmarks.latency import Window, measure_latency
from isicrt.engine.errors import ModelError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.in_flight import infer_batches
from isicrt.engine.runtime import Runtime


def rate(work: Callable[[], int], seconds: float, repeats: int = 3) -> dict[str, Any]:
    """Items a second of `work`, which says how many items it did; after one call that is not counted.

    Raises:
        ModelError: a call did nothing, so that there is no rate.
    """

    def done() -> int:
        items = work()
        if items <= 0:
            raise ModelError("not one image came out of it: there is nothing to measure")
        return items

    done()
    rates = []
    for _ in range(repeats):
        items, started = 0, time.perf_counter()
        while (passed := time.perf_counter() - started) < seconds or not items:
            items += done()
        rates.append(items / passed)
    return {"images_per_second": statistics.median(rates), "runs": rates}


def network_figures(runtime: Any, sizes: Sequence[int], window: Window) -> dict[str, Any]:
    """Latency and throughput of a network by batch size.

    Args:
        runtime: any `Runtime`; events and streams where it has them.
        sizes: batches; those above its `max_batch` are left out.
        window: of each figure.
    """
    figures: dict[str, Any] = {}
    rng = np.random.default_rng(0)
    for size in sizes:
        if runtime.max_batch is not None and size > runtime.max_batch:
            continue
        images = rng.integers(0, 256, (size, *runtime.card.input_size, 3), dtype=np.uint8)
        calls = measure_latency(runtime, [images], window)
        entry: dict[str, Any] = {
            "call_ms": {f"p{q}": float(np.percentile(calls, q)) for q in (50, 90, 99)} | {"calls": len(calls)},
            "stream": rate(partial(_stream, runtime, images), window.seconds),
        }
        if hasattr(runtime, "time"):
            timings = [runtime.time(images) for _ in range(window.calls)]
            entry["events_ms"] = {
                part: statistics.median(getattr(timing, part) for timing in timings)
                for part in ("upload", "network", "download")
            }
        figures[str(size)] = entry
    return figures


def _stream(runtime: Runtime, images: UInt8Array) -> int:
    return sum(len(found) for _, found in infer_batches(runtime, ((n, images) for n in range(8))))
