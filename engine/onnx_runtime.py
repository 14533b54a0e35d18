"""ONNX Runtime on the CPU: the default, on any machine. https://onnxruntime.ai/docs/performance/"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from isicrt.engine.cpu_runtime import Call, CpuRuntime
from isicrt.engine.errors import ModelError
from isicrt.engine.exact_sums import sums_are_exact
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.silent_imports import import_onnxruntime


class OnnxRuntime(CpuRuntime):
    """See `CpuRuntime`. Calls of 8 images on one thread took 20 % longer an image than calls of 2."""

    name = "onnxruntime-cpu"
    pads = False
    at_once = 2
    spare_calls = False  # it computes in the calling threads

    def _load_streams(self, model: bytes, threads: int) -> Call:
        return self._load_one_call(model, 1)  # threads share a session

    def _load_one_call(self, model: bytes, threads: int) -> Call:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        # The pipeline's own threads need the cores between two batches: do not spin while idle.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        set_exact_sums(options)
        try:
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common root
            raise ModelError(f"{self.path}: ONNX Runtime cannot load it: {error}") from error
        # It would keep the file for ever, to load it again on another provider where this one fails.
        session.disable_fallback()
        with suppress(AttributeError):
            session._model_bytes = None
        self._check_signature(_sides(session.get_inputs()), _sides(session.get_outputs()))
        name = session.get_inputs()[0].name

        def call(images: UInt8Array) -> UInt8Array:
            result: UInt8Array = session.run(None, {name: images})[0]
            return result

        return call


def set_exact_sums(options: Any) -> None:
    """Have a session compute 8-bit networks exactly, where it would not by itself; that takes longer.

    Args:
        options: an ``onnxruntime.SessionOptions``.
    """
    if not sums_are_exact():
        options.add_session_config_entry("session.x64quantprecision", "1")


def _sides(sides: Any) -> list[tuple[str, list[object]]]:
    return [(side.type.removeprefix("tensor(").removesuffix(")"), list(side.shape)) for side in sides]
