"""The way of an image over the GPU: decode threads read files, the inference thread keeps the GPU supplied, write
threads unpack, clean and write masks."""

from __future__ import annotations

import logging
import shlex
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from isicrt.engine.card import ModelCard
from isicrt.engine.errors import ImageError, IsicrtError, MissingDependencyError, ModelError, SettingsError
from isicrt.engine.gpu_batch import BATCH_PIXELS, ChainImage, Decode, PackedMask, read_chain_image
from isicrt.engine.gpu_chain import GpuChain
from isicrt.engine.gpu_decode import HARDWARE_LOAD
from isicrt.engine.gpu_lane import ChainTicket
from isicrt.engine.images import MAX_PIXELS
from isicrt.engine.outcome import DecodeCounts
from isicrt.engine.rebuild import CHECKPOINT, plan_source
from isicrt.engine.routes import Item
from isicrt.engine.runtime import Runtime
from isicrt.engine.sources import Job
from isicrt.engine.tensorrt_runtime import TensorRtRuntime

_log = logging.getLogger(__name__)
_said: set[str] = set()

DECODE = ("auto", "gpu", "cpu")
"""Where images are decoded and masks restored; see `open_chain`."""


class Chain(Protocol):
    """What `isicrt.engine.gpu_chain.GpuChain` does for a run."""

    card: ModelCard
    decoded: DecodeCounts

    @property
    def depth(self) -> int: ...

    def submit(self, images: Sequence[ChainImage]) -> ChainTicket: ...

    def collect(self, ticket: ChainTicket) -> list[PackedMask | ImageError]: ...


class GpuRoute:
    """See `isicrt.engine.routes.Route`.

    Args:
        chain: used by this run alone.
        decode: of what the GPU does not decode.
        max_pixels: a JPEG of more is for `decode`, which refuses it.
        cpu_share: see `isicrt.engine.gpu_batch.read_chain_image`.
    """

    batch_pixels: float = BATCH_PIXELS

    def __init__(self, chain: Chain, decode: Decode, *, max_pixels: int = MAX_PIXELS, cpu_share: float = 0.0) -> None:
        self._chain, self._decode, self._max_pixels, self._cpu_share = chain, decode, max_pixels, cpu_share

    def read(self, job: Job) -> Item:
        """See `Route.read`."""
        image = read_chain_image(
            job.image,
            self._chain.card.input_size,
            decode=self._decode,
            max_pixels=self._max_pixels,
            cpu_share=self._cpu_share,
        )
        return Item(job, image.native_size, image, image.stamp, image.note)

    def results(self, batches: Iterator[list[Item]]) -> Iterator[tuple[list[Item], Sequence[PackedMask | ImageError]]]:
        """See `Route.results`. As many batches are in flight as the chain takes."""
        pending: deque[tuple[list[Item], ChainTicket]] = deque()
        try:
            for batch in batches:
                if len(pending) == self._chain.depth:
                    first, ticket = pending.popleft()
                    yield first, self._chain.collect(ticket)
                pending.append((batch, self._chain.submit([item.content for item in batch])))
            while pending:
                first, ticket = pending.popleft()
                yield first, self._chain.collect(ticket)
        finally:
            while pending:
                with suppress(Exception):
                    self._chain.collect(pending.popleft()[1])


def check_decode(decode: str, model: Path) -> None:
    """Raise SettingsError where `decode` is none of `DECODE`, or ``gpu`` with a model that no GPU runs."""
    if decode not in DECODE:
        raise SettingsError(f"decode {decode!r}: must be one of {', '.join(DECODE)}")
    if decode == "gpu" and model.suffix.lower() == ".onnx":
        source = plan_source(model)
        command = shlex.join(["isicrt", "build-engine", source, "--fp16"])
        named = ", CHECKPOINT being the model that this int8 file was made of," if source == CHECKPOINT else ""
        raise SettingsError(
            f"--decode gpu: {model} is an ONNX file, which runs on the CPU. Leave --decode out, or build a plan on a "
            f"machine with an NVIDIA GPU ({command}){named} and give that plan in its place"
        )


def open_chain(
    runtime: Runtime,
    decode: str = "auto",
    *,
    threshold: float | None = None,
    hardware_load: float = HARDWARE_LOAD,
    threads: int | None = None,
) -> GpuChain | None:
    """The chain that a run uses; None where images are decoded and masks restored on the CPU.

    Args:
        runtime: the model's. It is closed after the chain, by whoever opened it.
        decode: ``cpu``: None. ``gpu``: a chain, or an error. ``auto``: a chain where `runtime` is TensorRT's and
            everything that a chain needs is there, else None; what is missing is said once.
        threshold: in (0, 1); None for the model card's.
        hardware_load: see `isicrt.engine.gpu_decode.GpuDecoder`.
        threads: of the CPU, at most, for what it does of decoding on the GPU; None for one a core that may be used.

    Raises:
        SettingsError: ``gpu`` with a model that is no plan, none of `DECODE`, or a load outside 0..1.
        MissingDependencyError, ModelError: ``gpu``, and nvImageCodec, nvcc or the GPU's memory is missing.
    """
    if decode not in DECODE:
        raise SettingsError(f"decode {decode!r}: must be one of {', '.join(DECODE)}")
    if decode == "cpu" or (decode == "auto" and not isinstance(runtime, TensorRtRuntime)):
        return None
    try:
        return GpuChain(runtime, threshold=threshold, hardware_load=hardware_load, cpu_threads=threads)
    except (MissingDependencyError, ModelError) as error:
        if decode == "auto":
            _say_once(f"Images are decoded and masks restored on the CPU, not on the GPU: {error}")
            return None
        advice = "" if "--decode cpu" in str(error) else " Or leave the decoding to the CPU: --decode cpu"
        raise _with_advice(error, advice) from error


def _say_once(text: str) -> None:
    """On the standard error, unless the program that uses isicrt has its own use for `logging`."""
    if text not in _said:
        _said.add(text)
        _log.warning("%s", text)


def _with_advice(error: IsicrtError, advice: str) -> IsicrtError:
    error.args = (f"--decode gpu: {error}{advice}", *error.args[1:])
    return error
