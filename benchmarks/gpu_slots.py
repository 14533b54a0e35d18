"""TensorRT's slots with another network in them, so that all the rest of the GPU's way can run without a plan.

The streams, the buffers, the order of the calls and the chain behind them are those of a plan; what stands in
TensorRT's place is named wherever a figure is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from isicrt.engine.card import ModelCard
from isicrt.engine.errors import ModelError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.in_flight import SlotPool, SlotTicket
from isicrt.engine.runtime import check_batch
from isicrt.engine.tensorrt_runtime import BATCHES_IN_FLIGHT
from isicrt.engine.tensorrt_slot import Signature, TensorRtSlot, Timing


class IdleContext:
    """An execution context whose network does nothing: what is measured is all that lies around it."""

    def set_tensor_address(self, name: str, address: int) -> bool:
        """As TensorRT's."""
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """As TensorRT's."""
        return True

    def execute_async_v3(self, stream: int) -> bool:
        """As TensorRT's."""
        return True


class SlotRuntime:
    """A `PipelinedRuntime` of TensorRT's slots; what a `GpuChain` asks of a `TensorRtRuntime` too.

    Args:
        card: the model's.
        name: for tables.
        device: a `CudaDevice`.
        make_context: gives an execution context for each slot.
        largest: batch.
        depth: slots.
        about: what a report should say of it.

    Raises:
        ModelError: the memory of the device does not suffice, or the network cannot be put there.
    """

    def __init__(
        self,
        card: ModelCard,
        name: str,
        device: Any,
        make_context: Callable[[], Any],
        largest: int,
        depth: int = BATCHES_IN_FLIGHT,
        about: dict[str, Any] | None = None,
    ) -> None:
        self.card, self.name, self.device = card, name, device
        self.max_batch: int | None = largest
        self.about = {} if about is None else about
        self.slots: list[TensorRtSlot] = []
        signature = Signature("image", "probability", card.input_size, smallest=1, largest=largest)
        try:
            for _ in range(depth):
                with device.errors(f"prepare {name}"), device.current():
                    context = make_context()
                    self.slots.append(TensorRtSlot(device, context, signature, record=False, refused=self._refused))
        except BaseException:
            self.close()
            raise
        self._pool = SlotPool(self.slots)

    def _refused(self, problem: str) -> ModelError:
        return ModelError(f"{self.name} {problem}")

    @property
    def depth(self) -> int:
        """See `PipelinedRuntime.depth`."""
        return self._pool.depth

    def infer(self, images: UInt8Array) -> UInt8Array:
        """See `Runtime.infer`."""
        return self.collect(self.submit(images))

    def submit(self, images: UInt8Array) -> SlotTicket:
        """See `PipelinedRuntime.submit`."""
        check_batch(images, self.card, self.max_batch)
        return self._pool.submit(images)

    def collect(self, ticket: SlotTicket) -> UInt8Array:
        """See `PipelinedRuntime.collect`."""
        return self._pool.collect(ticket)

    def time(self, images: UInt8Array) -> Timing:
        """See `TensorRtRuntime.time`."""
        check_batch(images, self.card, self.max_batch)
        return self.slots[0].time(images)

    def lend_slots(self) -> AbstractContextManager[None]:
        """See `TensorRtRuntime.lend_slots`."""
        return self._pool.lend()

    def close(self) -> None:
        """See `Runtime.close`."""
        slots, self.slots = self.slots, []
        if slots:
            SlotPool(slots).free()

    def __enter__(self) -> SlotRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
