"""Images into masks on the GPU: decode, resize, network, upsample, threshold and pack, without a way back between.

What comes from the host is the compressed file, and what returns is a mask of one bit a pixel, which is cleaned on the
CPU as everywhere (`PackedMask.clean`). A file that is not an ordinary JPEG is decoded on the CPU and uploaded at the
network's size; so is one that the GPU's decoder refuses. One that cannot be read at all costs itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from isicrt.engine.card import ModelCard
from isicrt.engine.cores import available_cores
from isicrt.engine.errors import ImageError, ModelError, SettingsError
from isicrt.engine.geometry import cutoff
from isicrt.engine.gpu_batch import ChainImage, PackedMask, SourceView, read_chain_image, within_bounds
from isicrt.engine.gpu_decode import HARDWARE_LOAD, DeviceImage, GpuDecoder
from isicrt.engine.gpu_kernels import Grid, Kernels, cover
from isicrt.engine.gpu_lane import ChainTicket, Lane, Row, count_decoded
from isicrt.engine.gpu_tables import MapStack, ResizePlan, aligned, mask_table
from isicrt.engine.images import decode_source
from isicrt.engine.masks import Mask
from isicrt.engine.outcome import DecodeCounts
from isicrt.engine.runtime import Runtime
from isicrt.engine.tensorrt_runtime import TensorRtRuntime

_BLOCK = (32, 8)
_WEIGHTS_BLOCK = (128, 1)


class Launcher(Protocol):
    """What `isicrt.engine.gpu_kernels.Kernels` does."""

    def launch(self, name: str, grid: Grid, block: tuple[int, int], stream: Any, *arguments: Any) -> None: ...


class GpuChain:
    """See the module. Several batches may be in flight, as `depth` says. A thread of its own decodes and queues them,
    one after the other, so that the next is decoded while whoever collects waits, or hands on what he has.

    Args:
        runtime: an open `TensorRtRuntime`, closed by its owner, after this. Until then this has its slots, and it takes
            no batch from anybody else.
        threshold: in (0, 1); None for the model card's.
        hardware_load: see `GpuDecoder`.
        decoder, kernels: for tests; None for nvImageCodec and the GPU.
        cpu_threads: of nvImageCodec, and as many that decode what it refuses; None for one a core that may be used.

    Raises:
        SettingsError: the runtime is not TensorRT's, or a load outside 0..1.
        MissingDependencyError: nvImageCodec is not installed.
        ModelError: the kernels cannot be compiled, the GPU decodes no JPEG, its memory does not suffice, or another
            chain has the runtime's slots.
        RuntimeError: the runtime has batches in flight.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        threshold: float | None = None,
        hardware_load: float = HARDWARE_LOAD,
        decoder: GpuDecoder | None = None,
        kernels: Launcher | None = None,
        cpu_threads: int | None = None,
    ) -> None:
        if decoder is None and not isinstance(runtime, TensorRtRuntime):
            raise SettingsError(f"decoding on the GPU needs a .plan: {runtime.name} runs on the CPU")
        opened: Any = runtime
        self._device = opened.device
        self.card: ModelCard = runtime.card
        """The model's."""
        self.largest: int = runtime.max_batch or 1
        """Images of a batch, at most."""
        self.threshold = self.card.threshold if threshold is None else threshold
        """In (0, 1); of the masks."""
        self._cutoff = cutoff(self.threshold)
        self.decoded = DecodeCounts()
        """Where the images of all batches so far were decoded."""
        self._lock = threading.Lock()  # of what follows; who closes it need not be who uses it
        self._lanes: list[Lane] = []
        self._free: list[Lane] = []
        self._in_flight: list[ChainTicket] = []
        self._collecting = threading.Lock()  # while a batch is waited for, its lane must stay
        with ExitStack() as lent, self._device.errors("prepare decoding on the GPU"), self._device.current():
            lent.enter_context(opened.lend_slots())
            self._kernels: Launcher | None = kernels or Kernels(self._device)
            chosen = decoder
            try:
                chosen = chosen or GpuDecoder(self._device.index, hardware_load=hardware_load, cpu_threads=cpu_threads)
                for slot in opened.slots:
                    self._lanes.append(Lane(self._device, slot))
                chosen.check(opened.slots[0].stream.handle)
                opened.slots[0].stream.synchronize()
            except BaseException:
                if chosen is not None:
                    chosen.close()
                self._lanes.clear()  # PyCUDA's objects go while their context is current
                self._kernels = None
                raise
            self._decoder = chosen
            self._lent = lent.pop_all()
        self._free = list(self._lanes)
        self._threads = ThreadPoolExecutor(cpu_threads or available_cores(), thread_name_prefix="gpu-chain")
        self._queueing = ThreadPoolExecutor(1, thread_name_prefix="gpu-queue")

    @property
    def depth(self) -> int:
        """Batches that may be in flight."""
        return len(self._lanes)

    def segment_files(self, files: Sequence[Path]) -> list[Mask | ImageError]:
        """Masks of image files, bool H x W, in their order; an image that cannot be read gives its error.

        Raises:
            ModelError: the device failed.
        """
        return list(self.masks_of(files))

    def masks_of(self, files: Sequence[Path]) -> Iterator[Mask | ImageError]:
        """As `segment_files`, which it has done when it returns; but a mask has its eight bits a pixel only while it is
        looked at."""
        masks: list[PackedMask | ImageError | None] = [None] * len(files)
        tickets: list[tuple[list[int], ChainTicket]] = []

        def collect() -> None:
            places, ticket = tickets.pop(0)
            for place, found in zip(places, self.collect(ticket), strict=True):
                masks[place] = found

        try:
            for start in range(0, len(files), self.largest):
                places, images = [], []
                for place, image in enumerate(self._threads.map(self._read, files[start : start + self.largest])):
                    if isinstance(image, ImageError):
                        masks[start + place] = image
                    else:
                        places.append(start + place)
                        images.append(image)
                for part in within_bounds(images):
                    if len(tickets) == self.depth:
                        collect()
                    tickets.append((places[: len(part)], self.submit(part)))
                    places = places[len(part) :]
            while tickets:
                collect()
        finally:
            for _, ticket in tickets:
                with suppress(Exception):
                    self.collect(ticket)
        return (mask if isinstance(mask, ImageError) else self._clean(mask) for mask in masks if mask is not None)

    def _read(self, file: Path) -> ChainImage | ImageError:
        try:
            return read_chain_image(file, self.card.input_size)
        except ImageError as error:
            return error

    def _clean(self, mask: PackedMask) -> Mask:
        return mask.clean(**self.card.clean_up).whole()

    def submit(self, images: Sequence[ChainImage]) -> ChainTicket:
        """Begin a batch of at most the runtime's `max_batch` images, and return at once.

        Raises:
            ModelError: the batch is too large, or the chain is closed.
            RuntimeError: `depth` batches are in flight.
        """
        if not 0 < len(images) <= self.largest:
            raise ModelError(f"batches of 1 to {self.largest} images are taken, not {len(images)}")
        with self._lock:
            if not self._lanes:
                raise ModelError("decoding on the GPU is closed")
            if not self._free:
                raise RuntimeError(f"{self.depth} batches are in flight already: collect one first")
            lane = self._free.pop(0)
            ticket = ChainTicket(lane, [Row(image, image.pixels) for image in images])
            ticket.queued = self._queueing.submit(self._begin, lane, ticket)
            self._in_flight.append(ticket)
        return ticket

    def _begin(self, lane: Lane, ticket: ChainTicket) -> None:
        with self._device.errors(f"segment a batch of {len(ticket.rows)}"), self._device.current():
            try:
                self._queue(lane, ticket)
            except BaseException:
                with suppress(self._device.cuda.Error):
                    lane.slot.stream.synchronize()
                ticket.release()
                raise
        self.decoded += count_decoded(ticket.rows)

    def collect(self, ticket: ChainTicket) -> list[PackedMask | ImageError]:
        """Wait for a batch: a mask for each of its images, or why it has none, in their order.

        A Ctrl-C meanwhile comes out when the batch has come to rest; a second one at once, and `close` waits then.

        Raises:
            ModelError: the device failed, or the chain was closed meanwhile.
            RuntimeError: it was collected before.
        """
        with self._collecting:
            with self._lock:
                lane = ticket.lane
                if lane is None:
                    raise RuntimeError("this batch was collected already")
                if ticket not in self._in_flight:
                    raise ModelError("decoding on the GPU is closed")
            try:
                ticket.queued.result()
                with self._device.errors(f"segment a batch of {len(ticket.rows)}"), self._device.current():
                    lane.done.synchronize()
                found = lane.results(ticket.rows)
            except BaseException:
                # It may still be decoded, or computed, and use the lane and the images.
                wait([ticket.queued])
                with self._device.current(), suppress(self._device.cuda.Error):
                    lane.slot.stream.synchronize()
                self._give_back(lane, ticket)
                raise
            self._give_back(lane, ticket)
            return found

    def _give_back(self, lane: Lane, ticket: ChainTicket) -> None:
        """Of a batch that has come to rest."""
        with self._device.current():
            ticket.release()
        with self._lock:
            self._in_flight.remove(ticket)
            ticket.lane = None
            self._free.append(lane)

    def _decode_on_cpu(self, rows: Sequence[Row]) -> None:
        """What the GPU's decoder has refused, from the bytes that were read."""

        def decode(row: Row) -> None:
            source = row.image.source
            assert source is not None
            try:
                whole = source.whole() if isinstance(source, SourceView) else source
                decoded = decode_source(row.image.path, whole, self.card.input_size)
            except ImageError as error:
                row.error = error
            else:
                row.pixels = decoded.pixels

        list(self._threads.map(decode, rows))

    def _queue(self, lane: Lane, ticket: ChainTicket) -> None:
        rows, slot = ticket.rows, lane.slot
        given = [(n, row.image.source) for n, row in enumerate(rows) if row.image.source is not None]
        images = self._decoder.decode([source.data for _, source in given], slot.stream.handle)
        ticket.held += [image for image in images if image is not None]
        decoded: dict[int, DeviceImage] = {}
        for (index, _), image in zip(given, images, strict=True):
            if image is not None and image.size == rows[index].image.native_size:
                decoded[index] = image
                rows[index].on_gpu = True
        self._decode_on_cpu([rows[index] for index, _ in given if index not in decoded])
        self._upload(lane, [n for n in range(len(rows)) if n not in decoded], rows)
        total = 0
        for row in rows:
            row.offset = total
            total += aligned(row.packed_shape[0] * row.packed_shape[1])
        self._resize_and_infer(lane, rows, ResizePlan(decoded, self.card.input_size), total)
        if total:
            lane.masks.download(lane.packed.at_least(total), total, slot.stream)
        lane.done.record(slot.stream)

    def _resize_and_infer(self, lane: Lane, rows: list[Row], plan: ResizePlan, mask_bytes: int) -> None:
        slot, (h, w) = lane.slot, self.card.input_size
        weights, between = lane.weights.at_least(plan.weight_bytes), lane.between.at_least(plan.between_bytes)
        masks = {n: row.image.native_size for n, row in enumerate(rows) if row.error is None}
        packed = lane.packed.at_least(mask_bytes)
        axes, images, restored = lane.upload_tables(
            plan.axes(weights),
            plan.images(weights, between, slot.input_address),
            mask_table(masks, [row.offset for row in rows], packed, MapStack(slot.output_address, (h, w))),
        )
        launch = self._launch
        if plan.parts:
            grid = cover(max(h, w), 1, axes.rows, _WEIGHTS_BLOCK)
            launch("triangle_weights", grid, _WEIGHTS_BLOCK, slot.stream, axes.address)
        for part in plan.parts:
            table = images.row(part.first)
            grid = cover(w, part.tallest, part.images, _BLOCK)
            launch("resize_rows", grid, _BLOCK, slot.stream, table, w)
            grid = cover(3 * w, h, part.images, _BLOCK)
            launch("resize_columns", grid, _BLOCK, slot.stream, table, w, h)
        slot.start_network(len(rows))
        if masks:
            height, width = (max(size[axis] for size in masks.values()) for axis in (0, 1))
            grid = cover(-(-width // 8), height, len(masks), _BLOCK)
            launch("restore_mask", grid, _BLOCK, slot.stream, restored.address, h, w, self._cutoff)

    def _upload(self, lane: Lane, indices: Sequence[int], rows: list[Row]) -> None:
        """Pixels of the CPU; black where there are none, so that a broken file's row is at least defined."""
        height, width = self.card.input_size
        image_bytes = height * width * 3
        host = lane.uploads.at_least(len(indices) * image_bytes)
        for place, index in enumerate(indices):
            pixels = rows[index].pixels
            host[place * image_bytes : (place + 1) * image_bytes] = 0 if pixels is None else pixels.ravel()
        first = 0
        while first < len(indices):  # neighbours in one copy
            after = first + 1
            while after < len(indices) and indices[after] - indices[first] == after - first:
                after += 1
            part = host[first * image_bytes : after * image_bytes]
            lane.uploads.upload(part, lane.slot.input_address + indices[first] * image_bytes, lane.slot.stream)
            first = after

    def _launch(self, name: str, grid: Grid, block: tuple[int, int], stream: Any, *arguments: Any) -> None:
        assert self._kernels is not None
        self._kernels.launch(name, grid, block, stream, *arguments)

    def close(self) -> None:
        """Wait for what is in flight and give the memory back; the runtime stays open. May be called twice.

        Raises:
            ModelError: the device failed. All that could be given back was.
        """
        with self._collecting, self._device.errors("close decoding on the GPU"), ExitStack() as steps:
            with self._lock:
                lanes, self._lanes, self._free = self._lanes, [], []
                tickets, self._in_flight = self._in_flight, []
            # Called from the last to the first, each of them whatever becomes of the others, Ctrl-C in one included.
            steps.callback(self._lent.close)
            steps.callback(self._threads.shutdown)
            steps.callback(self._release, tickets, lanes)
            steps.callback(self._queueing.shutdown)  # after Ctrl-C in the next: no batch may use what goes
            steps.callback(self._queueing.shutdown, cancel_futures=True)

    def _release(self, tickets: Sequence[ChainTicket], lanes: Sequence[Lane]) -> None:
        with self._device.current(), ExitStack() as steps:
            steps.callback(self._forget)
            steps.callback(self._decoder.close)
            # Before the runtime's streams go: nvImageCodec frees an image on the stream that it was decoded for.
            for ticket in tickets:
                steps.callback(ticket.release)
            for lane in lanes:
                steps.callback(lane.free, self._device)

    def _forget(self) -> None:
        # PyCUDA unloads them, which it cannot where their context is not current.
        self._kernels = None

    def __enter__(self) -> GpuChain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(Exception) if kind is not None else nullcontext():  # what went wrong first is what matters
            self.close()
