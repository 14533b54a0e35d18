"""Several batches in flight: while one computes, the next is copied in and the one before is copied out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol, TypeVar

from isicrt.engine.errors import ModelError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.runtime import PipelinedRuntime, Runtime, Ticket

K = TypeVar("K")


class Slot(Protocol):
    """Room for one batch: its buffers, and what computes in them. Slots do not share anything that moves."""

    def start(self, images: UInt8Array) -> None:
        """Copy the images and begin; returns before the result is there. After an error nothing is under way."""
        ...

    def finish(self) -> UInt8Array:
        """Wait for the batch that was started. The array is the caller's to keep."""
        ...

    def free(self) -> None:
        """Wait for what is under way, whatever becomes of it, and give the memory back. May be called twice."""
        ...


@dataclass(eq=False)
class SlotTicket:
    """A batch in a slot; None once it was collected."""

    slot: Slot | None


class SlotPool:
    """Hands batches to free slots and gives back their results. Not thread-safe, as a runtime is not.

    Args:
        slots: at least one.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = list(slots)
        self._free = deque(self._slots)
        self._lent = False

    @property
    def depth(self) -> int:
        """Batches that may be in flight."""
        return len(self._slots)

    @property
    def busy(self) -> bool:
        """Whether a batch is in flight."""
        return len(self._free) < len(self._slots)

    def submit(self, images: UInt8Array) -> SlotTicket:
        """Begin a batch in a free slot. The caller may write over `images` at once.

        Raises:
            RuntimeError: every slot has a batch that was not collected.
            ModelError: the slots are lent.
        """
        self.require_unlent()
        if not self._free:
            raise RuntimeError(f"{self.depth} batches are in flight already: collect one first")
        # Taken from the front and put back at the end: a slot rests as long as it can.
        slot = self._free.popleft()
        try:
            slot.start(images)
        except BaseException:
            self._free.append(slot)
            raise
        return SlotTicket(slot)

    def collect(self, ticket: SlotTicket) -> UInt8Array:
        """Wait for a batch. The slot is free afterwards, whatever happened.

        Raises:
            RuntimeError: it was collected before.
        """
        slot, ticket.slot = ticket.slot, None
        if slot is None:
            raise RuntimeError("this batch was collected already")
        try:
            return slot.finish()
        finally:
            self._free.append(slot)

    @contextmanager
    def lend(self) -> Iterator[None]:
        """Let somebody use the slots by other ways; until the end no batch is taken here, which would meet his there.

        Raises:
            RuntimeError: batches are in flight.
            ModelError: the slots are lent already.
        """
        self.require_unlent()
        if self.busy:
            raise RuntimeError("collect the batches in flight first: they are in the slots")
        self._lent = True
        try:
            yield
        finally:
            self._lent = False

    def require_unlent(self) -> None:
        """Raise ModelError while the slots are lent."""
        if self._lent:
            raise ModelError(
                "this model's place on the GPU is taken by a run that decodes images there (a GpuChain). Use the model "
                "when that has ended, or open it a second time for what is to be done meanwhile"
            )

    def free(self) -> None:
        """Free every slot, also when one of them fails; the first error is raised at the end."""
        problem: Exception | None = None
        for slot in self._slots:
            try:
                slot.free()
            except Exception as error:
                problem = problem or error
        if problem is not None:
            raise problem


def infer_batches(runtime: Runtime, batches: Iterable[tuple[K, UInt8Array]]) -> Iterator[tuple[K, UInt8Array]]:
    """Segment batches in order, with as many in flight as the runtime takes; one at a time on one that takes no more.

    Results come in the order of the batches. A batch's array may be written over as soon as the next batch is asked
    for. If a batch fails, or the iterator is dropped, those behind it are waited for and thrown away.

    Args:
        runtime: used by this iterator alone until it ends.
        batches: a key of the caller's, and images as `Runtime.infer` takes them.

    Raises:
        ModelError: as `Runtime.infer`.
    """
    if not isinstance(runtime, PipelinedRuntime):
        for key, images in batches:
            yield key, runtime.infer(images)
        return
    pending: deque[tuple[K, Ticket]] = deque()
    try:
        for key, images in batches:
            if len(pending) == runtime.depth:
                first, ticket = pending.popleft()
                yield first, runtime.collect(ticket)
            pending.append((key, runtime.submit(images)))
        while pending:
            first, ticket = pending.popleft()
            yield first, runtime.collect(ticket)
    finally:
        while pending:
            with suppress(Exception):
                runtime.collect(pending.popleft()[1])
