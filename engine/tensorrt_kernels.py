"""What TensorRT for RTX does on the GPU that runs a plan: it compiles kernels, keeps them, and records CUDA graphs.

https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-with-cuda-graphs.html
`tensorrt` has none of this: its plans hold finished kernels.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from isicrt.engine.card import ModelCard
from isicrt.engine.cuda_driver import Gpu
from isicrt.engine.masks import replace_file
from isicrt.engine.tensorrt_api import TensorRt, cache_folder


class KernelCache:
    """Compiled kernels of one plan on one GPU, in the user's cache folder, shared by the plan's execution contexts.

    A plan's first run compiles for some seconds; the next one reads this. TensorRT for RTX checks itself whether the
    file fits version, GPU and driver, and starts empty where it does not. Used while the device's context is current.

    Args:
        trt: the flavour; on `tensorrt` this does nothing.
        engine: the loaded plan.
        card: of the plan.
        gpu: that runs it.
    """

    def __init__(self, trt: TensorRt, engine: Any, card: ModelCard, gpu: Gpu) -> None:
        self._path = kernel_cache_path(trt.version, card, gpu)
        self._cache: Any = None
        self._stored = b""
        self._configs: list[Any] = []
        self.records_graphs = hasattr(trt.module, "CudaGraphStrategy")
        """Whether the execution contexts record CUDA graphs by themselves."""
        if self.records_graphs:
            config = engine.create_runtime_config()
            self._configs.append(config)  # kept: what it made may refer to it
            self._cache = config.create_runtime_cache()
            with suppress(OSError):
                stored = self._path.read_bytes()
                if self._cache.deserialize(stored):
                    self._stored = stored

    def attach(self, config: Any) -> None:
        """Let an execution context's configuration use these kernels. One that cannot compiles its own.

        The configuration is kept as long as this, which outlives the execution contexts.
        """
        self._configs.append(config)
        if self._cache is not None:
            config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the file if there is anything new. One that cannot be written costs time, not the run."""
        if self._cache is None:
            return
        with suppress(OSError, RuntimeError):
            serialised = self._cache.serialize()
            content = b"" if serialised is None else bytes(serialised)
            if content and content != self._stored:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(self._path, content)


def graph_context(trt: TensorRt, engine: Any, kernels: KernelCache) -> Any:
    """An execution context that uses `kernels` and, on TensorRT for RTX, records CUDA graphs; None if refused."""
    if not kernels.records_graphs:
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    config.cuda_graph_strategy = trt.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    kernels.attach(config)
    return engine.create_execution_context(config)


def kernel_cache_path(version: str, card: ModelCard, gpu: Gpu) -> Path:
    """Where the kernels of a plan lie, for a TensorRT version, GPU and driver."""
    plan = str(card.builder.get("plan_sha256", ""))[:16]
    key = "-".join(part for part in (version, gpu.name, f"sm{gpu.compute_capability}", gpu.driver, plan) if part)
    return cache_folder() / f"kernels-{re.sub(r'[^A-Za-z0-9.]+', '-', key)}.bin"
