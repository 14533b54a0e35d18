from __future__ import annotations

import hashlib
import json
import os
from datetime import datetime
from pathlib import Path

import pytest

from isicrt._version import __version__
from isicrt.benchmarks.environment import Environment, provenance, read_environment, recorded_command


def test_the_environment_of_this_machine() -> None:
    environment = read_environment()
    assert environment.versions["isicrt"] == __version__
    assert {"python", "numpy", "onnxruntime"} <= set(environment.versions)
    assert 1 <= environment.cores <= (os.cpu_count() or 1)
    assert environment.cpu
    assert environment.os
    assert Environment.from_dict(json.loads(json.dumps(environment.to_dict()))) == environment


def test_a_command_is_recorded_with_the_runtime_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ISICRT_CPU_RUNTIME", raising=False)
    assert recorded_command(["isicrt", "bench", "--images", "my images"]) == "isicrt bench --images 'my images'"
    monkeypatch.setenv("ISICRT_CPU_RUNTIME", "onnxruntime")
    assert recorded_command(["isicrt", "bench"]) == "ISICRT_CPU_RUNTIME=onnxruntime isicrt bench"


def test_a_figure_is_tied_to_the_files_it_is_of(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"abc")
    found = provenance(tmp_path / "m.onnx", None)
    assert datetime.fromisoformat(found["date"]).tzinfo is not None
    assert found["files"] == [{"name": "m.onnx", "sha256": hashlib.sha256(b"abc").hexdigest()}]
