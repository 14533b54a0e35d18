"""Processes of isicrt's own run no module of the folder that a program has gone to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import isicrt
from isicrt.engine.errors import SettingsError
from isicrt.engine.import_path import import_path, own_python
from isicrt.engine.isolation import ImageDecoder
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.pipeline import run_jobs
from isicrt.engine.sources import find_jobs
from isicrt.engine.task_process import ProcessLost, TaskProcess

PROGRAM = """
import os, sys
sys.path.insert(0, sys.argv[1])  # else the one that is installed
import isicrt.engine.isolation, isicrt.engine.task_process
sys.path.insert(0, "")
os.chdir(sys.argv[2])
with isicrt.engine.isolation.ImageDecoder("always") as decoder:
    print(decoder("image.bmp", (8, 8)).native_size)
process = isicrt.engine.task_process.TaskProcess(len, bulk="question")
print(process.ask("abc"))
process.close()
"""


def test_a_program_that_has_gone_to_a_folder_of_strangers(tmp_path: Path) -> None:
    for name in ("isicrt", "json", "pickle", "numpy", "PIL"):
        (tmp_path / f"{name}.py").write_text("open('taken', 'w'); raise SystemExit")
    Image.new("RGB", (20, 10)).save(tmp_path / "image.bmp")
    own = str(Path(isicrt.__path__[0]).parent)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, own, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split("\n") == ["(10, 20)", "3", ""], done.stderr
    assert not (tmp_path / "taken").exists()


def test_what_is_relative_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    own = str(Path(isicrt.__path__[0]).parent)
    monkeypatch.setattr(sys, "path", ["", "some", "/there", own])
    assert import_path() == ["/there", own]
    monkeypatch.setattr(sys, "path", ["", "/there"])
    assert import_path() == [own, "/there"]
    monkeypatch.setattr(sys, "path", ["/there"])  # whoever found isicrt otherwise knows why
    assert import_path() == ["/there"]


@pytest.fixture(params=[("frozen", True), ("executable", None), ("executable", "")])
def without_python(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen program, which is its own `sys.executable`, and one that has Python within it."""
    monkeypatch.setattr(sys, *request.param, raising=False)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))


@pytest.mark.usefixtures("without_python")
def test_a_program_that_has_no_python_beside_it_decodes_itself(tmp_path: Path) -> None:
    assert own_python() is None
    Image.new("RGB", (20, 10)).save(tmp_path / "image.tif")
    with ImageDecoder() as decoder:
        assert decoder(tmp_path / "image.tif", (8, 8)).native_size == (10, 20)
    with pytest.raises(SettingsError, match="isolate 'always': this program has no Python"):
        ImageDecoder("always")


@pytest.mark.usefixtures("without_python")
def test_a_program_that_has_no_python_beside_it_starts_no_processes(darkness_onnx: Path, tmp_path: Path) -> None:
    process = TaskProcess(len, bulk="question")
    with pytest.raises(ProcessLost):
        process.ask("abc")
    Image.new("RGB", (20, 10)).save(tmp_path / "image.tif")
    jobs = find_jobs(tmp_path / "image.tif", tmp_path / "out")
    with OnnxRuntime(darkness_onnx, threads=1) as runtime:
        with pytest.raises(SettingsError, match=r"processes \(2\): this program has no Python"):
            run_jobs(jobs, runtime, processes=2)
        assert run_jobs(jobs, runtime).images == 1
