"""TensorRT for RTX on ONNX Runtime and host memory, so that `TensorRtRuntime` itself runs where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from isicrt.engine import tensorrt_api, tensorrt_runtime, tensorrt_slot
from isicrt.engine.cuda_driver import Gpu
from isicrt.engine.onnx_file import read_onnx_card
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.plan import write_plan
from isicrt.engine.tensorrt_api import TensorRt
from tests.engine.stand_ins import HostDevice, OnnxContext, RecordedGraph

VERSION = "1.7.1.116"
INVALID = {
    "VERSION_MISMATCH": 1,
    "UNSUPPORTED_CC": 2,
    "OLD_CUDA_DRIVER": 4,
    "OLD_CUDA_RUNTIME": 8,
    "INSUFFICIENT_GPU_MEMORY": 16,
    "MALFORMED_ENGINE": 32,
    "CUDA_ERROR": 64,
}
"""`EngineInvalidityDiagnostics` of that version."""
LARGEST = 8
CAPABILITIES = dict.fromkeys(("NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121"))
"""What TensorRT for RTX 1.7 knows."""


class HostLogger:
    """`ILogger`."""

    INTERNAL_ERROR, ERROR, WARNING, INFO = "INTERNAL_ERROR", "ERROR", "WARNING", "INFO"


class RuntimeConfig:
    """`IRuntimeConfig`. What is in `deaf` keeps its default whatever it is set to, as the property does in Python where
    C++ refuses; `cache` is what `create_runtime_cache` gives."""

    def __init__(self, cache: Any, deaf: set[str], *, takes_cache: bool = True) -> None:
        self._values = {"cuda_graph_strategy": "DISABLED", "dynamic_shapes_kernel_specialization_strategy": "LAZY"}
        self._made, self._deaf, self._takes_cache = cache, deaf, takes_cache
        self.cache: Any = None

    @property
    def cuda_graph_strategy(self) -> str:
        return self._values["cuda_graph_strategy"]

    @cuda_graph_strategy.setter
    def cuda_graph_strategy(self, value: str) -> None:
        self._set("cuda_graph_strategy", value)

    @property
    def dynamic_shapes_kernel_specialization_strategy(self) -> str:
        return self._values["dynamic_shapes_kernel_specialization_strategy"]

    @dynamic_shapes_kernel_specialization_strategy.setter
    def dynamic_shapes_kernel_specialization_strategy(self, value: str) -> None:
        self._set("dynamic_shapes_kernel_specialization_strategy", value)

    def _set(self, name: str, value: str) -> None:
        if name not in self._deaf:
            self._values[name] = value

    def create_runtime_cache(self) -> Any:
        return self._made

    def set_runtime_cache(self, cache: Any) -> bool:
        if self._takes_cache:
            self.cache = cache
        return self._takes_cache


class Cache:
    """`IRuntimeCache`."""

    def __init__(self, fits: bool = True) -> None:
        self.fits, self.content = fits, b"fresh"

    def deserialize(self, blob: bytes) -> bool:
        if self.fits:
            self.content = blob
        return self.fits

    def serialize(self) -> bytes:
        return self.content


class HostTensorRt:
    """The module, its runtime and its engine in one. A test makes it fail by setting what stands first."""

    def __init__(self, onnx: Path) -> None:
        self.onnx = OnnxRuntime(onnx, threads=1)
        self.device = HostDevice()
        self.device.gpu = Gpu("host", "8.9", "13.0")  # type: ignore[assignment]
        self.starting: Callable[[], None] = lambda: None
        self.loading: Callable[[], None] = lambda: None
        self.loads = True
        self.invalid = 0
        """The bits of why, where a plan is."""
        self.says: list[tuple[str, str]] = []
        """To the logger, when a plan's validity is asked: severity and message."""
        self.deaf: set[str] = set()
        self.cache: Any = Cache()
        self.configs: list[Any] = []
        self.contexts: list[OnnxContext] = []
        self.module = SimpleNamespace(
            ILogger=HostLogger,
            Runtime=self._runtime,
            EngineValidity=SimpleNamespace(VALID="VALID", INVALID="INVALID"),
            EngineInvalidityDiagnostics=SimpleNamespace(
                __members__={name: SimpleNamespace(value=bit) for name, bit in INVALID.items()}
            ),
            ComputeCapability=SimpleNamespace(__members__=CAPABILITIES),
            TensorIOMode=SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT"),
            DataType=SimpleNamespace(UINT8="UINT8"),
            DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="EAGER"),
            CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="WHOLE"),
        )

    def be_plain(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From now on it is `tensorrt`, which compiles nothing and records no graphs: `TensorRtSlot` does."""
        del self.module.DynamicShapesKernelSpecializationStrategy, self.module.CudaGraphStrategy
        monkeypatch.setattr(
            tensorrt_slot, "CudaGraph", lambda handle, enqueue: RecordedGraph(self.device, handle, enqueue)
        )

    def install(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Whoever opens a plan gets this."""
        monkeypatch.setenv("ISICRT_CACHE", str(cache / "isicrt"))
        monkeypatch.setenv("LOCALAPPDATA", str(cache))
        monkeypatch.setattr(tensorrt_runtime, "CudaDevice", lambda index: self.device)
        monkeypatch.setattr(tensorrt_api, "load", lambda flavour: TensorRt(flavour, self.module, VERSION))

    def write(self, path: Path, onnx: Path, **builder: Any) -> Path:
        """A plan of it, with the card of the ONNX file."""
        card = read_onnx_card(onnx)
        known = {"flavour": "tensorrt-rtx", "version": VERSION, "source": "best.pt", "profile": [1, 4, LARGEST]}
        write_plan(path, card.replace(builder=known | builder), b"plan")
        return path

    def _runtime(self, log: Any) -> Any:
        self.starting()

        def validity(header: bytes) -> tuple[str, int]:
            for said in self.says:
                log.log(*said)
            return "INVALID" if self.invalid else "VALID", self.invalid

        return SimpleNamespace(
            engine_header_size=64,
            get_engine_validity=validity,
            deserialize_cuda_engine=self._load,
        )

    def _load(self, plan: bytes) -> Any:
        self.loading()
        height, width = self.onnx.card.input_size
        shapes = {"image": (-1, height, width, 3), "probability": (-1, height, width)}
        engine = SimpleNamespace(
            num_io_tensors=2,
            get_tensor_name=lambda n: list(shapes)[n],
            get_tensor_mode=lambda name: "INPUT" if name == "image" else "OUTPUT",
            get_tensor_shape=shapes.__getitem__,
            get_tensor_dtype=lambda name: "UINT8",
            get_tensor_profile_shape=lambda name, n: [(size, height, width, 3) for size in (1, 4, LARGEST)],
            create_runtime_config=self.create_runtime_config,
            create_execution_context=self._context,
        )
        return engine if self.loads else None

    def create_runtime_config(self) -> Any:
        self.configs.append(RuntimeConfig(self.cache, self.deaf))
        return self.configs[-1]

    def _context(self, config: Any = None) -> Any:
        self.contexts.append(OnnxContext(self.device, self.onnx, LARGEST))
        return self.contexts[-1]
