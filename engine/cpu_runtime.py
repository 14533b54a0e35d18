"""What the runtimes on the CPU share: one call over all threads, or a stream of batches on each."""

from __future__ import annotations

import hashlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

import numpy as np

from isicrt.engine.card import ModelCard
from isicrt.engine.cores import available_cores
from isicrt.engine.errors import ModelError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.onnx_file import read_onnx_file
from isicrt.engine.runtime import check_batch
from isicrt.engine.second_look import looking_again

Sides = Sequence[tuple[str, list[object]]]
"""Type and shape of each input or output."""

Call = Callable[[UInt8Array], UInt8Array]
"""uint8 N x H x W x 3 in, uint8 N x H x W out."""


def _joined(parts: Sequence[UInt8Array]) -> UInt8Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class CpuRuntime(ABC):
    """A model in an ``.onnx`` file that carries its card. See `isicrt.engine.runtime.PipelinedRuntime`.

    `infer` spreads one call over all threads, which is the least time for one image. `submit` computes each batch on
    one thread (`infer_alone` on the one that calls it), and as many batches at once as there are threads: no thread
    then waits for another at the end of each layer, which takes fewer CPU seconds an image and is not held up by other
    processes.

    Args:
        path: the file.
        threads: for the network; None for one a core.
        digest: SHA-256 that the file must have, in hexadecimal digits; None for whichever it has.

    Raises:
        ModelError: not an ONNX file, weights in other files, no card in it, another one than `digest` says, or inputs
            and outputs that are not ours.
    """

    name: str
    max_batch: int | None = None
    spare_calls: bool
    """Whether calls that wait in the runtime begin, without Python, when those before them end."""
    pads: bool
    """Whether a call of `submit`'s with fewer images than `at_once` computes as many all the same."""
    at_once: int
    """Images in one call of `submit`'s: of a class for a model with one view of an image in its graph, of an object for
    its own. With more, what a layer writes has left the core's cache before the next reads it."""

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None, digest: str | None = None) -> None:
        self.path = Path(path).absolute()  # a program may go elsewhere before the file is needed again
        # Before any native code sees the file, and that is given these bytes: another file may lie there by then.
        found: tuple[ModelCard, bytes] = read_onnx_file(path)
        self.card, model = found
        self.digest = hashlib.sha256(model).hexdigest()
        """SHA-256 of the file, as it was when it was loaded."""
        if digest not in (None, self.digest):
            raise self._is_another()
        # Each view of an image is an image to the layers.
        self.at_once = max(1, self.at_once // self.card.views)
        self._threads = threads or available_cores()
        # Between two calls a thread waits for Python's lock; meanwhile its stream computes one of these.
        self._calls = self._threads + (max(1, self._threads // 4) if self.spare_calls else 0)
        self._pool: ThreadPoolExecutor | None = None
        self._changed, self._inside = threading.Condition(), 0
        # More than one call a core would put each other's layers out of the caches. Where the runtime has a queue of
        # its own for that, it is the quicker one.
        self._turns: SimpleQueue[None] | None = None if self.spare_calls else SimpleQueue()
        if self._turns is not None:
            for _ in range(self._threads):
                self._turns.put(None)
        self._together: Call | None = None
        """For `infer`: one call on all threads. Loaded when it is first called."""
        self._alone: Call | None = looking_again(self._load_streams(model, self._threads), self.card, self.at_once)
        """For `submit` and `infer_alone`: calls of one thread each, by several threads at once."""

    @property
    def in_process(self) -> Callable[[], CpuRuntime]:
        """Opens the same model on the same runtime in another process, which it can be sent to, on one thread. A
        ModelError where another file lies there by then."""
        return partial(type(self), self.path, threads=1, digest=self.digest)

    @abstractmethod
    def _load_streams(self, model: bytes, threads: int) -> Call:
        """A function that so many threads may call at once; each call takes one thread. `model`: the file."""

    @abstractmethod
    def _load_one_call(self, model: bytes, threads: int) -> Call:
        """A function for one caller that spreads each call over so many threads. `model`: the file."""

    def _check_signature(self, inputs: Sides, outputs: Sides) -> None:
        """Raise ModelError unless types and shapes are those of an exported model; a symbolic side is no int."""
        h, w = self.card.input_size
        (kind, shape), (out_kind, out_shape) = (
            sides[0] if len(sides) == 1 and sides[0][1] else ("", []) for sides in (inputs, outputs)
        )
        if kind != "uint8" or shape[1:] != [h, w, 3] or out_kind != "uint8" or out_shape[1:] != [h, w]:
            raise ModelError(
                f"{self.path}: expected one uint8 input N x {h} x {w} x 3 and one uint8 output N x {h} x {w}, as its "
                f"card says, but it has {list(inputs)} and {list(outputs)}"
            )
        if isinstance(shape[0], int):
            raise ModelError(
                f"{self.path}: takes batches of exactly {shape[0]}; isicrt needs a symbolic batch, as "
                "`isicrt build-engine` exports it"
            )

    def infer(self, images: UInt8Array) -> UInt8Array:
        """See `Runtime.infer`."""
        self._check(images)
        images = np.ascontiguousarray(images)
        if self._threads == 1 and (len(images) >= self.at_once or not self.pads):
            return self._in_parts(images)
        if self._together is None:
            self._together = looking_again(self._load_one_call(self._read_again(), self._threads), self.card)
        return self._together(images)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """See `ConcurrentRuntime.turn`."""
        if self._turns is None:
            yield
            return
        self._turns.get()
        try:
            yield
        finally:
            self._turns.put(None)

    def infer_alone(self, images: UInt8Array) -> UInt8Array:
        """See `ConcurrentRuntime.infer_alone`."""
        with self._changed:
            self._check(images)
            self._inside += 1
        try:
            return self._in_parts(np.ascontiguousarray(images))
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @property
    def depth(self) -> int:
        """See `PipelinedRuntime.depth`: one batch for each call, and one that waits for the first to be free."""
        return self._calls + 1

    def submit(self, images: UInt8Array) -> list[Future[UInt8Array]]:
        """See `PipelinedRuntime.submit`."""
        self._check(images)
        call = self._alone
        assert call is not None
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._calls, thread_name_prefix=self.name)
        copy = images.copy()
        # Parts, and not whole batches, so that all threads have something to do when few images are left.
        parts = [copy[i : i + self.at_once] for i in range(0, len(copy), self.at_once)]
        return [self._pool.submit(call, part) for part in parts]

    def collect(self, ticket: list[Future[UInt8Array]]) -> UInt8Array:
        """See `PipelinedRuntime.collect`."""
        # All of them, so that an error leaves nothing under way. Nobody ends what `close` has cancelled.
        wait([part for part in ticket if not part.cancelled()])
        return _joined([part.result() for part in ticket])

    def _check(self, images: UInt8Array) -> None:
        if self._alone is None:
            raise self._closed()
        check_batch(images, self.card, self.max_batch)

    def _in_parts(self, images: UInt8Array) -> UInt8Array:
        parts = []
        for i in range(0, len(images), self.at_once):
            if (call := self._alone) is None:
                raise self._closed()
            parts.append(call(images[i : i + self.at_once]))
        return _joined(parts)

    def _read_again(self) -> bytes:
        try:
            model = self.path.read_bytes()
        except OSError as error:
            raise ModelError(f"{self.path}: cannot be read any more: {error.strerror}") from error
        if hashlib.sha256(model).hexdigest() != self.digest:
            raise self._is_another()
        return model

    def is_unchanged(self) -> bool:
        """Whether the file is still the one that was loaded, which another process can load then."""
        with suppress(ModelError):
            self._read_again()
            return True
        return False

    def _is_another(self) -> ModelError:
        return ModelError(f"{self.path}: was changed since it was first read. Start again")

    def _closed(self) -> ModelError:
        return ModelError(f"{self.path}: this runtime is closed")

    def close(self) -> None:
        """See `Runtime.close`. Waits for calls that are under way: Python cannot end while a thread is inside one."""
        self._alone = self._together = None
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None
        with self._changed:
            self._changed.wait_for(lambda: not self._inside)

    def __enter__(self) -> CpuRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
