"""OpenVINO on the CPU: an optional runtime of ``.onnx`` files, faster than ONNX Runtime. https://docs.openvino.ai/

On processors with bfloat16 it would compute in bfloat16 unless it is told otherwise. That is half as fast again, and of
every other mask it moves the outline; so it is told otherwise (`docs/performance.md`).
"""

from __future__ import annotations

import io
import os
import threading
from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np

from isicrt.engine.compiled_cache import CompiledCache
from isicrt.engine.cpu_runtime import Call, CpuRuntime
from isicrt.engine.errors import MissingDependencyError, ModelError
from isicrt.engine.exact_sums import sums_are_exact
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.silent_imports import import_openvino

_CACHE = CompiledCache("openvino")
_lock = threading.Lock()
_cores: list[tuple[Any, int]] = []


class OpenVinoRuntime(CpuRuntime):
    """See `CpuRuntime`.

    Raises:
        MissingDependencyError: OpenVINO is not installed, or broken, or this process was forked from one that uses it.
    """

    name = "openvino-cpu"
    pads = True
    at_once = 2
    spare_calls = True

    def _load_streams(self, model: bytes, threads: int) -> Call:
        at_once = self.at_once  # a call that held its runtime would keep it, and all memory, until a full collection
        # A graph of fixed shape is a fifth faster than one of any batch.
        call = _caller(self._compile(model, threads, {"NUM_STREAMS": threads}, batch=at_once))
        # Alone for once: where two threads make a process's first call together, OpenVINO's bindings wait for ever, the
        # one for C++ to initialise a static variable, the other, which is to do so, for Python's lock.
        call(np.zeros((at_once, *self.card.input_size, 3), np.uint8))

        def call_full(images: UInt8Array) -> UInt8Array:
            if (missing := at_once - len(images)) == 0:
                return call(images)
            return call(np.concatenate([images, *[images[:1]] * missing]))[: len(images)]

        return call_full

    def _load_one_call(self, model: bytes, threads: int) -> Call:
        return _caller(self._compile(model, threads, {"PERFORMANCE_HINT": "LATENCY"}, batch=None))

    def _compile(self, model: bytes, threads: int, settings: dict[str, Any], batch: int | None) -> Any:
        core = _core()
        # Pinned threads would fight over their cores with the ones that decode.
        settings |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False, "INFERENCE_PRECISION_HINT": "f32"}
        key = (self.digest, sorted(settings.items()), batch, *_surroundings(core))
        if (kept := _CACHE.read(*key)) is not None:
            with suppress(RuntimeError):
                return core.import_model(kept, "CPU", settings)
        try:
            network = core.read_model(io.BytesIO(model))
            self._check_signature(_sides(network.inputs), _sides(network.outputs))
            if batch is not None:
                network.reshape([batch, *self.card.input_size, 3])
            compiled = core.compile_model(network, "CPU", settings)
        except RuntimeError as error:
            raise ModelError(f"{self.path}: OpenVINO cannot load it: {error}") from error
        with suppress(RuntimeError):
            _CACHE.write(_exported(compiled), *key)
        return compiled


def _surroundings(core: Any) -> tuple[object, ...]:
    """What a compiled network fits beside its settings: this version, on this processor."""
    openvino = import_openvino()
    able = sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    return openvino.get_version(), core.get_property("CPU", "FULL_DEVICE_NAME"), able, sums_are_exact()


def _exported(compiled: Any) -> bytes:
    stream = io.BytesIO()
    compiled.export_model(stream)
    return stream.getvalue()


def _core() -> Any:
    """The process's one Core; it is never given back.

    A Core's CPU plugin gives the thread that loads it a stack for signals, and unmaps that stack when it goes. Of two
    that go in the order in which they came, the second leaves the thread with the first one's stack, which is no longer
    mapped. The next signal is delivered to it: Ctrl-C then ends Python with a segmentation fault.

    A forked process has none of the threads that OpenVINO keeps for the next network, and would wait for them for ever.
    """
    with _lock:
        try:
            openvino = import_openvino()
            if not _cores:
                _cores.append((openvino.Core(), os.getpid()))
            core, process = _cores[0]
            if process != os.getpid():
                raise RuntimeError("this process was forked from one that uses it: spawn it instead")
        except Exception as error:  # one that does not fit its own parts raises whatever it runs into
            raise MissingDependencyError("OpenVINO", "openvino", str(error) or type(error).__name__) from error
        return core


def _caller(compiled: Any) -> Call:
    idle: deque[Any] = deque()  # threads come and go with each run; a request takes memory and time to make

    def call(images: UInt8Array) -> UInt8Array:
        try:
            request = idle.pop()
        except IndexError:
            request = compiled.create_infer_request()
        # A request keeps what it was given until its next call: of a part of a batch, all of it. The buffer of the
        # result is the request's, and the next call writes over it.
        result = np.array(request.infer([images.copy()], share_inputs=True, share_outputs=True)[0])
        idle.append(request)  # not one that failed
        return result

    return call


def _sides(sides: Any) -> list[tuple[str, list[object]]]:
    kinds = {"u8": "uint8", "f32": "float"}
    return [
        (
            kinds.get(side.element_type.get_type_name(), side.element_type.get_type_name()),
            [n.get_length() if n.is_static else str(n) for n in side.partial_shape],
        )
        for side in sides
    ]
