"""ONNX Runtime on the CPU: the default, on any machine. https://onnxruntime.ai/docs/performance/"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from isicrt.engine.cores import available_cores, has_vnni
from isicrt.engine.errors import ModelError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.onnx_file import read_onnx_card
from isicrt.engine.runtime import check_batch

AT_ONCE = 2
"""Images in one call on one thread. With more, what a layer writes has left the core's cache before the next reads it:
8 took 20 % longer an image."""


class OnnxRuntime:
    """A model in an ``.onnx`` file that carries its card. See `isicrt.engine.runtime.PipelinedRuntime`.

    `infer` spreads one call over all threads, which is the least time for one batch. `submit` computes each batch on
    one thread, and as many batches at once as there are threads: no thread then waits for another at the end of each
    layer, which takes fewer CPU seconds an image and is not held up by other processes. A thread takes `AT_ONCE` images
    of its batch at a time.

    Args:
        path: the file.
        threads: for the network; None for one a core.

    Raises:
        ModelError: not an ONNX file, weights in other files, no card in it, or inputs and outputs that are not ours.
    """

    max_batch: int | None = None

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None) -> None:
        self.path = Path(path)
        # Before any native code sees the file.
        self.card = read_onnx_card(path)
        self._threads = threads or available_cores()
        self._closed = False
        self._pool: ThreadPoolExecutor | None = None
        self._together: Any = None
        """For `infer`: one call on all threads. Loaded when it is first called."""
        self._alone = self._load(1)
        """For `submit`: calls of one thread each. ONNX Runtime lets threads share a session."""
        self._check_signature()
        self.name = "onnxruntime-cpu"

    def _load(self, threads: int) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        # The pipeline's own threads need the cores between two batches: do not spin while idle.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not has_vnni():
            # int8 sums would overflow; the way round that takes nearly twice the time.
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            return onnxruntime.InferenceSession(os.fspath(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common root
            raise ModelError(f"{self.path}: ONNX Runtime cannot load it: {error}") from error

    def _check_signature(self) -> None:
        inputs, outputs = self._alone.get_inputs(), self._alone.get_outputs()
        h, w = self.card.input_size
        if (
            [i.type for i in inputs] != ["tensor(uint8)"]
            or inputs[0].shape[1:] != [h, w, 3]
            or [o.type for o in outputs] != ["tensor(uint8)"]
            or outputs[0].shape[1:] != [h, w]
        ):
            raise ModelError(
                f"{self.path}: expected one uint8 input N x {h} x {w} x 3 and one uint8 output N x {h} x {w}, as its "
                f"card says, but it has {[(i.type, i.shape) for i in inputs]} "
                f"and {[(o.type, o.shape) for o in outputs]}"
            )
        if isinstance(inputs[0].shape[0], int):
            raise ModelError(
                f"{self.path}: takes batches of exactly {inputs[0].shape[0]}; isicrt needs a symbolic batch, as "
                "`isicrt build-engine` exports it"
            )
        self._input = inputs[0].name

    def infer(self, images: UInt8Array) -> UInt8Array:
        """See `Runtime.infer`."""
        self._check(images)
        if self._together is None:
            self._together = self._alone if self._threads == 1 else self._load(self._threads)
        return self._run(self._together, np.ascontiguousarray(images))

    @property
    def depth(self) -> int:
        """See `PipelinedRuntime.depth`: one batch for each thread, and one that waits for the first to be free."""
        return self._threads + 1

    def submit(self, images: UInt8Array) -> Future[UInt8Array]:
        """See `PipelinedRuntime.submit`."""
        self._check(images)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="onnxruntime")
        return self._pool.submit(self._run, self._alone, images.copy())

    def collect(self, ticket: Future[UInt8Array]) -> UInt8Array:
        """See `PipelinedRuntime.collect`."""
        return ticket.result()

    def _check(self, images: UInt8Array) -> None:
        if self._closed:
            raise ModelError(f"{self.path}: this runtime is closed")
        check_batch(images, self.card, self.max_batch)

    def _run(self, session: Any, images: UInt8Array) -> UInt8Array:
        at_once = AT_ONCE if session is self._alone else len(images)
        parts = [session.run(None, {self._input: images[i : i + at_once]})[0] for i in range(0, len(images), at_once)]
        result: UInt8Array = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return result

    def close(self) -> None:
        """See `Runtime.close`."""
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._alone = self._together = self._pool = None

    def __enter__(self) -> OnnxRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
