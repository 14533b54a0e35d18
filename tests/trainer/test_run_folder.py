"""What a run folder says of its run: the name of its model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from isicrt.engine.card import MAX_NAME, ModelCard
from isicrt.engine.errors import SettingsError
from isicrt.engine.shipped import names
from isicrt.trainer.data_hash import Alias
from isicrt.trainer.dataset import Pair
from isicrt.trainer.recipe import load_recipe, recipe_names
from isicrt.trainer.run import RunSettings
from isicrt.trainer.run_folder import check_config, check_identity, model_name, run_name, write_validation

RECIPE = load_recipe("unet-light")


def name_of(out: Path, *, fold: int | None = 0, part: int | None = None) -> str:
    held_out = None if part is None else (part, 4)
    return model_name(RunSettings(recipe=RECIPE, data=(), out=out, fold=fold, held_out=held_out))


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("runs/mine", "mine"),
        ("runs/unet-light-fold3", "unet-light-fold3"),
        ("runs/other/..", "runs"),
        (".", "here"),
        ("runs/unet-light-x", "unet-light-x"),
        ("runs/two\nlines", "two_lines"),
        (os.fsdecode(b"runs/caf\xe9"), "caf_"),
        ("runs/ ", "unet-light-fold0"),
        ("/", "unet-light-fold0"),
        ("runs/segnet-attention-light", "unet-light-fold0"),
    ],
)
def test_a_model_is_called_as_its_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, expected: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert name_of(Path(folder)) == expected
    ModelCard(name=expected, architecture="unet", input_height=32, input_width=32)


@pytest.mark.parametrize("name", names())
def test_no_run_takes_the_name_of_a_model_that_ships(tmp_path: Path, name: str) -> None:
    assert name_of(tmp_path / name) == "unet-light-fold0"
    assert name_of(tmp_path / name, fold=None) == "unet-light-all"


def test_a_long_name_leaves_room_for_what_an_export_appends(tmp_path: Path) -> None:
    name = name_of(tmp_path / ("x" * 250))
    assert name == "x" * len(name)
    assert 100 < len(name) <= MAX_NAME - len("-int8-x64")


def test_a_teacher_is_called_after_the_run_that_it_teaches(tmp_path: Path) -> None:
    assert name_of(tmp_path / "soft" / "teachers" / "2", part=2) == "soft-teacher2"


@pytest.mark.parametrize(
    ("because", "earlier", "same_folds", "change", "says", "never"),
    [
        ("X", True, True, {}, ["cannot go on with this isicrt", "with X. Finish it with an isicrt before"], "--fold n"),
        ("X", True, False, {}, ["and with --fold none, because its folds were others"], "other settings"),
        ("X", True, False, {"fold": None}, ["other settings", "fold: 0 then", "with X. Finish it"], "--fold none"),
        ("no groups.csv", False, False, {}, ["other settings", "with no groups.csv. Take that file away"], "Finish"),
    ],
)
def test_data_that_are_the_same_under_another_hash_are_explained(
    *, because: str, earlier: bool, same_folds: bool, change: dict, says: list[str], never: str
) -> None:
    then, now = {"data_sha256": "before", "fold": 0}, {"data_sha256": "now", "fold": 0, **change}
    aliases = (Alias("another", "Y", same_folds=True, earlier=True), Alias("before", because, same_folds, earlier))
    with pytest.raises(SettingsError) as caught:
        check_identity(Path("r/last.pt"), {"identity": then}, now, aliases)
    message = str(caught.value)
    for text in (*says, "data_sha256: 'before' then, 'now' now (--data)", "--start-from r/last.pt and another --out"):
        assert text in message
    assert never not in message
    with pytest.raises(SettingsError) as caught:
        check_identity(Path("r/last.pt"), {"identity": then}, now, aliases[:1])
    assert "Its data were" not in str(caught.value)


def test_they_are_explained_to_a_run_without_a_checkpoint_too(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data_sha256: before\nfold: 0\n")
    aliases = (Alias("before", "X", same_folds=True, earlier=True),)
    with pytest.raises(SettingsError, match=r"with X\. Finish it .*, or begin another run in another --out") as caught:
        check_config(tmp_path, {"data_sha256": "now", "fold": 0}, None, aliases)
    assert "--start-from" not in str(caught.value)


def test_names_of_recipes_and_runs() -> None:
    assert {"unet-light", "report-unet"} <= set(recipe_names())
    assert (run_name(RECIPE, 3), run_name(RECIPE, None)) == ("unet-light-fold3", "unet-light-all")


def test_the_images_of_the_validation_by_their_ids(tmp_path: Path) -> None:
    names = ["ISIC_0000001", "naïve", os.fsdecode(b"caf\xe9")]
    write_validation([Pair(name, tmp_path / "image", tmp_path / "mask") for name in names], tmp_path)
    file = tmp_path / "validation.txt"
    assert file.read_bytes() == "ISIC_0000001\nnaïve\n".encode() + b"caf\xe9\n"
    write_validation([], tmp_path)
    assert not file.exists()
