"""One batch on a GPU: an execution context with a stream, buffers, an event and a graph of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from isicrt.engine.cuda_graph import CudaGraph, GraphError
from isicrt.engine.cuda_memory import CudaDevice, TransferBuffer, make_stream
from isicrt.engine.errors import ModelError
from isicrt.engine.geometry import UInt8Array


@dataclass(frozen=True)
class Signature:
    """Of an engine."""

    input: str
    """Name of the tensor with the pixels: uint8, N x height x width x 3."""
    output: str
    """Name of the tensor with the probabilities: uint8, N x height x width."""
    size: tuple[int, int]
    """(height, width) in pixels."""
    smallest: int
    """Batch of the profile; a smaller one is filled up with black images."""
    largest: int


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one batch, by the GPU's own clock (events on the stream)."""

    upload: float
    """Pixels, from pinned host memory to the device."""
    network: float
    download: float
    """Probabilities, back to pinned host memory."""


@dataclass(frozen=True)
class GraphCounts:
    """CUDA graphs that isicrt has recorded, and attempts that the driver or TensorRT has refused."""

    recorded: int = 0
    refused: int = 0
    problem: str = ""
    """Why the last one was refused."""

    def __add__(self, other: GraphCounts) -> GraphCounts:
        problem = other.problem or self.problem
        return GraphCounts(self.recorded + other.recorded, self.refused + other.refused, problem)


def padded(count: int, largest: int) -> int:
    """The batch that `count` images are filled up to: the next power of two, or `largest` if that is less.

    Six shapes serve every batch up to 32, and none computes more than twice of what it was given. Which shape it is
    depends on nothing else, so that an image's neighbours in time do not change the kernels that it meets.
    """
    return max(count, min(1 << (count - 1).bit_length(), largest))


PARTIAL_BATCHES = 7
"""Of one size, call by call, before the next is recorded: recording takes longer than some of them."""


