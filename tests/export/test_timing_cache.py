"""The timing cache of `tensorrt`, on TensorRT for RTX under its name: the builder's calls are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")

from isicrt.engine import tensorrt_api
from isicrt.engine.cuda_driver import Gpu
from isicrt.engine.errors import BuildError
from isicrt.export.half import to_half
from isicrt.export.tensorrt_build import NO_TUNING, Profile, _TimingCache, build_engine, timing_cache_path

GPU = Gpu("NVIDIA H100 80GB HBM3", "9.0", "13.0", "580.95.05")


@pytest.fixture
def trt() -> tensorrt_api.TensorRt:
    return tensorrt_api.TensorRt("tensorrt", tensorrt_api.load("tensorrt-rtx").module, "11.4.0")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ISICRT_CACHE", str(tmp_path / "isicrt"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    path = timing_cache_path("11.4.0", GPU)
    assert path is not None
    return path


def _build(
    trt: tensorrt_api.TensorRt, model: onnx.ModelProto, on_progress: Callable[[float], None] | None = None
) -> int:
    data, profile = to_half(model).SerializeToString(), Profile(1, 2, 4)
    return len(build_engine(trt, data, profile, half=True, gpu=GPU, on_progress=on_progress).plan)


def test_a_cache_is_written_and_read_and_is_in_nobodys_way(
    trt: tensorrt_api.TensorRt, tiny_onnx: onnx.ModelProto, path: Path
) -> None:
    """Fresh, again, damaged, and with a folder in its place: each time there is an engine."""
    assert _build(trt, tiny_onnx) > 1000
    fresh = path.read_bytes()
    assert fresh
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert _build(trt, tiny_onnx) > 1000
    assert path.is_file()
    path.write_bytes(fresh[: len(fresh) // 2] + b"rubbish")
    assert _build(trt, tiny_onnx) > 1000
    assert len(path.read_bytes()) >= len(fresh)
    path.unlink()
    path.mkdir()
    assert _build(trt, tiny_onnx) > 1000
    assert path.is_dir()


class _Stopped(Exception):
    pass


def test_a_build_that_is_stopped_keeps_what_it_has_timed(
    trt: tensorrt_api.TensorRt, tiny_onnx: onnx.ModelProto, path: Path
) -> None:
    def stop(fraction: float) -> None:
        if fraction > 0.5:
            raise _Stopped

    with pytest.raises(_Stopped):
        _build(trt, tiny_onnx, stop)
    assert path.read_bytes()


def test_a_build_that_fails_keeps_what_it_has_timed(
    trt: tensorrt_api.TensorRt, tiny_onnx: onnx.ModelProto, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt.module.Builder, "build_serialized_network", lambda *_: None)
    with pytest.raises(BuildError, match="could not build the engine"):
        _build(trt, tiny_onnx)
    assert path.read_bytes()


def test_without_a_home_nothing_is_kept(
    trt: tensorrt_api.TensorRt, tiny_onnx: onnx.ModelProto, without_home: None
) -> None:
    assert timing_cache_path("11.4.0", GPU) is None
    assert _build(trt, tiny_onnx) > 1000


class _Config:
    """`IBuilderConfig`: `made` is what `create_timing_cache` gives, `kept` what `get_timing_cache` does."""

    def __init__(self, made: Callable[[bytes], Any], kept: Any, *, takes: bool = True) -> None:
        self.made, self.kept, self.takes = made, kept, takes
        self.taken: list[Any] = []

    def create_timing_cache(self, content: bytes) -> Any:
        return self.made(content)

    def set_timing_cache(self, cache: Any, *, ignore_mismatch: bool) -> bool:
        if cache is None:
            raise TypeError("incompatible function arguments")
        assert not ignore_mismatch
        self.taken.append(cache)
        return self.takes

    def get_timing_cache(self) -> Any:
        return self.kept


@pytest.mark.parametrize(
    ("config", "taken"),
    [
        (_Config(lambda content: None, None), []),
        (_Config(lambda content: content or "empty", None), [b"old"]),
        (_Config(lambda content: content or "empty", None, takes=False), [b"old", "empty"]),
        (_Config(lambda content: "empty" if not content else None, None), ["empty"]),
        (_Config(lambda content: content, SimpleNamespace(serialize=lambda: None)), [b"old"]),
    ],
)
def test_where_tensorrt_has_no_cache_the_build_goes_on(
    trt: tensorrt_api.TensorRt, path: Path, config: _Config, taken: list[Any]
) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"old")
    cache = _TimingCache(trt, config, GPU, NO_TUNING)
    cache.save()
    assert config.taken == taken
    assert path.read_bytes() == b"old"
