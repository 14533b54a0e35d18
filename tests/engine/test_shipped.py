"""Models by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from isicrt.engine import open_runtime, shipped
from isicrt.engine.errors import ModelError


@pytest.fixture
def shelf(tmp_path: Path, darkness_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped models: three of them, the default among them."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("aaa", shipped.DEFAULT, "zzz"):
        shutil.copy(darkness_onnx, folder / f"{name}.onnx")
    monkeypatch.setattr(shipped, "_FOLDER", folder)
    return folder


def test_the_default_comes_first(shelf: Path) -> None:
    assert shipped.names() == [shipped.DEFAULT, "aaa", "zzz"]


@pytest.mark.parametrize(("model", "file"), [(None, f"{shipped.DEFAULT}.onnx"), ("aaa", "aaa.onnx")])
def test_names_become_files(shelf: Path, model: str | None, file: str) -> None:
    assert shipped.resolve(model) == shelf / file


def test_a_file_is_itself(shelf: Path, darkness_onnx: Path) -> None:
    assert shipped.resolve(darkness_onnx) == darkness_onnx


@pytest.mark.parametrize("model", ["nobody", "../models/aaa", "/absent/model.onnx"])
def test_what_is_neither(shelf: Path, model: str) -> None:
    with pytest.raises(ModelError, match=f"shipped: {shipped.DEFAULT}, aaa, zzz"):
        shipped.resolve(model)


@pytest.mark.skipif(not shipped.names(), reason="no model ships with this checkout")
def test_every_shipped_model_runs() -> None:
    for name in shipped.names():
        with open_runtime(shipped.resolve(name)) as runtime:
            assert runtime.card.name == name
            assert runtime.card.scores
            probability = runtime.infer(np.zeros((1, *runtime.card.input_size, 3), np.uint8))
            assert probability.shape == (1, *runtime.card.input_size)
