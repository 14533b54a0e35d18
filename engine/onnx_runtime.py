"""ONNX Runtime on the CPU: the default, on any machine. https://onnxruntime.ai/docs/performance/"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from isicrt.engine.card import METADATA_KEY, ModelCard
from isicrt.engine.errors import ModelError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.runtime import check_batch


class OnnxRuntime:
    """A model in an ``.onnx`` file that carries its card. See `isicrt.engine.runtime.Runtime`.

    Args:
        path: the file.
        threads: for one network call; None for one a core.

    Raises:
        ModelError: not an ONNX file, no card in it, or inputs and outputs that are not ours.
    """

    max_batch: int | None = None

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None) -> None:
        # Imported here: it costs 0.1 s, which `isicrt --help` must not pay.
        import onnxruntime

        self.path = Path(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        # The pipeline's own threads need the cores between two batches: do not spin while idle.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session: Any = onnxruntime.InferenceSession(
                os.fspath(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common root
            raise ModelError(f"{path}: ONNX Runtime cannot load it: {error}") from error
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise ModelError(f"{path}: carries no model card. isicrt runs models made by `isicrt build-engine`.")
        try:
            self.card = ModelCard.from_json(text)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        self._check_signature()
        self.name = "onnxruntime-cpu"

    def _check_signature(self) -> None:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
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
        if self._session is None:
            raise ModelError(f"{self.path}: this runtime is closed")
        check_batch(images, self.card, self.max_batch)
        (probability,) = self._session.run(None, {self._input: np.ascontiguousarray(images)})
        result: UInt8Array = probability
        return result

    def close(self) -> None:
        """See `Runtime.close`."""
        self._session = None

    def __enter__(self) -> OnnxRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
