"""Each stage of the GPU's way alone: read, decode, resize, network, restore and pack, write.

The stages on the GPU are the chain's own (`isicrt.engine.gpu_chain`), with what lies around the stage in question taken
out: a decoder that has decoded already, kernels that are not launched, a network that does nothing. So each runs as it
does in a run: batches of the same size, as many in flight, queued by one thread. In each figure are the copying of the
packed masks to the host and the chain's own bookkeeping, which no stage is without.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from isicrt.benchmarks.gpu_rates import rate
from isicrt.benchmarks.gpu_torch import SETTLE
from isicrt.benchmarks.rendered import render
from isicrt.engine.errors import ModelError
from isicrt.engine.finishing import Finishing
from isicrt.engine.gpu_batch import BATCH_PIXELS, ChainImage, PackedMask, read_chain_image
from isicrt.engine.gpu_chain import GpuChain, Launcher
from isicrt.engine.gpu_decode import HARDWARE_LOAD, DeviceImage, GpuDecoder
from isicrt.engine.gpu_kernels import NAMES, Grid, Kernels
from isicrt.engine.images import MAX_PIXELS, decode_image
from isicrt.engine.isolation import DECODE_TIMEOUT
from isicrt.engine.masks import restore_window, write_mask
from isicrt.engine.read_process import ReadAll, ReadProcess
from isicrt.engine.task_process import MOST_ON_GPU
from isicrt.engine.tensorrt_slot import PARTIAL_BATCHES
from isicrt.engine.write_process import WriteProcess

RESTORE = frozenset({"restore_mask"})
RESIZE = frozenset(NAMES) - RESTORE
"""Kernels, by stage."""


@dataclass(frozen=True)
class GpuParts:
    """What a chain is made of; tests bring other parts."""

    decoder: Callable[[Any, float], Any] = lambda device, load: GpuDecoder(device.index, hardware_load=load)
    """Of a device and the share of the hardware decoder."""
    kernels: Callable[[Any], Launcher] = Kernels


class HeldImages:
    """A decoder that has decoded already: the images of one batch, which every batch gets again."""

    def __init__(self, images: Sequence[DeviceImage]) -> None:
        self._images = list(images)

    def check(self, stream: int) -> None:
        """Nothing is decoded."""

    def decode(self, files: Sequence[bytes], stream: int) -> list[DeviceImage]:
        """Copies: the chain lets go of the image that it is given, and not of its pixels."""
        return [replace(image) for image in self._images[: len(files)]]

    def close(self) -> None:
        """The images are their owner's."""


class SomeKernels:
    """Launches the kernels of `names` and leaves the others out."""

    def __init__(self, kernels: Launcher | None, names: frozenset[str]) -> None:
        self._kernels, self._names = kernels, names

    def launch(self, name: str, grid: Grid, block: tuple[int, int], stream: Any, *arguments: Any) -> None:
        """See `Kernels.launch`."""
        if self._kernels is not None and name in self._names:
            self._kernels.launch(name, grid, block, stream, *arguments)


@contextmanager
def opened_chain(
    runtime: Any,
    parts: GpuParts,
    *,
    load: float = HARDWARE_LOAD,
    held: HeldImages | None = None,
    names: frozenset[str] = frozenset(NAMES),
) -> Iterator[GpuChain]:
    """A chain of `runtime`, which is a plan's or one of `gpu_slots`.

    Args:
        runtime: stays open.
        parts: what it is made of.
        load: share of the hardware decoder.
        held: decodes in its place.
        names: of the kernels that are launched.

    Raises:
        ModelError: as `GpuChain`; its decoder has decoded a few pixels before this returns.
    """
    with runtime.device.errors("prepare decoding on the GPU"), runtime.device.current():
        decoder: Any = held or parts.decoder(runtime.device, load)
        # Named nowhere else: PyCUDA unloads them when the chain lets go of them, while the context is current.
        kernels = SomeKernels(parts.kernels(runtime.device) if names else None, names)
        chain = GpuChain(runtime, decoder=decoder, kernels=kernels)
        del kernels
    with chain:
        yield chain


