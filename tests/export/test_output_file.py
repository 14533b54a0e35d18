"""No command that makes one model of another writes over the other, or works for minutes for a place not there."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from isicrt.cli import build_engine
from isicrt.engine import shipped
from isicrt.engine.errors import BuildError
from isicrt.export import quantisation, resizing, second_look, views

COMMANDS = {
    "quantisation": (quantisation.main, ["--images", "nowhere", "--out"]),
    "resizing": (resizing.main, ["--size", "96", "--out"]),
    "second look": (second_look.main, ["--below", "0.9"]),
    "views": (views.main, ["--views", "4"]),
}


@pytest.mark.parametrize("kind", COMMANDS)
@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("model", "is the model that it would be made of"),
        ("link", "is the model that it would be made of"),
        ("none/out.onnx", "there is no folder"),
        ("sealed/out.onnx", "cannot be written"),
        ("shipped/out.onnx", "lies among the models that ship"),
    ],
)
def test_the_place_is_looked_at_first(
    kind: str, out: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").write_bytes(b"no model, which nobody has found yet")
    (tmp_path / "link").hardlink_to(tmp_path / "model")
    (tmp_path / "sealed").mkdir()
    command, options = COMMANDS[kind]
    assert isinstance(command, click.Command)
    if out.startswith("shipped"):
        monkeypatch.setattr(shipped, "_FOLDER", tmp_path.resolve() / "shipped")
    if out.startswith("sealed"):
        monkeypatch.setattr("tempfile.TemporaryFile", _refuse)  # the tests may run as root, whom no mode stops
    done = CliRunner().invoke(command, [str(tmp_path / "model"), *options, str(tmp_path / out)])
    assert (done.exit_code, message in done.output) == (1, True), done.output
    assert (tmp_path / "model").read_bytes() == b"no model, which nobody has found yet"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link", "model", "sealed"]


def test_what_is_built_does_not_lie_among_the_models_that_ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path.resolve())
    # Without --out it is the current folder.
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(build_engine.command, ["none.onnx", "--target", "onnx"])
    assert isinstance(done.exception, BuildError), done.output
    assert str(done.exception).startswith("model.onnx: lies among the models that ship")
    assert not any(tmp_path.iterdir())


def _refuse(**_: object) -> None:
    raise PermissionError(13, "Permission denied")
