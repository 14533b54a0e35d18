"""`isicrt models`: the table, one card, and what is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from isicrt.cli.main import group
from isicrt.engine import shipped
from isicrt.engine.card import ModelCard
from tests.tiny_models import darkness_card, write_darkness_model

SCORES = {"isic2016-test": {"images": 339, "protocol": "2018 masks", "jaccard": 0.8691, "dice": 0.9249}}


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped models."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setattr(shipped, "_FOLDER", folder)
    return folder


def _run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(group, ["models", *arguments], env={"COLUMNS": "120"})
    return result.exit_code, result.output


def test_the_table(shelf: Path) -> None:
    write_darkness_model(shelf / "other.onnx", name="other", precision="fp16")
    write_darkness_model(shelf / f"{shipped.DEFAULT}.onnx", (96, 64), name=shipped.DEFAULT, scores=SCORES)
    code, output = _run()
    heading, first, second, _, *notes = output.splitlines()
    assert code == 0
    assert heading.split() == ["Name", "Architecture", "Input", "Precision", "MB", "Jaccard", "Dice"]
    assert " ".join(first.split()) == f"{shipped.DEFAULT} test 96 x 64 fp32 0.0 0.869 0.925"
    assert " ".join(second.split()) == "other test 64 x 64 fp16 0.0 - -"
    assert notes == [f"{shipped.DEFAULT}: scores on isic2016-test", "other: no scores"]


def test_the_table_says_which_models_average_views(shelf: Path) -> None:
    write_darkness_model(shelf / "a-x4.onnx", name="a-x4", network={"views": 4})
    assert _run()[1].splitlines()[-1] == "a-x4: mean of 4 views of each image; no scores"


@pytest.mark.parametrize(("zoom", "said"), [(0.0, ""), (2.0, " and zooms in on what it found")])
def test_the_table_says_which_models_look_again(shelf: Path, zoom: float, said: str) -> None:
    write_darkness_model(shelf / "again.onnx", name="again", second_look=0.9, second_look_zoom=zoom)
    assert _run()[1].splitlines()[-1] == f"again: looks again where its confidence is below 0.9{said}; no scores"


def test_one_card_as_json(shelf: Path) -> None:
    write_darkness_model(shelf / "other.onnx", scores=SCORES)
    code, output = _run("other", "--json")
    assert code == 0
    assert ModelCard.from_json(output) == darkness_card(scores=SCORES)


def test_all_cards_as_json(shelf: Path) -> None:
    for name in ("b", "a"):
        write_darkness_model(shelf / f"{name}.onnx", name=name)
    code, output = _run("--json")
    assert code == 0
    assert [card["name"] for card in json.loads(output)] == ["a", "b"]


def test_one_card_to_read(darkness_onnx: Path) -> None:
    code, output = _run(str(darkness_onnx))
    assert code == 0
    lines = [line.partition(":") for line in output.splitlines()]
    assert {name: value.strip() for name, _, value in lines}["name"] == "darkness"
    assert all(value.startswith(" ") for _, _, value in lines)


@pytest.mark.parametrize("name", ["best.pt", "BEST.PT"])
def test_a_card_of_a_checkpoint(tmp_path: Path, name: str) -> None:
    pytest.importorskip("torch")
    from isicrt.trainer import checkpoint

    checkpoint.save(tmp_path / name, card=darkness_card(), weights={})
    code, output = _run(str(tmp_path / name), "--json")
    assert code == 0, output
    assert ModelCard.from_json(output) == darkness_card()
    (tmp_path / "torn.pt").write_bytes(b"rubbish")
    code, output = _run(str(tmp_path / "torn.pt"))
    assert code == 1
    assert "torn.pt: not a checkpoint" in output


def test_nothing_ships(shelf: Path) -> None:
    assert _run() == (0, "No model ships with this copy of isicrt. Train one with: isicrt train\n")
    assert _run("--json") == (0, "[]\n")


def test_an_unknown_name(shelf: Path) -> None:
    code, output = _run("nobody")
    assert code == 1
    assert "nobody: no such model file" in output
