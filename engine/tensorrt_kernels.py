"""What TensorRT for RTX does on the GPU that runs a plan: it compiles kernels, keeps them, and records CUDA graphs.

https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-with-cuda-graphs.html
https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-with-dynamic-shapes.html
`tensorrt` has none of this: its plans hold finished kernels.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from isicrt.engine.cache_folder import cache_file
from isicrt.engine.card import ModelCard
from isicrt.engine.cuda_driver import Gpu
from isicrt.engine.errors import ModelError
from isicrt.engine.masks import replace_file
from isicrt.engine.tensorrt_api import TensorRt

NEEDS_LESS_MEMORY = "Free memory of the GPU, or build the plan with a smaller --batch-size."
"""The advice where it does not suffice: the same plan again would need as much."""


class Refusal(Protocol):
    """Makes the error of a call that TensorRT refuses."""

    def __call__(self, problem: str, advice: str = "", /) -> ModelError:
        """`advice`: whole sentences; where there are none, the command that builds the plan again."""
        ...


class KernelCache:
    """Compiled kernels of one plan on one GPU, in the user's cache folder, shared by the plan's execution contexts.

    A plan's first run compiles for some seconds; the next one reads this. TensorRT for RTX checks itself whether the
    file fits version, GPU and driver, and starts empty where it does not. Used while the device's context is current.

    Args:
        trt: the flavour; on `tensorrt` this does nothing.
        engine: the loaded plan.
        card: of the plan.
        gpu: that runs it.
        refused: see `Refusal`.

    Raises:
        ModelError: TensorRT for RTX makes no runtime configuration.
    """

    def __init__(self, trt: TensorRt, engine: Any, card: ModelCard, gpu: Gpu, *, refused: Refusal) -> None:
        self._path = kernel_cache_path(trt.version, card, gpu)
        self._cache: Any = None
        self._stored = b""
        self._configs: list[Any] = []
        self._used = False
        self.compiles = hasattr(trt.module, "DynamicShapesKernelSpecializationStrategy")
        """Whether kernels are compiled on the GPU that runs the plan, for each shape: TensorRT for RTX."""
        if self.compiles:
            config = _created(engine.create_runtime_config(), refused)
            self._configs.append(config)  # kept: what it made may refer to it
            # None costs the time of compiling in each run, and nothing else.
            self._cache = config.create_runtime_cache()
        if self._cache is not None and self._path is not None:
            with suppress(OSError, RuntimeError):
                stored = self._path.read_bytes()
                if self._cache.deserialize(stored):
                    self._stored = stored

    def attach(self, config: Any) -> None:
        """Let an execution context's configuration use these kernels. One that cannot compiles its own.

        The configuration is kept as long as this, which outlives the execution contexts.
        """
        self._configs.append(config)
        if self._cache is not None and config.set_runtime_cache(self._cache):
            self._used = True

    def save(self) -> None:
        """Write the file if there is anything new. One that cannot be written costs time, not the run."""
        if self._cache is None or self._path is None or not self._used:
            return
        with suppress(OSError, RuntimeError):
            serialised = self._cache.serialize()
            content = b"" if serialised is None else bytes(serialised)
            if content and content != self._stored:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(self._path, content)


def make_context(trt: TensorRt, engine: Any, kernels: KernelCache, *, refused: Refusal) -> tuple[Any, bool]:
    """An execution context that uses `kernels`, and whether it records CUDA graphs by itself, as TensorRT for RTX does.

    TensorRT for RTX compiles the kernels of a shape before it first runs that shape. By default it would compile
    beside running, and run others meanwhile, which may round differently: masks would depend on the moment.

    Raises:
        ModelError: TensorRT makes no context, or will not compile first.
    """
    config, records = None, False
    if kernels.compiles:
        module = trt.module
        config = _created(engine.create_runtime_config(), refused)
        eager = module.DynamicShapesKernelSpecializationStrategy.EAGER
        config.dynamic_shapes_kernel_specialization_strategy = eager
        # Both are read back: C++ says of the second whether it was taken, and Python's property drops that.
        if config.dynamic_shapes_kernel_specialization_strategy != eager:
            raise refused("does not compile its kernels before it runs them, so that masks could change during a run")
        graphs = getattr(module, "CudaGraphStrategy", None)
        if graphs is not None:
            config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE
            records = config.cuda_graph_strategy == graphs.WHOLE_GRAPH_CAPTURE
        kernels.attach(config)
    context = engine.create_execution_context() if config is None else engine.create_execution_context(config)
    if context is None:
        raise refused("has no memory for its execution context", NEEDS_LESS_MEMORY)
    return context, records


def _created(config: Any, refused: Refusal) -> Any:
    if config is None:
        raise refused("makes no runtime configuration for it")
    return config


def kernel_cache_path(version: str, card: ModelCard, gpu: Gpu) -> Path | None:
    """Where the kernels of a plan lie, for a TensorRT version, GPU and driver; None as `cache_file`."""
    plan = str(card.builder.get("plan_sha256", ""))[:16]
    key = "-".join(part for part in (version, gpu.name, f"sm{gpu.compute_capability}", gpu.driver, plan) if part)
    return cache_file(f"kernels-{re.sub(r'[^A-Za-z0-9.]+', '-', key)}.bin")
