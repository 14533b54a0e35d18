"""The runtime configuration of TensorRT for RTX: names and files. It opens only where there is a GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from isicrt.engine.cuda_driver import Gpu
from isicrt.engine.errors import ModelError
from isicrt.engine.tensorrt_api import TensorRt
from isicrt.engine.tensorrt_kernels import KernelCache, kernel_cache_path, make_context
from tests.engine.host_tensorrt import Cache, RuntimeConfig
from tests.tiny_models import darkness_card

CARD = darkness_card(builder={"plan_sha256": "0123456789abcdef" * 4})
GPU = Gpu("NVIDIA GeForce RTX 4090", "8.9", "13.0", "580.95.05")


def refused(problem: str, advice: str = "") -> ModelError:
    return ModelError(f"it {problem}")


class Engine:
    """`ICudaEngine`, as far as contexts go."""

    def __init__(
        self, fits: bool = True, *, cache: bool = True, deaf: tuple[str, ...] = (), takes: bool = True
    ) -> None:
        self.cache = Cache(fits) if cache else None
        self.contexts: list[Any] = []
        self._deaf, self._takes = set(deaf), takes

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self.cache, self._deaf, takes_cache=self._takes)

    def create_execution_context(self, config: Any = None) -> Any:
        self.contexts.append(config)
        return "context"


RTX = TensorRt(
    "tensorrt-rtx",
    SimpleNamespace(
        CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="WHOLE"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="EAGER"),
    ),
    "1.7.1",
)


def open_cache(engine: Engine, trt: TensorRt = RTX) -> KernelCache:
    return KernelCache(trt, engine, CARD, GPU, refused=refused)


def used_cache(engine: Engine) -> KernelCache:
    """With a context that uses it."""
    kernels = open_cache(engine)
    make_context(RTX, engine, kernels, refused=refused)
    return kernels


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ISICRT_CACHE", str(tmp_path / "isicrt"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    return tmp_path / "isicrt"


def test_contexts_compile_first_record_graphs_and_share_the_compiled_kernels() -> None:
    engine = Engine()
    kernels = open_cache(engine)
    assert kernels.compiles
    assert [make_context(RTX, engine, kernels, refused=refused) for _ in range(2)] == [("context", True)] * 2
    assert [config.cuda_graph_strategy for config in engine.contexts] == ["WHOLE", "WHOLE"]
    assert [config.dynamic_shapes_kernel_specialization_strategy for config in engine.contexts] == ["EAGER", "EAGER"]
    assert all(config.cache is engine.cache for config in engine.contexts)


def test_a_strategy_that_is_not_taken_is_noticed() -> None:
    """C++ says so; Python's properties do not."""
    engine = Engine(deaf=("cuda_graph_strategy",))
    assert make_context(RTX, engine, open_cache(engine), refused=refused) == ("context", False)
    engine = Engine(deaf=("dynamic_shapes_kernel_specialization_strategy",))
    with pytest.raises(ModelError, match="it does not compile its kernels before it runs them"):
        make_context(RTX, engine, open_cache(engine), refused=refused)
    assert engine.contexts == []


def test_tensorrt_has_neither() -> None:
    engine, trt = Engine(), TensorRt("tensorrt", SimpleNamespace(), "11.4.0.106")
    kernels = open_cache(engine, trt)
    assert not kernels.compiles
    assert make_context(trt, engine, kernels, refused=refused) == ("context", False)
    assert engine.contexts == [None]
    kernels.save()


def test_without_a_cache_the_kernels_are_compiled_in_each_run(folder: Path) -> None:
    engine = Engine(cache=False)
    used_cache(engine).save()
    assert engine.contexts[0].cache is None
    assert not folder.exists()


def test_a_cache_that_no_context_takes_is_not_written(folder: Path) -> None:
    engine = Engine(takes=False)
    used_cache(engine).save()
    assert engine.contexts[0].cache is None
    assert not folder.exists()


def test_kernels_are_kept_for_the_next_run_and_written_only_when_they_are_new(folder: Path) -> None:
    path = kernel_cache_path("1.7.1", CARD, GPU)
    assert path == folder / "kernels-1.7.1-NVIDIA-GeForce-RTX-4090-sm8.9-580.95.05-0123456789abcdef.bin"
    first = used_cache(Engine())
    first.save()
    assert path.read_bytes() == b"fresh"
    engine = Engine()
    second = used_cache(engine)
    assert engine.cache.content == b"fresh"
    path.unlink()
    second.save()
    assert not path.exists()
    engine.cache.content = b"fresh and more"
    second.save()
    assert path.read_bytes() == b"fresh and more"


def test_without_a_home_nothing_is_kept(folder: Path, without_home: None) -> None:
    assert kernel_cache_path("1.7.1", CARD, GPU) is None
    engine = Engine()
    used_cache(engine).save()
    assert engine.contexts[0].cache is engine.cache
    assert not folder.exists()


def test_kernels_of_another_driver_are_written_over(folder: Path) -> None:
    path = kernel_cache_path("1.7.1", CARD, GPU)
    assert path is not None
    folder.mkdir()
    path.write_bytes(b"old")
    used_cache(Engine(fits=False)).save()
    assert path.read_bytes() == b"fresh"


def test_a_folder_that_cannot_be_written_costs_nothing(folder: Path) -> None:
    folder.write_bytes(b"in the way")
    used_cache(Engine()).save()
