"""What OpenVINO alone does: networks that are compiled once, for the batch that they are called with."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isicrt.engine import openvino_runtime
from isicrt.engine.cpu_runtime import Call
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.openvino_runtime import OpenVinoRuntime
from tests.tiny_models import write_darkness_model

pytest.importorskip("openvino", reason="OpenVINO is not installed (extra openvino)")


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What OpenVINO was asked for, with an empty cache."""
    asked: list[str] = []
    core = openvino_runtime._core()

    class Watched:
        def __getattr__(self, name: str) -> Any:
            if name in ("compile_model", "import_model"):
                asked.append(name)
            return getattr(core, name)

    monkeypatch.setenv("ISICRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(openvino_runtime, "_core", Watched)
    return asked


def _openvino_sees(model: Path, threads: int = 1) -> UInt8Array:
    with OpenVinoRuntime(model, threads=threads) as runtime:
        return runtime.infer(np.arange(2 * 64 * 64 * 3, dtype=np.uint8).reshape(2, 64, 64, 3))


def test_a_network_is_compiled_once(compiled: list[str], darkness_onnx: Path, tmp_path: Path) -> None:
    first, again = _openvino_sees(darkness_onnx), _openvino_sees(darkness_onnx)
    assert compiled == ["compile_model", "import_model"]
    np.testing.assert_array_equal(first, again)
    _openvino_sees(darkness_onnx, threads=2)
    write_darkness_model(tmp_path / "other.onnx", name="other")
    _openvino_sees(tmp_path / "other.onnx")
    # Streams for two threads and one call over two; and another file.
    assert compiled[2:] == ["compile_model"] * 3


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: data[:-1] + b"?", lambda _: b""])
def test_a_kept_network_that_was_damaged_is_compiled_again(
    compiled: list[str], darkness_onnx: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    first = _openvino_sees(darkness_onnx)
    (kept,) = (tmp_path / "cache" / "openvino").iterdir()
    kept.write_bytes(damage(kept.read_bytes()))
    np.testing.assert_array_equal(_openvino_sees(darkness_onnx), first)
    assert compiled == ["compile_model"] * 2
    _openvino_sees(darkness_onnx)
    assert compiled[2:] == ["import_model"], "and is whole again"


def test_what_openvino_does_not_take_is_compiled(
    compiled: list[str], darkness_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _openvino_sees(darkness_onnx)
    monkeypatch.setattr(openvino_runtime._CACHE, "read", lambda *key: b"of another version")
    np.testing.assert_array_equal(_openvino_sees(darkness_onnx), first)
    assert compiled == ["compile_model", "import_model", "compile_model"]


def test_openvinos_first_call_is_made_by_one_thread_before_there_are_others(
    darkness_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two first calls at a time wait for each other for ever."""
    callers = []
    real = openvino_runtime._caller

    def watched(compiled: Any) -> Call:
        call = real(compiled)

        def noted(images: UInt8Array) -> UInt8Array:
            callers.append(threading.current_thread())
            return call(images)

        return noted

    monkeypatch.setattr(openvino_runtime, "_caller", watched)
    with OpenVinoRuntime(darkness_onnx, threads=2) as runtime:
        assert callers == [threading.current_thread()]
        runtime.collect(runtime.submit(np.zeros((8, 64, 64, 3), np.uint8)))
    assert len(callers) == 5


def test_openvino_compiles_the_batch_that_it_is_called_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_for = []
    real = openvino_runtime._caller

    def watched(compiled: Any) -> Call:
        compiled_for.append(list(compiled.inputs[0].shape))
        return real(compiled)

    monkeypatch.setattr(openvino_runtime, "_caller", watched)
    for views in (1, 4):
        write_darkness_model(tmp_path / "views.onnx", network={"views": views})
        OpenVinoRuntime(tmp_path / "views.onnx", threads=1).close()
    assert compiled_for == [[2, 64, 64, 3], [1, 64, 64, 3]]
