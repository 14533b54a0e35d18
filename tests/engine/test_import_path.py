"""Processes of isicrt's own run no module of the folder that a program has gone to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import isicrt
from isicrt.engine.import_path import import_path

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
