"""The runtime configuration of TensorRT for RTX: names and files. It opens only where there is a GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from isicrt.engine.cuda_driver import Gpu
from isicrt.engine.tensorrt_api import TensorRt
from isicrt.engine.tensorrt_kernels import KernelCache, graph_context, kernel_cache_path
from tests.tiny_models import darkness_card

CARD = darkness_card(builder={"plan_sha256": "0123456789abcdef" * 4})
GPU = Gpu("NVIDIA GeForce RTX 4090", "8.9", "13.0", "580.95.05")


class Cache:
    """`IRuntimeCache`."""

    def __init__(self, fits: bool) -> None:
        self.fits, self.content = fits, b"fresh"

    def deserialize(self, blob: bytes) -> bool:
        if self.fits:
            self.content = blob
        return self.fits

    def serialize(self) -> bytes:
        return self.content


class Engine:
    """`ICudaEngine`, as far as contexts go."""

    def __init__(self, fits: bool = True) -> None:
        self.cache = Cache(fits)
        self.contexts: list[Any] = []

    def create_runtime_config(self) -> SimpleNamespace:
        config = SimpleNamespace(cuda_graph_strategy="DISABLED", create_runtime_cache=lambda: self.cache)
        config.set_runtime_cache = lambda cache: setattr(config, "cache", cache) or True
        return config

    def create_execution_context(self, config: Any = None) -> Any:
        self.contexts.append(config)
        return "context"


RTX = TensorRt("tensorrt-rtx", SimpleNamespace(CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="WHOLE")), "1.7.1")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    return tmp_path / "isicrt"


def test_contexts_record_graphs_and_share_the_compiled_kernels() -> None:
    engine = Engine()
    kernels = KernelCache(RTX, engine, CARD, GPU)
    assert kernels.records_graphs
    assert [graph_context(RTX, engine, kernels) for _ in range(2)] == ["context", "context"]
    assert [config.cuda_graph_strategy for config in engine.contexts] == ["WHOLE", "WHOLE"]
    assert all(config.cache is engine.cache for config in engine.contexts)


def test_tensorrt_has_neither() -> None:
    engine, trt = Engine(), TensorRt("tensorrt", SimpleNamespace(), "11.4.0.106")
    kernels = KernelCache(trt, engine, CARD, GPU)
    assert not kernels.records_graphs
    assert graph_context(trt, engine, kernels) == "context"
    assert engine.contexts == [None]
    kernels.save()


def test_kernels_are_kept_for_the_next_run_and_written_only_when_they_are_new(folder: Path) -> None:
    path = kernel_cache_path("1.7.1", CARD, GPU)
    assert path == folder / "kernels-1.7.1-NVIDIA-GeForce-RTX-4090-sm8.9-580.95.05-0123456789abcdef.bin"
    first = KernelCache(RTX, Engine(), CARD, GPU)
    first.save()
    assert path.read_bytes() == b"fresh"
    engine = Engine()
    second = KernelCache(RTX, engine, CARD, GPU)
    assert engine.cache.content == b"fresh"
    path.unlink()
    second.save()
    assert not path.exists()
    engine.cache.content = b"fresh and more"
    second.save()
    assert path.read_bytes() == b"fresh and more"


def test_kernels_of_another_driver_are_written_over(folder: Path) -> None:
    path = kernel_cache_path("1.7.1", CARD, GPU)
    folder.mkdir()
    path.write_bytes(b"old")
    KernelCache(RTX, Engine(fits=False), CARD, GPU).save()
    assert path.read_bytes() == b"fresh"


def test_a_folder_that_cannot_be_written_costs_nothing(folder: Path) -> None:
    folder.write_bytes(b"in the way")
    KernelCache(RTX, Engine(), CARD, GPU).save()