def batch_of(files: Sequence[Path], size: tuple[int, int], largest: int) -> list[ChainImage]:
    """A full batch of `files`, as decode threads hand it to the chain; of large images as many as it takes at once."""
    images = [read_chain_image(file, size) for file in files]
    height, width = images[0].native_size
    return list(islice(cycle(images), max(1, min(largest, BATCH_PIXELS // (height * width)))))


def settling_batches(chain: GpuChain, batch: int) -> int:
    """Batches of so many images after which every slot has its graph: recording one is no part of a rate."""
    before = SETTLE if batch == chain.largest else max(SETTLE, PARTIAL_BATCHES)
    return (before + 1) * chain.depth


def in_flight_figures(chain: GpuChain, images: Sequence[ChainImage], seconds: float) -> dict[str, Any]:
    """Images a second through a settled chain that always has as many batches in flight as it takes.

    Raises:
        ModelError: the GPU refused a JPEG, so that the figure would be the CPU's.
    """
    pending = deque(chain.submit(images) for _ in range(chain.depth))

    def work() -> int:
        found = chain.collect(pending.popleft())
        pending.append(chain.submit(images))
        return sum(isinstance(one, PackedMask) for one in found)

    try:
        for _ in range(settling_batches(chain, len(images))):
            work()
        figures = rate(work, seconds)
    finally:
        while pending:
            with suppress(Exception):
                chain.collect(pending.popleft())
    if chain.decoded.refused:
        raise ModelError(f"the GPU refused {chain.decoded.refused} of the JPEGs, and the CPU decoded them")
    return figures | {"batch": len(images), "in_flight": chain.depth}


def chain_figures(runtime: Any, files: Sequence[Path], seconds: float, parts: GpuParts) -> dict[str, Any]:
    """All that the GPU does, together: what end to end is without reading and writing."""
    images = batch_of(files, runtime.card.input_size, runtime.max_batch)
    with opened_chain(runtime, parts) as chain:
        return in_flight_figures(chain, images, seconds)


def gpu_decode_figures(
    runtime: Any, files: Sequence[Path], seconds: float, parts: GpuParts, load: float = HARDWARE_LOAD
) -> dict[str, Any]:
    """Decode at full size, on a runtime whose network does nothing."""
    images = batch_of(files, runtime.card.input_size, runtime.max_batch)
    with opened_chain(runtime, parts, load=load, names=frozenset()) as chain:
        return in_flight_figures(chain, images, seconds)


def held_figures(
    runtime: Any, files: Sequence[Path], seconds: float, parts: GpuParts, names: frozenset[str]
) -> dict[str, Any]:
    """What is behind the decoder, with images that lie on the GPU already.

    Args:
        runtime: of `IdleContext` for kernels alone, or with a network.
        files: one batch of them is decoded, and held.
        seconds: of each repeat.
        parts: of the chain.
        names: the kernels that are launched: `RESIZE`, `RESTORE`, or none for the network alone.
    """
    images = batch_of(files, runtime.card.input_size, runtime.max_batch)
    device, stream = runtime.device, runtime.slots[0].stream
    contents = [image.source.data for image in images if image.source is not None]
    with device.errors("decode a batch"), device.current():
        decoder = parts.decoder(device, HARDWARE_LOAD)
        decoder.check(stream.handle)
        # All of them, not each file once: what is read again and again would come from the GPU's cache.
        found = decoder.decode(contents, stream.handle)
        stream.synchronize()
    kept = [image for image in found if image is not None]
    try:
        if len(kept) < len(images):
            raise ModelError(f"the GPU decoded {len(kept)} of {len(images)} JPEGs")
        with opened_chain(runtime, parts, held=HeldImages(kept), names=names) as chain:
            return in_flight_figures(chain, images, seconds)
    finally:
        with device.current():
            for image in kept:
                image.release()
            decoder.close()


def read_figures(files: Sequence[Path], size: tuple[int, int], seconds: float, threads: int) -> dict[str, Any]:
    """What decode threads do for the chain: read a file, take its CRC, look at its header."""
    with ThreadPoolExecutor(threads) as pool:

        def work() -> int:
            return len(list(pool.map(lambda file: read_chain_image(file, size), files)))

        return rate(work, seconds) | {"threads": threads}


def process_read_figures(files: Sequence[Path], seconds: float, processes: int) -> dict[str, Any]:
    """The same in processes, as many files in a message as in a run.

    Raises:
        ModelError: a process left files unread.
    """
    endless = cycle(files)
    parts = [list(islice(endless, MOST_ON_GPU)) for _ in range(4)]

    def some(process: ReadProcess) -> int:
        for part in parts:
            if None in process.read(part):
                raise ModelError(f"files were not read, or are not for the GPU: {part[0]} and those after it")
        return sum(map(len, parts))

    with ExitStack() as stack:
        workers = [ReadProcess(ReadAll(MAX_PIXELS, 0.0), DECODE_TIMEOUT, start_after=0) for _ in range(processes)]
        for worker in workers:
            stack.callback(worker.close)
        pool = stack.enter_context(ThreadPoolExecutor(processes))
        return rate(lambda: sum(pool.map(some, workers)), seconds) | {"processes": processes}


def cpu_decode_figures(files: Sequence[Path], size: tuple[int, int], seconds: float, threads: int) -> dict[str, Any]:
    """Decode and resize on CPU threads."""
    with ThreadPoolExecutor(threads) as pool:

        def work() -> int:
            return len(list(pool.map(partial(decode_image, size=size), files)))

        return rate(work, seconds) | {"threads": threads}


def write_figures(native: tuple[int, int], folder: Path, seconds: float, threads: int) -> dict[str, Any]:
    """What write threads do behind the chain: from a packed mask to a PNG file.

    Args:
        native: (height, width) in pixels.
        folder: exists, and is deleted by the caller when everything has been measured (see `benchmarks.scratch`).
        seconds: of each repeat.
        threads: that write.
    """
    masks = [np.asarray(_rendered_mask(n).resize(native[::-1])) > 127 for n in range(8)]
    packed = [PackedMask(np.packbits(mask, axis=1), native) for mask in masks]
    names = count()

    def one(mask: PackedMask) -> None:
        write_mask(mask.clean(keep_largest=True, fill_holes=True), folder / f"{next(names)}.png")

    return _pooled(partial(_each, one, packed), seconds, threads)


def process_write_figures(native: tuple[int, int], folder: Path, seconds: float, processes: int) -> dict[str, Any]:
    """The same in processes, as many masks in a message as in a run. Arguments as of `write_figures`.

    Raises:
        ModelError: a process left masks undone, or could not write one.
    """
    masks = [np.asarray(_rendered_mask(n).resize(native[::-1])) > 127 for n in range(MOST_ON_GPU)]
    packed = [PackedMask(np.packbits(mask, axis=1), native) for mask in masks]
    finishing = Finishing(0.5, keep_largest=True, fill_holes=True, mask_bits=1, output=None)
    names = count()

    def some(process: WriteProcess) -> int:
        for _ in range(4):
            finished = process.finish([(folder / f"{next(names)}.png", native, mask) for mask in packed])
            if wrong := [done for done in finished if done is None or done.problem is not None]:
                raise ModelError(f"masks were not written: {wrong[0]}")
        return 4 * len(packed)

    with ExitStack() as stack:
        workers = [WriteProcess(finishing, start_after=0) for _ in range(processes)]
        for worker in workers:
            stack.callback(worker.close)
        pool = stack.enter_context(ThreadPoolExecutor(processes))
        return rate(lambda: sum(pool.map(some, workers)), seconds) | {"processes": processes}


def cpu_restore_figures(
    size: tuple[int, int], native: tuple[int, int], folder: Path, seconds: float, threads: int
) -> dict[str, Any]:
    """The CPU's way: restore and write, from a probability map to a PNG file. Arguments as of `write_figures`."""
    probabilities = [np.asarray(_rendered_mask(n).resize(size[::-1]), np.uint8) for n in range(8)]
    names = count()

    def one(probability: Any) -> None:
        mask = restore_window(probability, native, threshold=0.5, keep_largest=True, fill_holes=True)
        write_mask(mask, folder / f"{next(names)}.png")

    return _pooled(partial(_each, one, probabilities), seconds, threads)


def _rendered_mask(n: int) -> Image.Image:
    return Image.fromarray(render(n, (256, 256))[1])


def _each(one: Callable[[Any], None], things: Sequence[Any], pool: ThreadPoolExecutor) -> int:
    return len(list(pool.map(one, islice(cycle(things), 64))))


def _pooled(work: Callable[[ThreadPoolExecutor], int], seconds: float, threads: int) -> dict[str, Any]:
    with ThreadPoolExecutor(threads) as pool:
        return rate(partial(work, pool), seconds) | {"threads": threads}
