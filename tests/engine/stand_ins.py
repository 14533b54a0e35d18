"""ONNX Runtime behind the interfaces of a GPU, so that what is scheduled there can be tested without one.

`OnnxSlot` is a slot that computes in a thread. `HostDevice` and `OnnxContext` stand in for PyCUDA and for TensorRT's
execution context. They are as strict as a GPU is at its worst: device memory is host memory, a stream does nothing
before somebody waits, and then no more than was waited for; every call needs the context to be current in its thread.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from isicrt.engine.errors import ModelError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.in_flight import SlotPool, SlotTicket
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.runtime import check_batch


class OnnxSlot:
    """A slot of `isicrt.engine.in_flight` whose device is a thread.

    Args:
        runtime: shared by the slots; ONNX Runtime takes calls from several threads.
        gate: the thread waits for it before it computes.
    """

    def __init__(self, runtime: OnnxRuntime, gate: threading.Event) -> None:
        self._runtime, self._gate = runtime, gate
        self._thread = ThreadPoolExecutor(1)
        self._buffer: UInt8Array | None = None
        self._result: Future[UInt8Array] | None = None
        self.started = self.freed = 0

    def start(self, images: UInt8Array) -> None:
        self.started += 1
        self._buffer = images.copy()
        self._result = self._thread.submit(self._compute, self._buffer)

    def _compute(self, images: UInt8Array) -> UInt8Array:
        assert self._gate.wait(10)
        if (images == 13).all():
            raise ModelError("thirteen")
        return self._runtime.infer(images)

    def finish(self) -> UInt8Array:
        assert self._result is not None
        return self._result.result(10)

    def free(self) -> None:
        self.freed += 1
        self._thread.shutdown()


class PipelinedOnnx:
    """A `PipelinedRuntime` on ONNX Runtime. `gate` is open unless a test closes it."""

    def __init__(self, path: Path, depth: int, max_batch: int | None = None) -> None:
        self._runtime = OnnxRuntime(path, threads=1)
        self.card, self.name, self.max_batch = self._runtime.card, "onnxruntime-pipelined", max_batch
        self.gate = threading.Event()
        self.gate.set()
        self.slots = [OnnxSlot(self._runtime, self.gate) for _ in range(depth)]
        self._pool = SlotPool(self.slots)
        self.most_in_flight = self._in_flight = 0

    @property
    def depth(self) -> int:
        return self._pool.depth

    def infer(self, images: UInt8Array) -> UInt8Array:
        return self.collect(self.submit(images))

    def submit(self, images: UInt8Array) -> SlotTicket:
        check_batch(images, self.card, self.max_batch)
        ticket = self._pool.submit(images)
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        return ticket

    def collect(self, ticket: SlotTicket) -> UInt8Array:
        self._in_flight -= 1
        return self._pool.collect(ticket)

    def close(self) -> None:
        self.gate.set()
        self._pool.free()

    def __enter__(self) -> PipelinedOnnx:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class CudaError(Exception):
    """PyCUDA's."""


class HostStream:
    """A CUDA stream: what is queued happens when somebody waits for it, in order."""

    def __init__(self, device: HostDevice) -> None:
        self._device, self._log = device, device.log
        self._queue: list[Callable[[], None]] = []
        self.queued = 0
        """Calls so far, of which the last ones are not done."""
        self.handle = id(self)
        self.recording: list[Callable[[], None]] | None = None

    def queue(self, name: str, work: Callable[[], None]) -> None:
        self._device.require_current()
        if self.recording is not None:
            self.recording.append(work)
            self._log.append(f"record {name}")
        else:
            self._queue.append(work)
            self.queued += 1
            self._log.append(name)

    def synchronize(self) -> None:
        self.run_until(self.queued)

    def run_until(self, mark: int) -> None:
        """Do what was queued when `queued` was that."""
        self._device.require_current()
        if self.recording is not None:
            raise CudaError("operation not permitted when stream is capturing")
        while self.queued - len(self._queue) < mark:
            self._queue.pop(0)()

    def has_done(self, mark: int) -> bool:
        return self.queued - len(self._queue) >= mark


class HostEvent:
    """A CUDA event; waiting for it waits for what was queued when it was recorded, and for nothing after that."""

    def __init__(self, device: HostDevice, flags: int) -> None:
        device.require_current()
        self._device = device
        self._stream: HostStream | None = None
        self._mark = 0

    def record(self, stream: HostStream) -> None:
        self._device.require_current()
        assert stream.recording is None, "an event that is recorded into a graph is nobody's to wait for"
        self._stream, self._mark = stream, stream.queued

    def synchronize(self) -> None:
        assert self._stream is not None
        self._stream.run_until(self._mark)

    def time_till(self, later: HostEvent) -> float:
        self._device.require_current()
        for event in (self, later):
            assert event._stream is not None
            assert event._stream.has_done(event._mark), "device not ready"
        return 1.0


