"""Recipes: every shipped one loads, epochs are shared out, and what cannot be used is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from isicrt.engine.errors import SettingsError
from isicrt.trainer.models import ARCHITECTURES, build_model
from isicrt.trainer.recipe import FROM_START, Recipe, SoftLabels, Stage, load_recipe, recipe_names

STAGE = {"name": "s", "epochs": 2, "decoder_lr": 1e-3}
MINIMAL = {"name": "r", "architecture": "unet", "stages": [STAGE]}


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load_and_name_themselves(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    if recipe.layout == "light" and recipe.architecture != FROM_START:
        build_model(recipe.architecture, layout=recipe.layout, decoder_channels=recipe.decoder_channels)


def test_every_architecture_has_a_light_and_a_report_recipe() -> None:
    assert {f"{a}-light" for a in ARCHITECTURES} | {f"report-{a}" for a in ARCHITECTURES} <= set(recipe_names())


def test_the_reports_recipes_are_the_reports() -> None:
    recipe = load_recipe("report-unet")
    assert dict(recipe.loss) == {"bce": 1}
    assert [(s.frozen, s.decoder_lr, s.encoder_lr) for s in recipe.stages] == [(True, 1e-3, 0), (False, 1e-4, 1e-6)]
    assert load_recipe("report-segnet-attention-atrous-augmented").augmented_copies == 1


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (1, [0, 1, 0, 0]),
        (2, [0, 1, 0, 1]),
        (10, [0, 5, 1, 4]),
        (100, [1, 51, 14, 34]),
        (200, [2, 102, 28, 68]),
    ],
)
def test_epochs_are_shared_out_in_proportion(epochs: int, expected: list[int]) -> None:
    recipe = load_recipe("unet-light")
    assert [s.epochs for s in recipe.stages] == [1, 51, 14, 34]
    shortened = recipe.with_epochs(epochs)
    assert [s.epochs for s in shortened.stages] == expected
    assert shortened.epochs == epochs


def test_stage_of_an_epoch_skips_stages_without_epochs() -> None:
    recipe = load_recipe("unet-light").with_epochs(10)
    assert [(recipe.stage_of(e)[0].name, recipe.stage_of(e)[1]) for e in (0, 4, 5, 9)] == [
        ("small", 0),
        ("small", 0),
        ("tuned", 5),
        ("ending", 6),
    ]
    assert load_recipe("unet-light").with_epochs(1).stage_of(0)[0].name == "small"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "unknown setting 'colour'"),
        ({"augmentation": {"max_zoom": 0.5}}, r"augmentation\.max_zoom' must lie in \[1, 2\]"),
        ({"augmentation": {"border": "white"}}, "augmentation.border' is black or reflect"),
        ({"augmentation": {"artefacts": {"tattoo": 0.5}}}, r"artefacts\.tattoo' is unknown: choose from hair"),
        ({"augmentation": {"artefacts": {"hair": 2}}}, r"artefacts\.hair' must lie in \[0, 1\]"),
        ({"augmentation": {"artefacts": {"hair": "often"}}}, r"artefacts\.hair' must be a number, not 'often'"),
        ({"augmentation": {"artefacts": 3}}, "must be a mapping"),
        ({"stages": [{"name": "s", "epochs": 2, "decoder_lr": 1e-3, "input_size": 100}]}, "is a multiple of 32"),
        (
            {"stages": [{"name": "s", "epochs": 2, "decoder_lr": 1e-3, "augmentation": {"max_zoom": 0.5}}]},
            r"augmentation\.max_zoom' must lie in \[1, 2\]",
        ),
        (
            {"stages": [{"name": "s", "epochs": 2, "decoder_lr": 1e-3, "augmentation": {"zoom": 1}}]},
            r"unknown setting 'stages\[0\]\.augmentation\.zoom'",
        ),
        (
            {"augmentation": None, "stages": [{"name": "s", "epochs": 2, "decoder_lr": 1e-3, "augmentation": {}}]},
            "stage 's': augmentation' is for recipes that augment online",
        ),
        ({"architecture": "vnet"}, "'architecture' is one of unet"),
        ({"input_size": 200}, "'input_size' is a multiple of 32"),
        ({"input_size": "192"}, "'input_size' must be of type int"),
        ({"batch_size": True}, "'batch_size' must be of type int"),
        ({"loss": {"focal": 1}}, "unknown loss 'focal'"),
        ({"augmentation": {"zoom": 1}}, r"unknown setting 'augmentation\.zoom'"),
        ({"augmentation": {"min_zoom": 0}}, r"'augmentation\.min_zoom' must lie in"),
        ({"augmentation": None, "augmented_copies": 1}, "'augmentation' is needed"),
        ({"decoder_channels": 5}, "'decoder_channels' must be a list"),
        ({"loss": "bce"}, "loss must be a mapping"),
        ({"loss": {"bce": "x"}}, "loss weights must be numbers"),
        ({"mixstyle": 1.5}, "'mixstyle' must lie in"),
        ({"standardise": -0.5}, "'standardise' must lie in"),
        ({"soft_labels": "unet-light"}, "soft_labels must be a mapping"),
        ({"soft_labels": {"parts": 4}}, r"'soft_labels\.teacher' is missing"),
        ({"soft_labels": {"teacher": ""}}, r"'soft_labels\.teacher' is the name or the file"),
        ({"soft_labels": {"teacher": 3}}, r"'soft_labels\.teacher' must be of type str"),
        ({"soft_labels": {"teacher": "t", "parts": 1}}, r"'soft_labels\.parts' lies from 2"),
        ({"soft_labels": {"teacher": "t", "share": 1}}, r"'soft_labels\.share' must lie in \[0, 1\)"),
        ({"soft_labels": {"teacher": "t", "alpha": 1}}, r"unknown setting 'soft_labels\.alpha'"),
        ({"soft_labels": {"teacher": "t"}, "augmented_copies": 1}, "'soft_labels' does not go with augmented_copies"),
        ({"weight_decay": float("nan")}, "'weight_decay' lies in"),
        ({"stages": {}}, "'stages' must be a list"),
        ({"stages": [{"name": "s", "epochs": 1}]}, r"'stages\[0\]\.decoder_lr' is missing"),
        ({"stages": [{"name": "s", "epochs": 1, "decoder_lr": 0}]}, "decoder_lr' must be positive"),
        ({"stages": []}, "'stages' need at least one epoch"),
        ({"folds": 1}, "'folds' is at least 2"),
        ({"ema_decay": 1}, "'ema_decay' lies in"),
        ({"name": "../x"}, "setting 'name' becomes the name of a file"),
        ({"stages": [STAGE | {"name": "a/b"}]}, "stage 'a/b': name' becomes the name of a file"),
        ({"stages": [STAGE | {"name": " "}]}, "stage ' ': name' becomes the name of a file"),
        ({"stages": [STAGE | {"name": "Best"}]}, "stage 'Best': name' is another file's: best"),
        ({"stages": [STAGE | {"name": "last"}]}, "stage 'last': name' is another file's: best"),
        ({"stages": [STAGE, STAGE | {"name": "S"}]}, "'stages' need a name each"),
        ({"stages": [STAGE | {"warmup_epochs": -1}]}, "warmup_epochs' must not be negative"),
        ({"stages": [STAGE | {"warmup_epochs": float("nan")}]}, "warmup_epochs' must not be negative"),
        ({"stages": [STAGE | {"decoder_lr": "1e-x"}]}, "decoder_lr' must be of type float, not '1e-x'"),
        ({"stages": [STAGE | {"decoder_lr": "nan"}]}, "decoder_lr' must be of type float, not 'nan'"),
    ],
)
def test_settings_that_cannot_be_used_are_named(change: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Recipe.from_dict(MINIMAL | change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not YAML"),
        ("- a", "a recipe must be a mapping"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        ("{name: r, architecture: unet}", "'stages' must be a list"),
        ("name: r\nstages:\n- {name: s, epochs: 1, epochs: 2}", r"setting 'epochs' is given twice, again in line 3"),
    ],
)
def test_files_that_are_no_recipe_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=rf"mine\.yaml: .*{message}"):
        load_recipe(path)


def test_numbers_without_a_dot_are_numbers(tmp_path: Path) -> None:
    """YAML 1.1 reads them as text."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "{name: r, architecture: unet, loss: {bce: 1, iou: 5e-1}, augmentation: {artefacts: {hair: 2e-1}}, stages: ["
        "&a {name: a, epochs: 1, decoder_lr: 1e-3, warmup_epochs: 0}, {<<: *a, name: b, encoder_lr: 1E-5}]}"
    )
    recipe = load_recipe(path)
    assert [(s.decoder_lr, s.encoder_lr) for s in recipe.stages] == [(0.001, 0), (0.001, 0.00001)]
    assert recipe.loss == {"bce": 1, "iou": 0.5}
    assert recipe.augmentation is not None
    assert recipe.augmentation.artefacts == {"hair": 0.2}
    assert Recipe.from_dict(yaml.safe_load(yaml.safe_dump(recipe.to_dict()))) == recipe


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"no such recipe.*unet-light"):
        load_recipe("unet-heavy")


