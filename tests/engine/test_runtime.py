"""Which runtime opens which file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from isicrt.engine import open_runtime
from isicrt.engine.errors import ModelError
from isicrt.engine.onnx_runtime import OnnxRuntime


@pytest.mark.parametrize("name", ["m.onnx", "M.ONNX"])
def test_onnx_goes_to_onnx_runtime(darkness_onnx: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(darkness_onnx, tmp_path / name)
    with open_runtime(str(tmp_path / name), threads=1) as runtime:
        assert isinstance(runtime, OnnxRuntime)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.onnx", "no such model file"),
        ("folder.onnx", "no such model file"),
        ("best.pt", "isicrt build-engine"),
        ("BEST.PT", "isicrt build-engine"),
        ("model.bin", r"expected an \.onnx or a \.plan file"),
        ("rubbish.plan", "not a plan made by"),
        ("RUBBISH.PLAN", "not a plan made by"),
    ],
)
def test_what_cannot_be_opened(tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / name
    if name.startswith("folder"):
        path.mkdir()
    elif not name.startswith("absent"):
        path.write_bytes(b"rubbish")
    with pytest.raises(ModelError, match=message):
        open_runtime(path)


@pytest.mark.parametrize(("threads", "cores", "expected"), [(5, 2, 2), (2, 5, 2), (None, 2, None)])
def test_a_network_takes_one_thread_a_core_at_most(
    darkness_onnx: Path, monkeypatch: pytest.MonkeyPatch, threads: int | None, cores: int, expected: int | None
) -> None:
    asked: list[int | None] = []

    def opened(path: Path, *, threads: int | None) -> None:
        asked.append(threads)

    monkeypatch.setenv("ISICRT_CPU_RUNTIME", "onnxruntime")
    monkeypatch.setattr("isicrt.engine.runtime.available_cores", lambda: cores)
    monkeypatch.setattr("isicrt.engine.onnx_runtime.OnnxRuntime", opened)
    open_runtime(darkness_onnx, threads=threads)
    assert asked == [expected]
