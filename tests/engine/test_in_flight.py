"""The scheduling of several batches, with ONNX Runtime in a thread where a GPU would be."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from isicrt.engine.errors import ModelError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.in_flight import SlotPool, infer_batches
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.runtime import PipelinedRuntime, Runtime
from tests.engine.stand_ins import OnnxSlot, PipelinedOnnx


def _images(level: int, count: int = 2) -> UInt8Array:
    return np.full((count, 64, 64, 3), level, np.uint8)


@pytest.fixture
def runtime(darkness_onnx: Path) -> Iterator[PipelinedOnnx]:
    with PipelinedOnnx(darkness_onnx, depth=3, max_batch=4) as runtime:
        yield runtime


class Plain:
    """A runtime that takes one batch at a time."""

    def __init__(self, runtime: OnnxRuntime) -> None:
        self.card, self.name, self.max_batch = runtime.card, runtime.name, runtime.max_batch
        self.infer, self.close = runtime.infer, runtime.close

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def test_who_can_have_batches_in_flight(runtime: PipelinedOnnx, darkness_onnx: Path) -> None:
    assert isinstance(runtime, PipelinedRuntime)
    with OnnxRuntime(darkness_onnx) as onnx:
        assert isinstance(onnx, PipelinedRuntime)
        assert isinstance(Plain(onnx), Runtime)
        assert not isinstance(Plain(onnx), PipelinedRuntime)


def test_batches_are_collected_in_any_order_and_their_input_may_be_written_over(runtime: PipelinedOnnx) -> None:
    runtime.gate.clear()
    buffer = _images(0)
    tickets = []
    for level in (10, 20, 30):
        buffer[:] = level
        tickets.append(runtime.submit(buffer))
    buffer[:] = 0
    runtime.gate.set()
    for index, expected in ((1, 235), (0, 245), (2, 225)):
        result = runtime.collect(tickets[index])
        assert result.shape == (2, 64, 64)
        assert (result == expected).all()


def test_one_more_than_there_are_slots_is_a_mistake_of_the_caller(runtime: PipelinedOnnx) -> None:
    tickets = [runtime.submit(_images(level)) for level in (1, 2, 3)]
    with pytest.raises(RuntimeError, match="3 batches are in flight already"):
        runtime.submit(_images(4))
    runtime.collect(tickets[0])
    assert (runtime.collect(runtime.submit(_images(5))) == 250).all()
    with pytest.raises(RuntimeError, match="collected already"):
        runtime.collect(tickets[0])


def test_a_batch_that_fails_costs_itself_and_its_slot_is_free_again(runtime: PipelinedOnnx) -> None:
    good, bad = runtime.submit(_images(1)), runtime.submit(_images(13))
    with pytest.raises(ModelError, match="thirteen"):
        runtime.collect(bad)
    assert (runtime.collect(good) == 254).all()
    for level in range(20, 26):
        assert (runtime.infer(_images(level)) == 255 - level).all()


def test_what_does_not_start_takes_no_slot(runtime: PipelinedOnnx) -> None:
    for _ in range(5):
        with pytest.raises(ModelError, match="batches of at most 4"):
            runtime.submit(_images(1, count=5))
    assert all(slot.started == 0 for slot in runtime.slots)


def test_slots_take_turns(runtime: PipelinedOnnx) -> None:
    for level in range(6):
        runtime.infer(_images(level))
    assert [slot.started for slot in runtime.slots] == [2, 2, 2]


def test_every_slot_is_freed_and_the_first_problem_is_told(darkness_onnx: Path) -> None:
    class Stubborn(OnnxSlot):
        def free(self) -> None:
            super().free()
            raise ModelError("will not go")

    onnx, gate = OnnxRuntime(darkness_onnx, threads=1), threading.Event()
    slots = [OnnxSlot(onnx, gate), Stubborn(onnx, gate), OnnxSlot(onnx, gate)]
    with pytest.raises(ModelError, match="will not go"):
        SlotPool(slots).free()
    assert [slot.freed for slot in slots] == [1, 1, 1]


@pytest.mark.parametrize("batches", [0, 1, 2, 3, 4, 11])
def test_a_stream_of_batches_keeps_its_order_and_its_keys(runtime: PipelinedOnnx, batches: int) -> None:
    buffer = np.empty((4, 64, 64, 3), np.uint8)

    def source() -> Iterator[tuple[str, UInt8Array]]:
        for n in range(batches):
            count = 1 if n == batches - 1 else 4  # the last one is partial
            buffer[:count] = n
            yield str(n), buffer[:count]

    results = list(infer_batches(runtime, source()))
    assert [key for key, _ in results] == [str(n) for n in range(batches)]
    assert [int(found.min()) for _, found in results] == [255 - n for n in range(batches)]
    assert [len(found) for _, found in results] == ([4] * batches)[:-1] + [1] * bool(batches)
    assert runtime.most_in_flight == min(3, batches)


def test_a_plain_runtime_takes_one_batch_at_a_time(darkness_onnx: Path) -> None:
    with Plain(OnnxRuntime(darkness_onnx, threads=1)) as runtime:
        results = list(infer_batches(runtime, ((n, _images(n)) for n in (5, 6))))
    assert [(key, int(found.max())) for key, found in results] == [(5, 250), (6, 249)]


def test_a_failure_ends_the_stream_and_leaves_every_slot_free(runtime: PipelinedOnnx) -> None:
    stream = infer_batches(runtime, ((n, _images(n)) for n in (11, 12, 13, 14, 15)))
    assert [next(stream)[0], next(stream)[0]] == [11, 12]
    with pytest.raises(ModelError, match="thirteen"):
        next(stream)
    tickets = [runtime.submit(_images(level)) for level in (1, 2, 3)]
    assert [int(runtime.collect(ticket).max()) for ticket in tickets] == [254, 253, 252]


def test_a_stream_that_is_dropped_leaves_every_slot_free(runtime: PipelinedOnnx) -> None:
    stream = infer_batches(runtime, ((n, _images(n)) for n in range(9)))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert len([runtime.submit(_images(level)) for level in (1, 2, 3)]) == runtime.depth


def test_an_error_of_the_source_leaves_every_slot_free(runtime: PipelinedOnnx) -> None:
    def source() -> Iterator[tuple[int, UInt8Array]]:
        yield 1, _images(1)
        yield 2, _images(2)
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="the disk went away"):
        list(infer_batches(runtime, source()))
    assert len([runtime.submit(_images(level)) for level in (1, 2, 3)]) == runtime.depth
