"""The mean of weights: of relatives only."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from isicrt.engine.card import ModelCard
from isicrt.engine.errors import ModelError
from isicrt.trainer import checkpoint
from isicrt.trainer.models import build_model
from isicrt.trainer.soup import average, main

WIDTHS = [8, 8, 8, 8]


def write(path: Path, value: float, *, start: str | None = "one", size: int = 64, **changes: Any) -> Path:
    """A checkpoint in which every weight is `value`."""
    training = {"seed": 1, "recipe": "r"} | ({} if start is None else {"start_from": {"sha256": start}})
    network = {"layout": "light", "decoder_channels": WIDTHS}
    card = ModelCard(
        **({"name": "a", "architecture": "unet", "network": network, "training": training} | changes),
        input_height=size,
        input_width=size,
        scores={"validation": {"jaccard": 0.5}},
    )
    state = build_model("unet", decoder_channels=WIDTHS).state_dict()
    weights = {k: torch.full_like(v, value) if v.is_floating_point() else v for k, v in state.items()}
    checkpoint.save(path, card=card, weights=weights)
    return path


def test_the_mean_of_three(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.pt", n) for n in (1.0, 2.0, 6.0)]
    result = CliRunner().invoke(main, [*map(str, paths), "--out", str(tmp_path / "mean.pt"), "--name", "soup"])
    assert result.exit_code == 0, result.output
    model, card = checkpoint.load_model(tmp_path / "mean.pt")
    assert {v for p in model.parameters() for v in p.unique().tolist()} == {3.0}
    assert (card.name, card.scores, len(card.training["mean_of"])) == ("soup", {}, 3)


def test_cousins_have_a_mean(tmp_path: Path) -> None:
    training = {"start_from": {"sha256": "parent", "start_from": {"sha256": "one"}}}
    paths = [write(tmp_path / "a.pt", 1.0), write(tmp_path / "b.pt", 2.0, training=training)]
    average(paths, tmp_path / "mean.pt")
    assert checkpoint.load(tmp_path / "mean.pt")[1]["weights"]["head.bias"].tolist() == [1.5]


def test_what_a_mean_says_of_its_training_is_true_of_all(tmp_path: Path) -> None:
    start = {"start_from": {"sha256": "one"}, "recipe": "r"}
    one = {**start, "data": ["a"], "data_sha256": "aa", "training_images": 26, "fold": 0, "validation_images": 10}
    two = {**start, "data": ["b"], "data_sha256": "bb", "training_images": 26, "fold": None}
    paths = [write(tmp_path / f"{n}.pt", n, training=training) for n, training in ((1.0, one), (2.0, two))]
    average(paths, tmp_path / "mean.pt")
    training = checkpoint.load(tmp_path / "mean.pt")[0].training
    assert training == {**start, "training_images": 26, "mean_of": [one, two]}


def test_a_run_and_one_that_left_it_at_a_stage(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    other.mkdir()
    stage = write(run / "small.pt", 7.0, start=None)
    (run / "notes.pt").write_text("something else")
    left = write(other / "a.pt", 2.0, start=hashlib.sha256(stage.read_bytes()).hexdigest())
    for n, paths in enumerate(([write(run / "ending.pt", 1.0, start=None), left], [left, run / "ending.pt"])):
        average(paths, tmp_path / f"{n}.pt")
        card, state = checkpoint.load(tmp_path / f"{n}.pt")
        assert state["weights"]["head.bias"].tolist() == [1.5]
        assert [("start_from" in part) for part in card.training["mean_of"]] == [n == 1, n == 0]
    later = {"seed": 1, "recipe": "r", "folds": 5, "arithmetic": "bfloat16"}
    average([write(run / "last.pt", 1.0, start=None, training=later), left], tmp_path / "later.pt")
    (run / "last.pt").unlink()
    write(stage, 7.0, start=None, training={"seed": 2})
    with pytest.raises(ModelError, match=r"ending\.pt: its run did not start .* nor did another from a stage of it"):
        average([run / "ending.pt", left], tmp_path / "mean.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": "another"}, "no start in common"),
        ({"start": None}, r"b\.pt: its run did not start from a checkpoint \(--start-from\)"),
        ({"size": 96}, "another network or input size"),
    ],
)
def test_strangers_have_no_mean(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    a, b = write(tmp_path / "a.pt", 1.0), write(tmp_path / "b.pt", 2.0, **change)
    with pytest.raises(ModelError, match=message):
        average([a, b], tmp_path / "mean.pt")
    assert not (tmp_path / "mean.pt").exists()


def test_a_mean_does_not_replace_what_it_is_made_of(tmp_path: Path) -> None:
    a, b = (write(tmp_path / f"{n}.pt", n) for n in (1.0, 2.0))
    before = b.read_bytes()
    (tmp_path / "link.pt").symlink_to(b)
    for out in (b, tmp_path / "link.pt"):
        result = CliRunner().invoke(main, [str(a), str(b), "--out", str(out)])
        assert result.exit_code == 1
        assert f"{out}: is one of those that it would be made of" in result.stderr
    assert b.read_bytes() == before
    empty = CliRunner().invoke(main, [str(a), str(b), "--out", ""])
    assert "it is empty; the current folder is ." in empty.stderr


def test_runs_without_a_start_are_not_compared_with_themselves(tmp_path: Path) -> None:
    a, b = (write(tmp_path / f"{name}.pt", 1.0, start=None) for name in "ab")
    with pytest.raises(ModelError, match=r"a\.pt: its run did not start from a checkpoint"):
        average([a, b], tmp_path / "mean.pt")


def test_a_mean_has_the_name_of_its_file(tmp_path: Path) -> None:
    average([write(tmp_path / f"{n}.pt", n) for n in (1.0, 2.0)], tmp_path / "mean.pt")
    assert checkpoint.load(tmp_path / "mean.pt")[0].name == "mean"


def test_one_has_no_mean(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [str(write(tmp_path / "a.pt", 1.0)), "--out", str(tmp_path / "mean.pt")])
    assert result.exit_code == 1
    assert "two checkpoints or more" in result.output
