from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from isicrt.cli.doctor import abilities, check_disk, verdict
from isicrt.cli.main import group
from isicrt.engine.cuda_driver import Gpu, find_gpu
from isicrt.engine.gpu_components import Component, describe_driver, judge


def _doctor(*arguments: str, path: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, "-m", "isicrt.cli.main", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=300)


def test_says_what_is_here_and_that_segment_runs() -> None:
    done = _doctor("--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    components = {component["name"]: component for component in report["components"]}
    assert report["can"]["segment"] is True
    for name in ("base packages", "CPU cores", "disk", "NVIDIA driver", "TensorRT", "PyCUDA"):
        assert components[name]["status"] in ("ok", "note", "missing", "broken", "unfit")
    assert "unet-light-int8 on onnxruntime-cpu: first image, with loading, in" in components["shipped model"]["detail"]
    assert "providers: " in components["ONNX Runtime"]["detail"]
    if find_gpu() is None:
        assert components["NVIDIA driver"]["status"] == "missing"
        assert report["can"]["run_plans"] == []


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("cv2.py", "raise ImportError('libGL.so.1: cannot open shared object file')", "libGL.so.1"),
        ("onnxruntime.py", "raise OSError('not for this processor')", "not for this processor"),
        ("numpy.py", "import os; os.abort()", "crashed"),
    ],
)
def test_a_broken_base_package_is_reported_and_not_suffered(tmp_path: Path, name: str, text: str, problem: str) -> None:
    (tmp_path / name).write_text(text)
    done = _doctor(path=tmp_path)
    assert done.returncode == 1, done.stdout
    assert "BROKEN  segmenting" in done.stdout
    assert problem in done.stdout
    assert "-> pip install --force-reinstall ." in done.stdout
    assert "isicrt segment: NO" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_broken_extra_leaves_segment_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.11: cannot open shared object file')")
    (tmp_path / "torch.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    done = _doctor(path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "BROKEN  TensorRT " in done.stdout
    assert "libnvinfer.so.11" in done.stdout
    assert "BROKEN  PyTorch" in done.stdout
    assert "-> pip install '.[gpu]'" in done.stdout
    assert "isicrt train: no (extra train)" in done.stdout


def test_takes_no_arguments() -> None:
    result = CliRunner().invoke(group, ["doctor", "please"])
    assert result.exit_code == 2
    assert "unexpected extra argument" in result.stderr


@pytest.mark.parametrize(
    ("names", "expected", "says"),
    [
        ([], (False, [], [], False), "isicrt segment: NO"),
        (["shipped model"], (True, [], [], False), "yes, on the CPU"),
        (["shipped model", "TensorRT for RTX", "ONNX"], (True, [], ["tensorrt-rtx"], False), "plans of tensorrt-rtx"),
        (["shipped model", "TensorRT", "ONNX"], (True, [], [], False), "no plans"),
        (
            ["shipped model", "NVIDIA driver", "TensorRT", "PyCUDA", "ONNX", "TensorRT for RTX", "PyTorch", "DALI"],
            (True, ["tensorrt", "tensorrt-rtx"], ["tensorrt", "tensorrt-rtx"], True),
            "isicrt train: yes, on the GPU",
        ),
        (["shipped model", "PyTorch", "DALI", "ONNX"], (True, [], [], True), "on the CPU, which takes hours"),
    ],
)
def test_what_can_be_done_with_what(names: list[str], expected: tuple[Any, ...], says: str) -> None:
    everything = ["shipped model", "NVIDIA driver", "TensorRT", "TensorRT for RTX", "PyCUDA", "ONNX", "PyTorch", "DALI"]
    parts = [
        Component(name, "ok" if name in names else "broken", sees_gpu="NVIDIA driver" in names) for name in everything
    ]
    can = abilities([], parts)
    assert (can["segment"], can["run_plans"], can["build_plans"], can["train"]) == expected
    assert says in "\n".join(verdict(can))


ADA = Gpu("NVIDIA GeForce RTX 4090", "8.9", "13.0", "580.1")
OLD_DRIVER = Gpu("NVIDIA A100", "8.0", "12.4", "550.1")
DALI = Component("DALI", "ok", "2.4", "13")


@pytest.mark.parametrize(
    ("gpus", "torch", "dali", "says"),
    [
        ([ADA], Component("PyTorch", "ok", "2.9", "13.0", sees_gpu=True), DALI, "yes, on the GPU"),
        ([ADA], Component("PyTorch", "ok", "2.9", None, sees_gpu=False), DALI, "yes, on the CPU"),  # for CPUs only
        ([OLD_DRIVER], Component("PyTorch", "ok", "2.9", "13.0", sees_gpu=False), DALI, "yes, on the CPU"),
        ([], Component("PyTorch", "ok", "2.9", "13.0", sees_gpu=False), DALI, "yes, on the CPU"),
        ([OLD_DRIVER], Component("PyTorch", "broken"), DALI, "no (extra train)"),
        ([ADA], Component("PyTorch", "ok", "2.9", "13.0", sees_gpu=True), Component("DALI", "missing"), "no"),
    ],
)
def test_where_isicrt_trains(gpus: list[Gpu], torch: Component, dali: Component, says: str) -> None:
    parts = judge([describe_driver(gpus), torch, dali, Component("ONNX", "ok")], gpus)
    assert f"isicrt train: {says}" in "\n".join(verdict(abilities([], parts)))


def test_where_tensorrt_for_rtx_does_not_fit_the_gpu_it_builds_and_runs_nothing() -> None:
    parts = [Component(name, "ok") for name in ("NVIDIA driver", "PyCUDA", "ONNX")]
    can = abilities([], [*parts, Component("TensorRT for RTX", "unfit", "1.7")])
    assert (can["run_plans"], can["build_plans"]) == ([], ["tensorrt-rtx"])
    can = abilities([], [*parts, Component("TensorRT", "unfit", "10.3")])
    assert (can["run_plans"], can["build_plans"]) == ([], [])


@pytest.mark.parametrize(
    ("status", "detail", "there"),
    [("ok", "", True), ("ok", "without libnvjpeg: no JPEG on the GPU", False), ("missing", "not installed", False)],
)
def test_where_images_are_decoded_for_a_plan(status: str, detail: str, there: bool) -> None:
    parts = [Component(name, "ok") for name in ("NVIDIA driver", "TensorRT", "PyCUDA")]
    can = abilities([], [*parts, Component("nvImageCodec", status, detail=detail)])
    assert can["decode_on_gpu"] is there
    assert f"yes, of tensorrt, images decoded {'there' if there else 'on the CPU'}" in "\n".join(verdict(can))
    assert abilities([], [Component("nvImageCodec", "ok")])["decode_on_gpu"] is False


def test_a_full_disk_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert check_disk(tmp_path).status in ("ok", "note")
    monkeypatch.setattr("isicrt.cli.doctor._LITTLE_DISK", 10**18)
    assert check_disk(tmp_path).status == "note"
    assert check_disk(tmp_path / "nowhere").status == "note"