class HostDevice:
    """`CudaDevice` without one. `log` has what was queued; `allocated` what was not given back, in bytes."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.allocated = 0
        self.freed: list[object] = []
        self.pushed = 0
        """How often the context is current, in all threads together."""
        self._of_thread = threading.local()
        self._lock = threading.Lock()
        self.fail_allocation_of: int | None = None
        self.gpu = SimpleNamespace(name="host")
        self.streams: dict[int, HostStream] = {}
        self.cuda = SimpleNamespace(
            Error=CudaError,
            Event=lambda flags=0: HostEvent(self, flags),
            event_flags=SimpleNamespace(DISABLE_TIMING=2, BLOCKING_SYNC=1),
            Stream=self._make_stream,
            pagelocked_empty=self._pinned,
            mem_alloc=self._allocate,
            memcpy_htod_async=lambda to, source, stream: stream.queue("upload", lambda: _copy(source, to)),
            memcpy_dtoh_async=lambda to, source, stream: stream.queue("download", lambda: _copy(to, source, back=True)),
        )

    def _make_stream(self, flags: int) -> HostStream:
        assert flags == 1, "a stream must not wait for the default stream"
        self.require_current()
        stream = HostStream(self)
        self.streams[stream.handle] = stream
        return stream

    def _allocate(self, size: int) -> HostMemory:
        self.require_current()
        if size == self.fail_allocation_of:
            raise CudaError("out of memory")
        return HostMemory(self, size)

    def _pinned(self, shape: tuple[int, ...], dtype: type) -> UInt8Array:
        self.require_current()
        size = int(np.prod(shape))

        def free(memory: Any) -> None:
            self.require_current()
            self.allocated -= size
            ctypes.memset(ctypes.addressof(memory), 0xDD, size)
            self.freed.append(memory)

        # The base of PyCUDA's array is its allocation, with `free`. A ctypes array is what numpy takes as a base.
        kind = type("Pinned", (ctypes.c_uint8 * size,), {"free": free, "_type_": ctypes.c_uint8, "_length_": size})
        self.allocated += size
        return np.ndarray(shape, np.uint8, buffer=kind())

    @contextmanager
    def current(self) -> Iterator[None]:
        self._push(1)
        try:
            yield
        finally:
            self._push(-1)

    def _push(self, change: int) -> None:
        self._of_thread.pushed = getattr(self._of_thread, "pushed", 0) + change
        with self._lock:
            self.pushed += change

    def require_current(self) -> None:
        """A call without the context is a fault of the caller's. CUDA says so only where nobody has another current."""
        assert getattr(self._of_thread, "pushed", 0) > 0, "the context is not current in this thread"

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except CudaError as error:
            raise ModelError(f"host: could not {doing}: {error}") from error


class HostMemory:
    """Device memory."""

    def __init__(self, device: HostDevice, size: int) -> None:
        self._device = device
        self._bytes = np.full(size, 0xAA, np.uint8)
        device.allocated += size

    def __int__(self) -> int:
        return int(self._bytes.ctypes.data)

    def free(self) -> None:
        self._device.require_current()
        self._device.allocated -= len(self._bytes)
        self._bytes[:] = 0xDD  # kept: work that is queued and still means this memory finds something else there
        self._device.freed.append(self._bytes)


def _copy(host: UInt8Array, device: HostMemory | int, *, back: bool = False) -> None:
    assert host.flags.c_contiguous, "PyCUDA takes nothing else"
    assert host.nbytes, "the driver need not take a copy of nothing"
    there = memory_at(int(device), host.shape)
    if back:
        host[:] = there
    else:
        there[:] = host


class OnnxContext:
    """TensorRT's execution context, on ONNX Runtime and on addresses in host memory."""

    def __init__(self, device: HostDevice, runtime: OnnxRuntime, largest: int) -> None:
        self._device, self._runtime, self._largest = device, runtime, largest
        self._addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.refuses = False
        self.fails = False

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        self._device.log.append(f"shape {shape[0]}")
        return shape[0] <= self._largest

    def execute_async_v3(self, handle: int) -> bool:
        self._device.require_current()
        shape = self.shape
        if not self.refuses:
            self._device.streams[handle].queue("execute", lambda: self._compute(shape))
        return not self.refuses

    def _compute(self, shape: tuple[int, ...]) -> None:
        if self.fails:
            raise CudaError("an illegal memory access was encountered")
        images = memory_at(self._addresses["image"], shape)
        memory_at(self._addresses["probability"], shape[:3])[:] = self._runtime.infer(images)


def memory_at(address: int, shape: tuple[int, ...]) -> UInt8Array:
    """uint8 of that shape at an address."""
    if 0 in shape:
        return np.empty(shape, np.uint8)
    pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8))
    return np.ctypeslib.as_array(pointer, shape)


class RecordedGraph:
    """`CudaGraph` on a `HostStream`."""

    def __init__(self, device: HostDevice, handle: int, enqueue: Callable[[], None]) -> None:
        self._device = device
        device.require_current()
        stream = device.streams[handle]
        assert stream.has_done(stream.queued), "a stream must be idle when it begins to record"
        stream.recording = []
        try:
            enqueue()
            self._work = stream.recording
        finally:
            stream.recording = None
        self.freed = False

    def launch(self, handle: int) -> None:
        assert not self.freed
        self._device.streams[handle].queue("launch", lambda: [work() for work in self._work] and None)

    def free(self) -> None:
        self._device.require_current()
        self.freed = True
        self._device.log.append("free graph")


def failing_driver(failing: str, code: int, name: bytes) -> SimpleNamespace:
    """The CUDA driver's library, of which one function fails with that error."""

    def result(function: str) -> Callable[..., int]:
        return lambda *_: code if function == failing else 0

    def error_name(given: ctypes.c_int, text: Any) -> int:
        assert given.value == code
        text._obj.value = name
        return 0

    functions = ("cuInit", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute", "cuDriverGetVersion")
    return SimpleNamespace(cuGetErrorName=error_name, **{function: result(function) for function in functions})
