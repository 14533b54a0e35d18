"""The stand-ins for a GPU are as strict as a GPU: what would fail there fails here."""

from __future__ import annotations

import threading

import pytest

from tests.engine.stand_ins import CudaError, HostDevice, RecordedGraph


def test_an_event_waits_for_what_was_queued_when_it_was_recorded() -> None:
    device, done = HostDevice(), []
    with device.current():
        stream, event, later = device.cuda.Stream(1), device.cuda.Event(), device.cuda.Event()
        stream.queue("first", lambda: done.append(1))
        event.record(stream)
        stream.queue("second", lambda: done.append(2))
        later.record(stream)
        event.synchronize()
        event.synchronize()
        assert done == [1]
        with pytest.raises(AssertionError, match="not ready"):
            event.time_till(later)
        stream.synchronize()
        assert done == [1, 2]
        assert event.time_till(later) == 1.0


def test_nobody_waits_for_a_stream_that_records() -> None:
    device = HostDevice()
    with device.current():
        stream = device.cuda.Stream(1)
        with pytest.raises(CudaError, match="not permitted when stream is capturing"):
            RecordedGraph(device, stream.handle, stream.synchronize)
        stream.synchronize()
        stream.queue("upload", lambda: None)
        with pytest.raises(AssertionError, match="must be idle"):
            RecordedGraph(device, stream.handle, lambda: None)


def test_every_call_needs_the_context_in_its_own_thread() -> None:
    device = HostDevice()
    with device.current():
        stream, event, memory = device.cuda.Stream(1), device.cuda.Event(), device.cuda.mem_alloc(8)
        pinned = device.cuda.pagelocked_empty((8,), "uint8")
        event.record(stream)
        graph = RecordedGraph(device, stream.handle, lambda: None)
    calls = {
        "stream": lambda: device.cuda.Stream(1),
        "event": device.cuda.Event,
        "allocate": lambda: device.cuda.mem_alloc(8),
        "pinned": lambda: device.cuda.pagelocked_empty((8,), "uint8"),
        "upload": lambda: device.cuda.memcpy_htod_async(memory, pinned, stream),
        "download": lambda: device.cuda.memcpy_dtoh_async(pinned, memory, stream),
        "record": lambda: event.record(stream),
        "wait for an event": event.synchronize,
        "wait for a stream": stream.synchronize,
        "time": lambda: event.time_till(event),
        "launch": lambda: graph.launch(stream.handle),
        "free a graph": graph.free,
        "free memory": memory.free,
        "free pinned memory": pinned.base.free,
    }
    refused: list[str] = []

    def call_all() -> None:
        for name, call in calls.items():
            try:
                call()
            except AssertionError:
                refused.append(name)

    call_all()
    assert refused == list(calls)
    refused.clear()
    with device.current():  # in this thread, which is no help to another
        thread = threading.Thread(target=call_all)
        thread.start()
        thread.join()
        assert refused == list(calls)
        refused.clear()
        call_all()
    assert refused == []
    assert device.pushed == 0
