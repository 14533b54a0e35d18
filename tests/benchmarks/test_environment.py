from __future__ import annotations

import json
import os

import pytest

from isicrt._version import __version__
from isicrt.benchmarks.environment import Environment, read_environment, recorded_command


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