def test_the_largest_size_is_that_of_a_stage_that_is_trained() -> None:
    stages = (Stage("a", 1, 1e-3, input_size=64), Stage("b", 1, 1e-3), Stage("c", 0, 1e-3, input_size=512))
    recipe = Recipe(name="r", architecture="unet", stages=stages, input_size=96)
    assert recipe.largest_size == 96
    assert dataclasses.replace(recipe, stages=(*stages, Stage("d", 1, 1e-3, input_size=128))).largest_size == 128


def test_the_default_standardises_images_and_the_others_do_not() -> None:
    assert load_recipe("unet-light").standardise == 1
    other = load_recipe("unet-light-isic2016")
    assert other.standardise == 0
    assert "standardise" not in other.to_dict(), "a run that began before there was such a setting can be resumed"


def test_the_defaults_other_half_is_its_last_stages_with_soft_labels() -> None:
    recipe, default = load_recipe("unet-light-soft-192"), load_recipe("unet-light")
    assert recipe.soft_labels == SoftLabels("unet-light-teacher-standardised", parts=3, share=0.5)
    expected = dataclasses.replace(default, stages=default.stages[-2:], folds=3)
    assert dataclasses.replace(recipe, name=default.name, soft_labels=None) == expected
    teacher = load_recipe("unet-light-teacher-standardised")
    milder = expected.stages[-1].augmentation
    assert milder is not None
    assert (teacher.standardise, teacher.augmentation) == (default.standardise, milder)