class TensorRtSlot:
    """See `isicrt.engine.in_flight.Slot`. Every method makes the device's context current for itself.

    A full batch is queued once call by call, which lets TensorRT settle; the second time it is recorded as a CUDA graph
    and from then on launched as one. A partial batch is queued call by call, unless it comes again and again, as single
    images do: then it is recorded too. TensorRT asks for a new recording after a change of shape, so the graph goes
    with it. Where the driver cannot record, nothing is lost but the speed, and `graphs` says so.

    Args:
        device: the GPU.
        context: an execution context that nobody else uses.
        signature: of its engine.
        record: whether to record graphs here; no for TensorRT for RTX, which does it itself.
        few_shapes: fill partial batches up to a power of two, or to the largest: see `padded`. For TensorRT for RTX,
            which compiles for seconds when it meets a new shape.
        refused: makes the error of a call that TensorRT refuses.
        forget: called before each batch, whoever begins it: what TensorRT said so far is not the reason of what comes.
    """

    def __init__(
        self,
        device: CudaDevice,
        context: Any,
        signature: Signature,
        *,
        record: bool,
        few_shapes: bool = False,
        refused: Callable[[str], ModelError],
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        self._forget_said = forget
        self._device, self._context, self._signature, self._refused = device, context, signature, refused
        self._few_shapes = few_shapes
        self.graphs: GraphCounts | None = GraphCounts() if record else None
        """So far; None where none is to be recorded here."""
        self._graph: CudaGraph | None = None
        self._settled_work: Callable[[], None] | None = None  # what was queued last at this shape
        self._settled_times = 0  # call by call, in a row
        self._unrecordable: set[int] = set()  # sizes of batches
        self._rows = self._count = 0
        self._buffers: list[TransferBuffer] = []
        self._stream: Any = None
        self._done: Any = None
        try:
            with device.errors("allocate the buffers of a batch"), device.current():
                self._stream = make_stream(device)
                self._done = device.cuda.Event(device.cuda.event_flags.DISABLE_TIMING)
                shape = (signature.largest, *signature.size)
                for name, wanted in ((signature.input, (*shape, 3)), (signature.output, shape)):
                    self._buffers.append(TransferBuffer(device, wanted))
                    if not context.set_tensor_address(name, self._buffers[-1].address):
                        raise refused(f"does not take an address for '{name}'")
        except BaseException:
            self.free()
            raise

    @property
    def stream(self) -> Any:
        """The PyCUDA stream: whoever writes to `input_address` or reads `output_address` queues there."""
        return self._stream

    @property
    def input_address(self) -> int:
        """Device memory of the pixels."""
        return self._buffers[0].address

    @property
    def output_address(self) -> int:
        """Device memory of the probabilities."""
        return self._buffers[1].address

    def start(self, images: UInt8Array) -> None:
        """See `Slot.start`."""
        self._count = len(images)
        with self._queueing(f"segment a batch of {len(images)}"):
            self._fill(images)
            self._queue(self._whole)
            self._done.record(self._stream)

    def start_network(self, count: int) -> None:
        """Run the network on `count` images that the stream has put at `input_address`; no transfer either way.

        The result is at `output_address` when the stream has come so far. Nothing is to be collected. Rows that fill
        the batch up have whatever lies there; nobody reads what comes of them.
        """
        with self._queueing(f"segment a batch of {count}"):
            self._set_rows(count)
            self._queue(self._execute)

    def finish(self) -> UInt8Array:
        """See `Slot.finish`."""
        with self._device.errors(f"segment a batch of {self._count}"), self._device.current():
            self._done.synchronize()
        return np.array(self._buffers[1].host[: self._count])

    def time(self, images: UInt8Array) -> Timing:
        """One batch, queued call by call and timed. Raises ModelError as `start` and `finish` do."""
        cuda = self._device.cuda
        with self._queueing(f"segment a batch of {len(images)}"):
            events = [cuda.Event() for _ in range(4)]
            self._fill(images)
            for event, step in zip(events, (self._upload, self._execute, self._download, None), strict=True):
                event.record(self._stream)
                if step is not None:
                    step()
            events[3].synchronize()
            return Timing(*(events[n].time_till(events[n + 1]) for n in range(3)))

    def settle(self, *, network_alone: bool) -> None:
        """Have a full batch's graph recorded, as it is in the middle of a run. What the buffers hold is of no matter.

        Args:
            network_alone: for `start_network`, as the GPU's own decoding uses a slot, and not for `start`.
        """
        largest = self._signature.largest
        for _ in range(2):
            if network_alone:
                self.start_network(largest)
            else:
                self.start(np.zeros((largest, *self._signature.size, 3), np.uint8))
                self.finish()

    def free(self) -> None:
        """See `Slot.free`."""
        with self._device.current(), ExitStack() as steps:
            # Called from the last to the first, each of them whatever becomes of the others.
            buffers, self._buffers = self._buffers, []
            steps.callback(self._forget)
            for buffer in buffers:
                steps.callback(buffer.free)
            if self._graph is not None:
                steps.callback(self._graph.free)
            if self._stream is not None:
                with suppress(self._device.cuda.Error):  # what failed there was somebody's error before
                    self._stream.synchronize()

    def _forget(self) -> None:
        # TensorRT's context goes while CUDA's is current, and before the stream that it used.
        self._graph = self._settled_work = self._context = self._done = self._stream = None

    @contextmanager
    def _queueing(self, doing: str) -> Iterator[None]:
        """Context current, errors ours. After an error the stream has come to rest: what it does uses the buffers."""
        self._forget_said()
        with self._device.errors(doing), self._device.current():
            try:
                yield
            except BaseException:
                with suppress(self._device.cuda.Error):
                    self._stream.synchronize()
                raise

    def _fill(self, images: UInt8Array) -> None:
        self._set_rows(len(images))
        host = self._buffers[0].host
        host[: len(images)] = images
        host[len(images) : self._rows] = 0

    def _set_rows(self, count: int) -> None:
        rows = max(count, self._signature.smallest)
        if self._few_shapes:
            rows = padded(rows, self._signature.largest)
        if rows == self._rows:
            return
        self._rows = 0  # unknown, should TensorRT refuse
        self._forget_graph()
        if not self._context.set_input_shape(self._signature.input, (rows, *self._signature.size, 3)):
            raise self._refused(f"does not take a batch of {rows}")
        self._rows = rows

    def _forget_graph(self) -> None:
        if self._graph is not None:
            self._stream.synchronize()
            self._graph.free()
        self._graph = self._settled_work = None

    def _queue(self, work: Callable[[], None]) -> None:
        if self._settled_work != work:
            self._forget_graph()
            self._settled_times = 0
        elif self._graph is None and self._is_to_be_recorded():
            self._stream.synchronize()
            try:
                self._graph = CudaGraph(self._stream.handle, work)
                self._count_graph(GraphCounts(recorded=1))
            except (GraphError, ModelError, self._device.cuda.Error) as error:
                self._unrecordable.add(self._rows)
                self._count_graph(GraphCounts(refused=1, problem=str(error)))
        if self._graph is None:
            work()
            self._settled_work = work
            self._settled_times += 1
            return
        try:
            self._graph.launch(self._stream.handle)
        except GraphError as error:
            raise self._refused(f"could not launch the graph of a batch of {self._rows} ({error})") from error

    def _count_graph(self, more: GraphCounts) -> None:
        self.graphs = (self.graphs or GraphCounts()) + more

    def _is_to_be_recorded(self) -> bool:
        before = 1 if self._rows == self._signature.largest else PARTIAL_BATCHES
        return self.graphs is not None and self._settled_times >= before and self._rows not in self._unrecordable

    def _whole(self) -> None:
        self._upload()
        self._execute()
        self._download()

    def _upload(self) -> None:
        self._buffers[0].upload(self._rows, self._stream)

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise self._refused(f"could not run a batch of {self._rows}")

    def _download(self) -> None:
        self._buffers[1].download(self._rows, self._stream)
