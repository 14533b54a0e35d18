"""What a slot queues, and when it records: on a stand-in for the GPU with ONNX Runtime in TensorRT's place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isicrt.engine import tensorrt_slot
from isicrt.engine.cuda_graph import GraphError
from isicrt.engine.errors import ModelError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.in_flight import SlotPool
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.tensorrt_slot import GraphCounts, Signature, TensorRtSlot, Timing
from tests.engine.stand_ins import CudaError, HostDevice, OnnxContext, RecordedGraph, memory_at

SIGNATURE = Signature("image", "probability", (64, 64), smallest=2, largest=4)
CALLS = ["upload", "execute", "download"]
RECORDING = ["record upload", "record execute", "record download", "launch"]


class Bench:
    """A slot with its stand-ins."""

    def __init__(self, path: Path, *, record: bool) -> None:
        self.runtime = OnnxRuntime(path, threads=1)
        self.device = HostDevice()
        self.context = OnnxContext(self.device, self.runtime, SIGNATURE.largest)
        self.slot = self.make_slot(record)

    def make_slot(self, record: bool = True) -> TensorRtSlot:
        device: Any = self.device
        return TensorRtSlot(
            device, self.context, SIGNATURE, record=record, refused=lambda problem: ModelError(f"it {problem}")
        )

    def log(self) -> list[str]:
        log, self.device.log[:] = list(self.device.log), []
        return log

    def run(self, count: int, level: int = 7) -> list[str]:
        """One batch through the slot, compared with ONNX Runtime alone; what was queued for it."""
        images = _noise(count, level)
        self.slot.start(images)
        log = self.log()
        np.testing.assert_array_equal(self.slot.finish(), self.runtime.infer(images))
        assert self.device.pushed == 0
        return log

    def run_network(self, count: int, level: int) -> None:
        """The network alone on images that lie on the device, compared likewise."""
        images = _noise(count, level)
        memory_at(self.slot.input_address, images.shape)[:] = images
        self.slot.start_network(count)
        with self.device.current():
            self.slot.stream.synchronize()
        found = memory_at(self.slot.output_address, images.shape[:3])
        np.testing.assert_array_equal(found, self.runtime.infer(images))


def _noise(count: int, seed: int) -> UInt8Array:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


@pytest.fixture
def bench(darkness_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    bench = Bench(darkness_onnx, record=True)
    monkeypatch.setattr(
        tensorrt_slot, "CudaGraph", lambda handle, enqueue: RecordedGraph(bench.device, handle, enqueue)
    )
    yield bench
    bench.slot.free()
    assert bench.device.allocated == 0


def test_a_full_batch_is_recorded_the_second_time_and_launched_from_then_on(bench: Bench) -> None:
    assert bench.run(4, 1) == ["shape 4", *CALLS]
    assert bench.run(4, 2) == RECORDING
    assert bench.run(4, 3) == ["launch"]
    assert bench.run(4, 4) == ["launch"]
    assert bench.slot.graphs == GraphCounts(recorded=1)


def test_a_partial_batch_goes_call_by_call_and_takes_the_graph_with_it(bench: Bench) -> None:
    bench.run(4, 1)
    bench.run(4, 2)
    assert bench.run(3, 3) == ["free graph", "shape 3", *CALLS]
    assert bench.run(3, 4) == CALLS
    assert bench.run(4, 5) == ["shape 4", *CALLS]
    assert bench.run(4, 6) == RECORDING


def test_a_partial_batch_that_comes_again_and_again_is_recorded_the_eighth_time(bench: Bench) -> None:
    assert bench.run(3, 0) == ["shape 3", *CALLS]
    assert [bench.run(3, n) for n in range(1, 7)] == [CALLS] * 6
    assert bench.run(3, 7) == RECORDING
    assert bench.run(3, 8) == ["launch"]
    # Another size begins from the start.
    assert bench.run(2, 9) == ["free graph", "shape 2", *CALLS]
    assert [bench.run(2, n) for n in range(6)] == [CALLS] * 6
    assert bench.run(2, 7) == RECORDING


def test_a_batch_below_the_profile_is_filled_up_with_black(bench: Bench) -> None:
    bench.run(4, 1)
    assert bench.run(1, 2) == ["shape 2", *CALLS]
    assert bench.run(2, 3) == CALLS


def test_without_recording_every_batch_goes_call_by_call(darkness_onnx: Path) -> None:
    bench = Bench(darkness_onnx, record=False)
    assert [bench.run(4, n) for n in (1, 2)] == [["shape 4", *CALLS], CALLS]
    assert bench.slot.graphs is None


@pytest.mark.parametrize("error", [GraphError("not permitted"), ModelError("refused"), CudaError("invalid")])
def test_where_nothing_can_be_recorded_the_batches_go_call_by_call(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(handle: int, enqueue: object) -> None:
        raise error

    monkeypatch.setattr(tensorrt_slot, "CudaGraph", refuse)
    assert [bench.run(4, n) for n in (1, 2, 3)] == [["shape 4", *CALLS], CALLS, CALLS]
    assert bench.slot.graphs == GraphCounts(refused=1, problem=str(error))


def test_a_partial_batch_that_cannot_be_recorded_costs_full_ones_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tensorrt_slot.CudaGraph

    def refuse(handle: int, enqueue: object) -> None:
        raise GraphError("not permitted")

    monkeypatch.setattr(tensorrt_slot, "CudaGraph", refuse)
    assert [bench.run(3, n) for n in range(10)] == [["shape 3", *CALLS], *[CALLS] * 9]
    monkeypatch.setattr(tensorrt_slot, "CudaGraph", made)
    assert bench.run(4, 1) == ["shape 4", *CALLS]
    assert bench.run(4, 2) == RECORDING


def test_the_network_alone_of_a_partial_batch_is_recorded_too(bench: Bench) -> None:
    for seed in range(9):
        bench.run_network(3, seed)
    assert bench.log() == ["shape 3", *["execute"] * 7, "record execute", "launch", "launch"]


def test_the_input_may_be_written_over_and_the_result_is_kept(bench: Bench) -> None:
    images = _noise(4, 1)
    expected = bench.runtime.infer(images)
    bench.slot.start(images)
    images[:] = 0
    found = bench.slot.finish()
    bench.run(4, 2)
    np.testing.assert_array_equal(found, expected)


def test_the_network_alone_runs_on_what_lies_on_the_device(bench: Bench) -> None:
    for seed in (1, 2, 3):
        bench.run_network(4, seed)
    assert bench.log() == ["shape 4", "execute", "record execute", "launch", "launch"]
    # A graph of the network alone is not launched for a whole batch.
    assert bench.run(4, 5) == ["free graph", *CALLS]


@pytest.mark.parametrize(("alone", "calls"), [(False, CALLS), (True, ["execute"])])
def test_a_slot_that_has_settled_launches_its_first_full_batch(bench: Bench, alone: bool, calls: list[str]) -> None:
    bench.slot.settle(network_alone=alone)
    assert bench.log() == ["shape 4", *calls, *[f"record {call}" for call in calls], "launch"]
    if alone:
        bench.run_network(4, 1)
    assert (bench.log() if alone else bench.run(4, 1)) == ["launch"]
    assert bench.slot.graphs == GraphCounts(recorded=1)


def test_counts_of_graphs_are_added() -> None:
    counts = [GraphCounts(1), GraphCounts(0, 2, "not permitted"), GraphCounts(3)]
    assert sum(counts, GraphCounts()) == GraphCounts(4, 2, "not permitted")


def test_timing_has_the_transfers_apart(bench: Bench) -> None:
    assert bench.slot.time(_noise(4, 1)) == Timing(1.0, 1.0, 1.0)
    assert bench.log() == ["shape 4", *CALLS]


def test_what_tensorrt_refuses_is_an_error_and_the_slot_goes_on(bench: Bench) -> None:
    bench.context.refuses = True
    with pytest.raises(ModelError, match="it could not run a batch of 4"):
        bench.slot.start(_noise(4, 1))
    assert bench.device.pushed == 0
    bench.context.refuses = False
    bench.log()
    assert bench.run(4, 2) == CALLS


def test_a_shape_that_is_refused_is_set_again_the_next_time(bench: Bench) -> None:
    bench.run(4, 1)
    with pytest.raises(ModelError, match="does not take a batch of 5"):
        bench.slot.start(_noise(5, 1))
    bench.log()
    assert bench.run(4, 2) == ["shape 4", *CALLS]


def test_an_error_of_the_device_is_ours_and_says_what_was_done(bench: Bench) -> None:
    bench.context.fails = True
    bench.slot.start(_noise(3, 1))
    with pytest.raises(ModelError, match="could not segment a batch of 3: an illegal memory access"):
        bench.slot.finish()
    assert bench.device.pushed == 0


def test_freeing_waits_for_what_is_under_way_and_survives_a_broken_device(bench: Bench) -> None:
    bench.context.fails = True
    bench.slot.start(_noise(3, 1))
    bench.slot.free()
    bench.slot.free()
    assert bench.device.allocated == 0


@pytest.mark.parametrize("failing", [4 * 64 * 64 * 3, 4 * 64 * 64])
def test_a_slot_that_does_not_fit_leaves_nothing_allocated(bench: Bench, failing: int) -> None:
    before = bench.device.allocated
    bench.device.fail_allocation_of = failing
    with pytest.raises(ModelError, match="could not allocate the buffers of a batch: out of memory"):
        bench.make_slot()
    assert bench.device.allocated == before


def test_slots_of_a_pool_do_not_disturb_each_other(bench: Bench) -> None:
    bench.context = OnnxContext(bench.device, bench.runtime, SIGNATURE.largest)
    other = bench.make_slot()
    pool = SlotPool([bench.slot, other])
    assert not pool.busy
    batches = [_noise(4, seed) for seed in range(6)]
    tickets = [pool.submit(batches[0])]
    found = []
    for batch in batches[1:]:
        tickets.append(pool.submit(batch))
        assert pool.busy
        found.append(pool.collect(tickets.pop(0)))
    found.append(pool.collect(tickets.pop()))
    for batch, result in zip(batches, found, strict=True):
        np.testing.assert_array_equal(result, bench.runtime.infer(batch))
    other.free()
