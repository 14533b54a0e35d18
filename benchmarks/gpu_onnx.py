"""ONNX Runtime's CUDA provider beside the other engines: the network alone, pixels and probabilities on the GPU.

https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from isicrt.engine.errors import ModelError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.onnx_file import read_onnx_card
from isicrt.engine.silent_imports import import_onnxruntime

PROVIDER = "CUDAExecutionProvider"
DEVICE = "cuda"


def cuda_figures(model: Path, size: int, calls: int) -> dict[str, Any]:
    """Milliseconds of a batch by the clock of the host, each call with its synchronisation.

    What the provider does not take of a network ONNX Runtime computes on the CPU, and does not say so.

    Args:
        model: an ONNX file of isicrt.
        size: of the batch.
        calls: that are timed, after a few that are not.

    Returns:
        ``network_ms`` with pixels and probabilities on the GPU, the median; ``call_ms`` likewise from host memory to
        host memory; ``precision`` of the file.

    Raises:
        ModelError: this ONNX Runtime has no such provider, or does not use it.
    """
    onnxruntime = import_onnxruntime()
    if PROVIDER not in onnxruntime.get_available_providers():
        raise ModelError(f"ONNX Runtime {onnxruntime.__version__} has no {PROVIDER}: onnxruntime-gpu brings it")
    card = read_onnx_card(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(os.fspath(model), options, providers=[PROVIDER])
    if PROVIDER not in session.get_providers():  # it goes on with the CPU where the provider cannot be loaded
        raise ModelError(f"ONNX Runtime {onnxruntime.__version__} does not use its {PROVIDER} here")
    source, target = session.get_inputs()[0].name, session.get_outputs()[0].name
    images: UInt8Array = np.random.default_rng(0).integers(0, 256, (size, *card.input_size, 3), dtype=np.uint8)
    binding = session.io_binding()
    binding.bind_ortvalue_input(source, onnxruntime.OrtValue.ortvalue_from_numpy(images, DEVICE, 0))
    binding.bind_output(target, DEVICE)

    def on_the_gpu() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    def through_the_host() -> None:
        session.run([target], {source: images})

    figures: dict[str, Any] = {"version": onnxruntime.__version__, "precision": card.precision, "calls": calls}
    for name, call in (("network_ms", on_the_gpu), ("call_ms", through_the_host)):
        for _ in range(10):
            call()
        milliseconds = []
        for _ in range(calls):
            started = time.perf_counter()
            call()
            milliseconds.append(1e3 * (time.perf_counter() - started))
        figures[name] = statistics.median(milliseconds)
    return {**figures, "images_per_second": 1e3 * size / figures["network_ms"]}
