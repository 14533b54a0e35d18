"""What a runtime is, and which one opens which file. A runtime turns uint8 pixels into uint8 probabilities."""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from isicrt.engine.card import ModelCard
from isicrt.engine.cores import available_cores
from isicrt.engine.errors import IsicrtError, MissingDependencyError, ModelError, SettingsError
from isicrt.engine.exact_sums import sums_are_exact
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.onnx_file import read_onnx_card


@runtime_checkable
class Runtime(Protocol):
    """A loaded model. Not thread-safe, unless it is a `ConcurrentRuntime`: one thread at a time calls `infer`.

    Normalisation and sigmoid are inside the model, so nothing but uint8 crosses.
    """

    card: ModelCard
    name: str
    """For tables: ``onnxruntime-cpu``, ``openvino-cpu``, ``tensorrt-fp16``, ..."""
    max_batch: int | None
    """The largest batch that `infer` takes; None where there is no limit."""

    def infer(self, images: UInt8Array) -> UInt8Array:
        """Segment a batch.

        Args:
            images: uint8, N x input_height x input_width x 3, RGB, C-contiguous; 1 <= N <= max_batch.

        Returns:
            uint8, N x input_height x input_width: the lesion's probability times 255, rounded. The array is the
            caller's to keep.

        Raises:
            ModelError: the shape or the dtype is wrong.
        """
        ...

    def close(self) -> None:
        """Give back threads and device memory. May be called twice."""
        ...

    def __enter__(self) -> Runtime: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Ticket(Protocol):
    """A batch in flight, as `PipelinedRuntime.submit` gives it."""


@runtime_checkable
class PipelinedRuntime(Runtime, Protocol):
    """A runtime that can have several batches in flight, so that copying overlaps with computing.

    `submit` and `collect` are called by one thread at a time, as `infer` is, which may be called in between.
    `isicrt.engine.in_flight.infer_batches` does the bookkeeping.
    """

    @property
    def depth(self) -> int:
        """Batches that may be in flight; at least 1."""
        ...

    def submit(self, images: UInt8Array) -> Ticket:
        """Begin a batch and return at once; the caller may write over `images` then.

        Args:
            images: as for `infer`.

        Raises:
            ModelError: as `infer`. Nothing of this batch is under way then.
            RuntimeError: `depth` batches are in flight already.
        """
        ...

    def collect(self, ticket: Any) -> UInt8Array:
        """Wait for a batch, in any order; returns what `infer` would.

        Raises:
            ModelError: the device failed on it.
            RuntimeError: it was collected before.
        """
        ...


@runtime_checkable
class ConcurrentRuntime(Runtime, Protocol):
    """A runtime that computes on the threads that call it, as those on the CPU do."""

    at_once: int
    """Images that it computes together."""

    def turn(self) -> AbstractContextManager[None]:
        """Waits until a call of `infer_alone` would not be in the way of others; they wait for it in turn."""
        ...

    def infer_alone(self, images: UInt8Array) -> UInt8Array:
        """As `infer`, on the calling thread only; any number of threads may call it at once."""
        ...


def check_batch(images: UInt8Array, card: ModelCard, max_batch: int | None) -> None:
    """Raise ModelError unless `images` is what `Runtime.infer` takes."""
    expected = (card.input_height, card.input_width, 3)
    if images.dtype != "uint8" or images.ndim != 4 or images.shape[1:] != expected or not len(images):
        raise ModelError(
            f"model '{card.name}' takes uint8 images of N x {expected[0]} x {expected[1]} x 3, "
            f"not {images.dtype} {' x '.join(map(str, images.shape))}"
        )
    if max_batch is not None and len(images) > max_batch:
        raise ModelError(
            f"model '{card.name}' was built for batches of at most {max_batch}, not {len(images)}. "
            f"Use --batch-size {max_batch}, or build it again with a larger --batch-size."
        )


_log = logging.getLogger(__name__)

CPU_RUNTIMES = ("auto", "onnxruntime", "openvino")
CPU_RUNTIME_VARIABLE = "ISICRT_CPU_RUNTIME"


def open_runtime(path: str | os.PathLike[str], *, threads: int | None = None) -> Runtime:
    """Load a model file on the runtime that fits it: ``.onnx`` on the CPU, ``.plan`` on TensorRT.

    The environment variable ``ISICRT_CPU_RUNTIME`` chooses between ``onnxruntime`` and ``openvino``. Without it, or
    with ``auto``, it is OpenVINO where that is installed, not broken, which is logged, and exact (see
    `isicrt.engine.exact_sums`).

    Args:
        path: the model.
        threads: CPU threads for the network, at most one a core; None for that. Only the runtimes on the CPU use it.

    Raises:
        ModelError: no such file, an unknown kind of file, or a file without a valid card.
        MissingDependencyError: the runtime that this file needs is not installed.
        SettingsError: the environment variable names no runtime.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such model file. `isicrt segment` without --model uses the one that ships.")
    ending = path.suffix.lower()
    if ending == ".onnx":
        return _open_onnx(path, threads)
    if ending == ".plan":
        from isicrt.engine.tensorrt_runtime import TensorRtRuntime

        return TensorRtRuntime(path)
    hint = " Make an .onnx of it with: isicrt build-engine CHECKPOINT" if ending == ".pt" else ""
    raise ModelError(f"{path}: expected an .onnx or a .plan file.{hint}")


def _open_onnx(path: Path, threads: int | None) -> Runtime:
    if threads is not None:
        # Networks that are computed side by side on one core put each other's layers out of its cache.
        threads = min(threads, available_cores())
    chosen = os.environ.get(CPU_RUNTIME_VARIABLE) or "auto"
    if chosen not in CPU_RUNTIMES:
        raise SettingsError(f"{CPU_RUNTIME_VARIABLE}={chosen}: choose from {', '.join(CPU_RUNTIMES)}")
    if chosen == "openvino" or (chosen == "auto" and find_spec("openvino") is not None and _is_exact_on_openvino(path)):
        from isicrt.engine.openvino_runtime import OpenVinoRuntime

        try:
            return OpenVinoRuntime(path, threads=threads)
        except IsicrtError as error:
            # ONNX Runtime, which everybody has, has the last word on what a file is.
            if chosen == "openvino":
                raise
            if isinstance(error, MissingDependencyError):
                _log.warning(
                    "OpenVINO is installed and cannot be loaded (%s): ONNX Runtime is used, which is slower. "
                    "%s=onnxruntime does so without this line",
                    error.__cause__,
                    CPU_RUNTIME_VARIABLE,
                )
    from isicrt.engine.onnx_runtime import OnnxRuntime

    return OnnxRuntime(path, threads=threads)


def _is_exact_on_openvino(path: Path) -> bool:
    """Whether OpenVINO computes a model as it should on this processor: it has no way round sums of 8-bit products that
    do not fit, which cost masks."""
    try:
        return read_onnx_card(path).precision != "int8" or sums_are_exact()
    except IsicrtError:
        return True  # who loads it says what is wrong with it
