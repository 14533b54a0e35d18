"""What a run goes on from, and what it does not write over."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from isicrt.engine.errors import ModelError, SettingsError
from isicrt.trainer import checkpoint
from isicrt.trainer.loop import train
from tests.trainer.test_loop import StopAfter, settings


@pytest.fixture(scope="module")
def stopped(rendered_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs that was stopped after one."""
    out = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.raises(KeyboardInterrupt):
        train(settings(rendered_pairs, out), StopAfter(1))
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("held", [True, False])
def test_a_run_goes_on_in_its_own_folder_only(stopped: Path, rendered_pairs: Path, tmp_path: Path, held: bool) -> None:
    """Elsewhere it would write over what is there, or end without the best model of its first epochs."""
    out = tmp_path / "other"
    if held:
        shutil.copytree(stopped, out)
    before = contents(out) if held else {}
    with pytest.raises(SettingsError, match=rf"goes on in its own folder.*--out {stopped}, or leave --out away"):
        train(settings(rendered_pairs, out, resume=stopped / "last.pt"))
    assert (contents(out) if out.exists() else {}) == before
    with pytest.raises(ModelError, match=r"missing\.pt: no such checkpoint"):
        train(settings(rendered_pairs, out, resume=tmp_path / "missing.pt"))


def test_a_folder_has_several_names(
    stopped: Path, rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    train(settings(rendered_pairs, out, resume=Path(os.curdir) / "run" / "last.pt"))
    assert len(checkpoint.read_metrics(out)) == 3


@pytest.mark.parametrize("gone", [["last.pt"], ["last.pt", "metrics.csv"]])
def test_a_best_model_that_was_kept_is_not_written_over(
    rendered_pairs: Path, stopped: Path, tmp_path: Path, gone: list[str]
) -> None:
    """Its ``last.pt`` was deleted to save space."""
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    card, state = checkpoint.load(out / "best.pt")
    checkpoint.save(out / "best.pt", card=card, weights=state["weights"], epoch=2)
    for name in gone:
        (out / name).unlink()
    before = contents(out)
    with pytest.raises(SettingsError, match=r"holds the best\.pt of a run already.*--out"):
        train(settings(rendered_pairs, out))
    assert contents(out) == before


def test_a_run_that_was_killed_between_its_first_two_checkpoints_begins_anew(
    rendered_pairs: Path, stopped: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    for name in ("last.pt", "metrics.csv"):
        (out / name).unlink()
    train(settings(rendered_pairs, out))
    assert len(checkpoint.read_metrics(out)) == 3
