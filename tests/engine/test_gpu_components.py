from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from isicrt.engine import cuda_driver, gpu_components
from isicrt.engine.cuda_driver import Gpu
from isicrt.engine.gpu_components import (
    PROBES,
    Component,
    Probe,
    describe_compiler,
    describe_driver,
    installed_distributions,
    judge,
    probe,
    run_python,
)
from tests.engine.stand_ins import failing_driver

WANTED = Probe("Thing", "thing|thing_bindings", "gpu", "m.Builder; version = m.__version__", r"thing-cu(\d+)")
HOPPER = Gpu("NVIDIA H100", "9.0", "13.0", "580.1")
ADA = Gpu("NVIDIA GeForce RTX 4090", "8.9", "13.0", "580.1")
RTX = Component("TensorRT for RTX", "ok", "1.7", "13", capabilities=("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"))
OLD_DRIVER = Gpu("NVIDIA A100", "8.0", "12.4", "550.1")


@pytest.mark.parametrize(
    ("files", "status", "detail"),
    [
        ({}, "missing", "not installed"),
        ({"thing.py": "__version__ = '3.1'\nclass Builder: pass"}, "ok", ""),
        ({"thing_bindings.py": "__version__ = '3.1'\nclass Builder: pass"}, "ok", ""),
        ({"thing.py": "import numpi"}, "broken", "No module named 'numpi'"),
        ({"thing.py": "raise OSError('libthing.so.3: cannot open')"}, "broken", "libthing.so.3: cannot open"),
        ({"thing.py": "__version__ = '3.1'"}, "broken", "has no attribute 'Builder'"),
        ({"thing.py": "import sys; sys.exit(3)"}, "broken", "exit code 3"),
        ({"thing.py": "print('not what was asked'); import os; os._exit(0)"}, "broken", "exit code 0"),
        pytest.param(
            {"thing.py": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"},
            "broken",
            "crashed (SIGKILL)",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="no signals there"),
        ),
    ],
)
def test_what_a_package_may_be_like(tmp_path: Path, files: dict[str, str], status: str, detail: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = probe(WANTED, ["thing-cu13"], path=[str(tmp_path), *sys.path])
    assert found.status == status
    assert detail in found.detail
    if status == "ok":
        assert (found.version, found.cuda, found.advice) == ("3.1", "13", "")
    else:
        assert found.advice == "pip install '.[gpu]' in isicrt's repository"


@pytest.mark.parametrize("available", [True, False])
def test_torch_says_whether_it_would_use_a_gpu(tmp_path: Path, available: bool) -> None:
    (tmp_path / "torch.py").write_text(
        f"class version: cuda = None\nclass cuda: is_available = staticmethod(lambda: {available})\n__version__ = '2.9'"
    )
    found = probe(next(p for p in PROBES if p.name == "PyTorch"), path=[str(tmp_path), *sys.path])
    assert found.sees_gpu is available


def test_a_package_that_hangs_is_left_alone() -> None:
    assert run_python("import time; time.sleep(60)", seconds=0.5) == (None, "did not answer within 0.5 s")


def test_a_file_in_the_current_folder_is_not_taken_for_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thing.py").write_text("raise RuntimeError('of the user')")
    monkeypatch.chdir(tmp_path)
    assert probe(WANTED, path=[entry for entry in sys.path if entry]).status == "missing"


@pytest.mark.parametrize(
    ("component", "gpus", "status", "detail"),
    [
        (Component("DALI", "ok", "2.4", "13"), [OLD_DRIVER], "unfit", "CUDA 13, but the driver serves CUDA 12.4"),
        (Component("DALI", "ok", "2.4", "12"), [HOPPER], "ok", ""),
        (Component("DALI", "ok", "2.4", "13"), [], "ok", ""),
        (Component("TensorRT", "ok", "10.3.0", "13"), [HOPPER], "unfit", "isicrt needs 10.12 or newer"),
        (Component("TensorRT", "ok", "10.12.0.36", "13"), [HOPPER], "ok", ""),
        (Component("TensorRT", "ok", "11.4.0.106", "13"), [HOPPER], "ok", ""),
        (RTX, [ADA], "ok", ""),
        (RTX, [], "ok", ""),
        (RTX, [HOPPER], "unfit", "runs on compute capability 7.5, 8.0, 8.6, 8.9, 12.0, 12.1; this GPU has 9.0"),
        (RTX, [Gpu("NVIDIA B200", "10.0", "13.0")], "unfit", "this GPU has 10.0"),
        (RTX, [Gpu("Tesla V100", "7.0", "13.0")], "unfit", "this GPU has 7.0"),
        (Component("TensorRT for RTX", "ok", "1.0", "13"), [HOPPER], "ok", ""),  # which does not say
        (Component("PyCUDA", "broken", detail="libcuda.so.1"), [], "broken", "libcuda.so.1; it can be imported only"),
        (Component("PyCUDA", "broken", detail="no numpy", advice="pip"), [HOPPER], "broken", "no numpy"),
        (Component("PyTorch", "ok", "2.9", None, "built for CPUs only", sees_gpu=False), [ADA], "note", "CPUs only"),
        (Component("PyTorch", "ok", "2.9", None, "built for CPUs only", sees_gpu=False), [], "ok", "CPUs only"),
        (Component("PyTorch", "ok", "2.9", "13.0", "sees the GPU", sees_gpu=True), [ADA], "ok", "sees the GPU"),
        (Component("PyTorch", "ok", "2.9", "13.0", sees_gpu=False), [OLD_DRIVER], "unfit", "built for CUDA 13"),
        (Component("ONNX", "missing", detail="not installed"), [HOPPER], "missing", "not installed"),
    ],
)  # fmt: skip
def test_what_fits_and_what_does_not(component: Component, gpus: Sequence[Gpu], status: str, detail: str) -> None:
    (found,) = judge([component], gpus)
    assert found.status == status
    assert detail in found.detail
    assert bool(found.advice) == (
        (status == "unfit" and "7.0" not in detail) or component.advice != "" or status == "note"
    )


def test_the_one_that_was_built_for_another_cuda_is_named_and_not_the_others() -> None:
    parts = [
        Component("PyTorch", "ok", "2.9", "12.8", "sees the GPU"),
        Component("DALI", "ok", "2.4", "13"),
        Component("TensorRT", "ok", "11.4", "13"),
        Component("PyCUDA", "broken", cuda="11"),
    ]
    torch, *others = judge(parts, [ADA])
    assert (torch.status, torch.detail) == ("note", "sees the GPU; built for CUDA 12, but DALI, TensorRT for CUDA 13")
    assert [c.status for c in others] == ["ok", "ok", "broken"]


def test_real_packages_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    names = installed_distributions()
    assert {"numpy", "onnxruntime"} <= set(names)
    rtx = next(p for p in PROBES if p.name == "TensorRT for RTX")
    bindings = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")
    found = probe(rtx, names)
    known = tuple(f"{name[2:-1]}.{name[-1]}" for name in bindings.ComputeCapability.__members__ if "SM" in name)
    assert found == Component("TensorRT for RTX", "ok", bindings.__version__, "13", capabilities=known)
    assert "8.9" in known
    assert "9.0" not in known
    (judged,) = judge([found], [HOPPER])
    assert judged.status == "unfit"


@pytest.mark.parametrize(
    ("name", "wheel", "cuda"),
    [
        ("DALI", "nvidia-dali-cuda130", "13"),
        ("nvImageCodec", "nvidia-nvimgcodec-cu12", "12"),
        ("TensorRT", "tensorrt-cu13", "13"),
        ("TensorRT", "tensorrt-cu12-bindings", "12"),
        ("TensorRT", "tensorrt-rtx-cu13-bindings", None),
        ("TensorRT for RTX", "tensorrt-rtx-cu13-libs", "13"),
    ],
)
def test_a_wheels_name_says_its_cuda(name: str, wheel: str, cuda: str | None) -> None:
    from isicrt.engine.gpu_components import _wheel_cuda

    assert _wheel_cuda(next(p for p in PROBES if p.name == name), ["numpy", wheel]) == cuda


def test_a_driver_that_finds_no_gpu_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = failing_driver("cuInit", 803, b"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH")
    for module in (cuda_driver, gpu_components):
        monkeypatch.setattr(module, "driver_library", lambda: driver)
    found = describe_driver([])
    assert found.status == "broken"
    assert found.detail == "its library is here but finds no GPU (cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH)"


@pytest.mark.skipif(sys.platform == "win32", reason="the compiler here is a shell script")
@pytest.mark.parametrize(
    ("script", "status", "version"),
    [
        (None, "missing", None),
        ("echo 'Cuda compilation tools, release 13.0, V13.0.88'", "ok", "13.0.88"),
        ("echo what", "broken", None),
    ],
)
def test_the_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, status: str, version: str | None
) -> None:
    if script is not None:
        (tmp_path / "nvcc").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = describe_compiler()
    assert (found.status, found.version) == (status, version)
