"""Image files into masks on the GPU: decode, resize, network, upsample, threshold and pack, without a way back between.

What comes from the host is the compressed file, and what returns is a mask of one bit a pixel. The largest component is
kept and holes are filled on the CPU, on the mask, as everywhere. A file that is not an ordinary JPEG is decoded on the
CPU and uploaded at the network's size; one that cannot be read costs itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from isicrt.engine.card import ModelCard
from isicrt.engine.errors import ImageError, ModelError, SettingsError
from isicrt.engine.geometry import UInt8Array, cutoff
from isicrt.engine.gpu_decode import DeviceImage, GpuDecoder, suits_gpu
from isicrt.engine.gpu_kernels import Kernels, cover, linear_scale, taps
from isicrt.engine.gpu_scratch import GrowingMemory, GrowingPinned
from isicrt.engine.images import decode_image
from isicrt.engine.masks import Mask, restore_mask
from isicrt.engine.runtime import Runtime
from isicrt.engine.tensorrt_runtime import TensorRtRuntime

_BLOCK = (32, 8)
_ALIGNMENT = 256


class Launcher(Protocol):
    """What `isicrt.engine.gpu_kernels.Kernels` does."""

    def launch(
        self, name: str, grid: tuple[int, int], block: tuple[int, int], stream: Any, *arguments: Any
    ) -> None: ...


@dataclass
class _Row:
    """One file of a batch."""

    native_size: tuple[int, int] | None = None
    error: ImageError | None = None
    pixels: UInt8Array | None = None
    """At the network's size, where the CPU decoded it."""
    offset: int = 0
    """Of the packed mask, in bytes."""

    @property
    def packed_shape(self) -> tuple[int, int]:
        height, width = self.native_size or (0, 0)
        return height, -(-width // 8)


@dataclass(eq=False)
class ChainTicket:
    """A batch in flight."""

    lane: _Lane | None
    rows: list[_Row]
    held: list[DeviceImage] = field(default_factory=list)
    """Decoded images, until the stream has read them."""


class _Lane:
    """A slot of the runtime with the memory that its batch needs beside it."""

    def __init__(self, device: Any, slot: Any) -> None:
        self.slot = slot
        self.rows = GrowingMemory(device)
        self.weights = GrowingMemory(device)
        self.packed = GrowingMemory(device)
        self.masks = GrowingPinned(device)
        self.uploads = GrowingPinned(device)
        self.done = device.cuda.Event(device.cuda.event_flags.DISABLE_TIMING)

    def free(self, device: Any) -> None:
        with suppress(device.cuda.Error):
            self.slot.stream.synchronize()
        for memory in (self.rows, self.weights, self.packed, self.masks, self.uploads):
            memory.free()
        self.done = None


class GpuChain:
    """See the module. Several batches may be in flight, as `depth` says. One thread at a time.

    Args:
        runtime: an open `TensorRtRuntime`, used by nobody else meanwhile and closed by its owner.
        threshold: in (0, 1); None for the model card's.
        decoder, kernels: for tests; None for nvImageCodec and the GPU.
        cpu_threads: that decode what the GPU does not.

    Raises:
        SettingsError: the runtime is not TensorRT's.
        MissingDependencyError: nvImageCodec is not installed.
        ModelError: the kernels cannot be compiled, or the GPU's memory does not suffice.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        threshold: float | None = None,
        decoder: GpuDecoder | None = None,
        kernels: Launcher | None = None,
        cpu_threads: int = 2,
    ) -> None:
        if decoder is None and not isinstance(runtime, TensorRtRuntime):
            raise SettingsError(f"--decode gpu needs a .plan; {runtime.name} runs on the CPU and decodes there")
        opened: Any = runtime
        self._device = opened.device
        self._card: ModelCard = runtime.card
        self._largest: int = runtime.max_batch or 1
        self._cutoff = cutoff(self._card.threshold if threshold is None else threshold)
        self._lanes: list[_Lane] = []
        self._free: list[_Lane] = []
        self._threads = ThreadPoolExecutor(cpu_threads, thread_name_prefix="isicrt-gpu-fallback")
        with self._device.errors("prepare decoding on the GPU"), self._device.current():
            self._decoder = decoder or GpuDecoder()
            self._kernels = kernels or Kernels(self._device)
            self._lanes = [_Lane(self._device, slot) for slot in opened.slots]
        self._free = list(self._lanes)

    @property
    def depth(self) -> int:
        """Batches that may be in flight."""
        return len(self._lanes)

    def segment_files(self, files: Sequence[Path]) -> list[Mask | ImageError]:
        """Masks of image files, bool H x W, in their order; an image that cannot be read gives its error.

        Raises:
            ModelError: the device failed.
        """
        tickets: list[ChainTicket] = []
        masks: list[Mask | ImageError] = []
        for start in range(0, len(files), self._largest):
            if len(tickets) == self.depth:
                masks += self.collect(tickets.pop(0))
            tickets.append(self.submit(files[start : start + self._largest]))
        for ticket in tickets:
            masks += self.collect(ticket)
        return masks

    def submit(self, files: Sequence[Path]) -> ChainTicket:
        """Begin a batch of at most the runtime's `max_batch` files; the GPU goes on when this returns.

        Raises:
            ModelError: the device failed, or the batch is too large.
            RuntimeError: `depth` batches are in flight.
        """
        if not 0 < len(files) <= self._largest:
            raise ModelError(f"batches of 1 to {self._largest} files are taken, not {len(files)}")
        if not self._free:
            raise RuntimeError(f"{self.depth} batches are in flight already: collect one first")
        contents, rows = self._read(files)
        lane = self._free.pop(0)
        ticket = ChainTicket(lane, rows)
        try:
            with self._device.errors(f"segment a batch of {len(files)}"), self._device.current():
                self._queue(lane, ticket, files, contents)
        except BaseException:
            with self._device.current(), suppress(self._device.cuda.Error):
                lane.slot.stream.synchronize()
            self._free.append(lane)
            raise
        return ticket

    def collect(self, ticket: ChainTicket) -> list[Mask | ImageError]:
        """Wait for a batch, and clean its masks. Raises as `segment_files`, and RuntimeError the second time."""
        lane, ticket.lane = ticket.lane, None
        if lane is None:
            raise RuntimeError("this batch was collected already")
        try:
            with self._device.errors(f"segment a batch of {len(ticket.rows)}"), self._device.current():
                lane.done.synchronize()
                ticket.held.clear()
            return [row.error or self._clean(lane, row) for row in ticket.rows]
        finally:
            self._free.append(lane)

    def _read(self, files: Sequence[Path]) -> tuple[dict[int, bytes], list[_Row]]:
        """What the GPU shall decode, by index; the rest is decoded, or has its error, already."""
        rows = [_Row() for _ in files]
        contents: dict[int, bytes] = {}
        for index, file in enumerate(files):
            try:
                data = file.read_bytes() if file.is_file() else b""
            except OSError:  # the CPU's decoder will say it
                data = b""
            rows[index].native_size = suits_gpu(data)
            if rows[index].native_size is not None:
                contents[index] = data
        self._decode_on_cpu(files, rows, [n for n in range(len(files)) if n not in contents])
        return contents, rows

    def _decode_on_cpu(self, files: Sequence[Path], rows: list[_Row], indices: Sequence[int]) -> None:
        def decode(index: int) -> None:
            try:
                decoded = decode_image(files[index], self._card.input_size)
            except ImageError as error:
                rows[index].error, rows[index].native_size = error, None
            else:
                rows[index].pixels, rows[index].native_size = decoded.pixels, decoded.native_size

        list(self._threads.map(decode, indices))

    def _queue(self, lane: _Lane, ticket: ChainTicket, files: Sequence[Path], contents: dict[int, bytes]) -> None:
        rows, slot = ticket.rows, lane.slot
        images = self._decoder.decode(list(contents.values()), slot.stream.handle)
        by_row = {
            index: image
            for index, image in zip(contents, images, strict=True)
            if image is not None and image.size == rows[index].native_size
        }
        ticket.held += [image for image in images if image is not None]
        self._decode_on_cpu(files, rows, [index for index in contents if index not in by_row])
        height, width = self._card.input_size
        image_bytes = height * width * 3
        self._upload(lane, rows, image_bytes)
        scratch_rows = max((image.size[0] for image in by_row.values()), default=0)
        weights = max((self._table_bytes(image.size) for image in by_row.values()), default=0)
        tall, tables = lane.rows.at_least(scratch_rows * width * 3), lane.weights.at_least(weights)
        for index, image in by_row.items():
            self._resize(slot.stream, image, tall, tables, slot.input_address + index * image_bytes)
        slot.start_network(len(rows))
        total = 0
        for row in rows:
            row.offset = total
            size = row.packed_shape[0] * row.packed_shape[1]
            total += -(-size // _ALIGNMENT) * _ALIGNMENT
        packed = lane.packed.at_least(total)
        for index, row in enumerate(rows):
            if row.native_size is not None:
                self._restore(slot, index, row.native_size, packed + row.offset)
        if total:
            lane.masks.download(packed, total, slot.stream)
        lane.done.record(slot.stream)

    def _upload(self, lane: _Lane, rows: list[_Row], image_bytes: int) -> None:
        """Pixels of the CPU; black where there are none, so that a broken file's row is at least defined."""
        given = [index for index, row in enumerate(rows) if row.pixels is not None or row.error is not None]
        host = lane.uploads.at_least(len(given) * image_bytes)
        for place, index in enumerate(given):
            pixels = rows[index].pixels
            part = host[place * image_bytes : (place + 1) * image_bytes]
            part[:] = 0 if pixels is None else pixels.ravel()
            target = lane.slot.input_address + index * image_bytes
            lane.uploads.upload(part, target, lane.slot.stream)

    def _table_bytes(self, size: tuple[int, int]) -> int:
        (height, width), (h, w) = size, self._card.input_size
        return 4 * (h * (2 + taps(height, h)) + w * (2 + taps(width, w)))

    def _resize(self, stream: Any, image: DeviceImage, tall: int, tables: int, target: int) -> None:
        (height, width), (h, w) = image.size, self._card.input_size
        tables, across = self._weigh(stream, width, w, tables)
        _, down = self._weigh(stream, height, h, tables)
        launch = self._kernels.launch
        grid = cover(w, height, _BLOCK)
        launch(
            "resize_rows", grid, _BLOCK, stream, image.address, image.pitch, height, w, taps(width, w), *across, tall
        )
        grid = cover(3 * w, h, _BLOCK)
        launch("resize_columns", grid, _BLOCK, stream, tall, 3 * w, h, taps(height, h), *down, target)

    def _weigh(self, stream: Any, size_in: int, size_out: int, memory: int) -> tuple[int, tuple[int, int, int]]:
        """The tables of one axis, laid into `memory`; where they end, and their addresses."""
        count = taps(size_in, size_out)
        tables = memory, memory + 4 * size_out, memory + 8 * size_out
        grid = -(-size_out // 128), 1
        self._kernels.launch("triangle_weights", grid, (128, 1), stream, size_in, size_out, count, *tables)
        return memory + 4 * size_out * (2 + count), tables

    def _restore(self, slot: Any, index: int, size: tuple[int, int], target: int) -> None:
        (height, width), (h, w) = size, self._card.input_size
        grid = cover(-(-width // 8), height, _BLOCK)
        source = slot.output_address + index * h * w
        scales = linear_scale(h, height), linear_scale(w, width)
        arguments = (source, h, w, height, width, *scales, self._cutoff, target)
        self._kernels.launch("restore_mask", grid, _BLOCK, slot.stream, *arguments)

    def _clean(self, lane: _Lane, row: _Row) -> Mask:
        assert row.native_size is not None
        shape = row.packed_shape
        packed = lane.masks.host[row.offset : row.offset + shape[0] * shape[1]].reshape(shape)
        bits = np.unpackbits(packed, axis=1, count=row.native_size[1])
        # At its own size nothing is interpolated, and what is 255 is above any threshold.
        return restore_mask(
            bits * np.uint8(255),
            row.native_size,
            threshold=0.5,
            keep_largest=self._card.keep_largest,
            fill_holes=self._card.fill_holes,
        )

    def close(self) -> None:
        """Wait for what is in flight and give the memory back; the runtime stays open. May be called twice."""
        self._threads.shutdown()
        lanes, self._lanes, self._free = self._lanes, [], []
        with self._device.current():
            for lane in lanes:
                lane.free(self._device)
            self._decoder.close()

    def __enter__(self) -> GpuChain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
