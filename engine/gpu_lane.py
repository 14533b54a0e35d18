"""What one batch of the GPU chain has for itself: its images, and the memory beside the network's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isicrt.engine.errors import ImageError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.gpu_batch import ChainImage, PackedMask
from isicrt.engine.gpu_decode import DeviceImage
from isicrt.engine.gpu_scratch import GrowingMemory, GrowingPinned
from isicrt.engine.gpu_tables import Table
from isicrt.engine.outcome import DecodeCounts


@dataclass
class Row:
    """One image of a batch."""

    image: ChainImage
    pixels: UInt8Array | None
    """At the network's size, where the CPU decoded it."""
    on_gpu: bool = False
    """Whether the GPU decoded it."""
    error: ImageError | None = None
    offset: int = 0
    """Of the packed mask, in bytes."""

    @property
    def packed_shape(self) -> tuple[int, int]:
        height, width = (0, 0) if self.error is not None else self.image.native_size
        return height, -(-width // 8)


def count_decoded(rows: Sequence[Row]) -> DecodeCounts:
    """Where the images of a batch were decoded. Those that could not be count nowhere."""
    fine = [row for row in rows if row.error is None]
    on_cpu = [row for row in fine if not row.on_gpu]
    refused = sum(row.image.source is not None for row in on_cpu)
    return DecodeCounts(len(fine) - len(on_cpu), len(on_cpu), refused)


@dataclass(eq=False)
class ChainTicket:
    """A batch in flight."""

    lane: Lane | None
    rows: list[Row]
    held: list[DeviceImage] = field(default_factory=list)
    """Decoded images, until the stream has read them."""
    queued: Future[None] = field(default_factory=Future)
    """Done when all of it is on the stream; its error says why not."""

    def release(self) -> None:
        """Give the decoded images back. Their stream has come to rest, and is still there."""
        for image in self.held:
            image.release()
        self.held.clear()


@dataclass(frozen=True)
class DeviceTable:
    """A table in device memory."""

    address: int
    rows: int
    row_bytes: int

    def row(self, index: int) -> int:
        """The address of a row."""
        return self.address + index * self.row_bytes


class Lane:
    """A slot of the runtime with the memory that its batch needs beside it."""

    def __init__(self, device: Any, slot: Any) -> None:
        self.slot = slot
        self.between = GrowingMemory(device)
        self._tables = GrowingMemory(device)
        self._host_tables = GrowingPinned(device)
        self.weights = GrowingMemory(device)
        self.packed = GrowingMemory(device)
        self.masks = GrowingPinned(device)
        self.uploads = GrowingPinned(device)
        # Whoever waits sleeps: the CPU's cores have images to read and masks to write.
        self.done = device.cuda.Event(device.cuda.event_flags.DISABLE_TIMING | device.cuda.event_flags.BLOCKING_SYNC)

    def upload_tables(self, *tables: Table) -> list[DeviceTable]:
        """Copy tables to the device, one behind the other; returns before it is done."""
        size = sum(table.nbytes for table in tables)
        host, address = self._host_tables.at_least(size), self._tables.at_least(size)
        found, offset = [], 0
        for table in tables:
            host[offset : offset + table.nbytes] = np.ascontiguousarray(table).view(np.uint8).ravel()
            found.append(DeviceTable(address + offset, len(table), table.itemsize * table.shape[1]))
            offset += table.nbytes
        if size:  # the driver does not say what a copy of nothing is
            self._host_tables.upload(host[:size], address, self.slot.stream)
        return found

    def results(self, rows: Sequence[Row]) -> list[PackedMask | ImageError]:
        """A mask for each row, or its error, once `done` has come.

        The masks are views into one copy, since the lane's next batch writes there: each copy gives Python's lock away.
        """
        end = max((row.offset + math.prod(row.packed_shape) for row in rows), default=0)
        copy = np.array(self.masks.host[:end])
        found: list[PackedMask | ImageError] = []
        for row in rows:
            height, width = row.packed_shape
            bits = copy[row.offset : row.offset + height * width].reshape(height, width)
            found.append(row.error or PackedMask(bits, row.image.native_size))
        return found

    def free(self, device: Any) -> None:
        """Wait for what is under way and give all of the memory back, also where some of it cannot be."""
        with ExitStack() as steps:
            device_only = self.between, self.weights, self.packed, self._tables
            for memory in (*device_only, self.masks, self.uploads, self._host_tables):
                steps.callback(memory.free)
            steps.callback(setattr, self, "done", None)
            with suppress(device.cuda.Error):
                self.slot.stream.synchronize()
