"""A card that says when to look again: what it may be put on, and what of it does not go further."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from isicrt.engine.errors import BuildError
from isicrt.engine.onnx_file import read_onnx_card
from isicrt.export.second_look import look_again_below, main, with_second_look
from isicrt.export.views import views_card
from tests.tiny_models import darkness_card, write_darkness_model


def test_the_card_changes_and_the_network_does_not(tmp_path: Path) -> None:
    source, out = tmp_path / "model.onnx", tmp_path / "looking.onnx"
    card = write_darkness_model(source, scores={"test": {"jaccard": 0.8}})
    done = CliRunner().invoke(main, [str(source), str(out), "--below", "0.9"])
    assert done.exit_code == 0, done.output
    assert read_onnx_card(out) == card.replace(second_look=0.9, scores={"test, of one look": {"jaccard": 0.8}})
    assert onnx.load(str(out)).graph == onnx.load(str(source)).graph
    careful = tmp_path / "careful.onnx"
    done = CliRunner().invoke(main, [str(out), str(careful), "--below", "0.97", "--zoom", "2"])
    assert "a second look below a confidence of 0.97, zoom 2" in done.output
    found = read_onnx_card(careful)
    assert (found.second_look, found.second_look_zoom) == (0.97, 2)
    back = tmp_path / "back.onnx"
    back.write_bytes(look_again_below(careful, 0.9))
    assert list(read_onnx_card(back).scores) == ["test, of one look"]


@pytest.mark.parametrize("scored", [(0.0, 0.0), (0.9, 0.0), (0.97, 1.5)])
def test_a_score_is_marked_while_the_model_looks_another_way(scored: tuple[float, float]) -> None:
    card = darkness_card(second_look=scored[0], second_look_zoom=scored[1], scores={"test, 2018": {}})
    marks = {(0.0, 0.0): "of one look", (0.9, 0.0): "with a second look below 0.9"}
    mark = marks.get(scored, "with a second look below 0.97 and a zoom of 1.5")
    for look in ((0.5, 0.0), (0.5, 2.0), (0.0, 0.0), (0.97, 1.5), (0.9, 0.0), (0.0, 0.0)):
        card = with_second_look(card, *look)
        assert list(card.scores) == ["test, 2018" if look == scored else f"test, 2018, {mark}"]


def test_a_score_that_was_marked_at_each_change_is_of_the_first() -> None:
    marks = "of one look, with a second look below 0.9 and a zoom of 1.5, with a second look below 0.5"
    card = darkness_card(second_look=0.97, scores={f"test, {marks}": {}})
    assert list(with_second_look(card, 0.0).scores) == ["test"]
    assert list(with_second_look(card, 0.9).scores) == ["test, of one look"]
    converted = darkness_card(second_look=0.9, scores={"test, of one look, before the conversion to fp16": {}})
    assert list(with_second_look(converted, 0.0).scores) == ["test, before the conversion to fp16"]


@pytest.mark.parametrize("below", ["1", "-0.1", "high"])
def test_no_such_confidence(tmp_path: Path, below: str) -> None:
    write_darkness_model(tmp_path / "model.onnx")
    done = CliRunner().invoke(main, [str(tmp_path / "model.onnx"), str(tmp_path / "out.onnx"), "--below", below])
    assert done.exit_code == 2
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(("below", "zoom", "code"), [("0.9", "0.5", 1), ("0", "2", 1), ("0.9", "11", 2)])
def test_no_such_zoom(tmp_path: Path, below: str, zoom: str, code: int) -> None:
    write_darkness_model(tmp_path / "model.onnx")
    arguments = [str(tmp_path / "model.onnx"), str(tmp_path / "out.onnx"), "--below", below, "--zoom", zoom]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == code
    assert "zoom" in done.output
    assert not (tmp_path / "out.onnx").exists()


def test_what_cannot_look_again(tmp_path: Path) -> None:
    views, wide, out = tmp_path / "views.onnx", tmp_path / "wide.onnx", tmp_path / "out.onnx"
    write_darkness_model(views, network={"views": 4})
    write_darkness_model(wide, (64, 96))
    for file, message in ((views, "the mean of 4 views of each image already"), (wide, "square inputs")):
        done = CliRunner().invoke(main, [str(file), str(out), "--below", "0.9"])
        assert done.exit_code == 1
        assert message in done.output
    assert not out.exists()


def test_views_are_made_of_what_does_not_look_again() -> None:
    with pytest.raises(BuildError, match="takes a second look"):
        views_card(darkness_card(second_look=0.9), 4)
