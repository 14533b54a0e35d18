"""A model that ships goes on learning from data of one's own."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

from isicrt import Segmenter
from isicrt.cli.main import group
from isicrt.engine import shipped
from isicrt.engine.errors import SettingsError
from isicrt.trainer.checkpoint import load, load_model
from isicrt.trainer.loop import train as run
from isicrt.trainer.models import normalise
from isicrt.trainer.recipe import Recipe, load_recipe
from isicrt.trainer.run import Listener, RunSettings
from isicrt.trainer.start import with_network


def train(data: Path, out: Path, *more: str) -> tuple[int, str]:
    arguments = ["train", "--data", str(data), "--out", str(out), "--device", "cpu", "--epochs", "1", *more]
    result = CliRunner().invoke(group, arguments)
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(scope="module")
def clinic(rendered_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rendered pairs without the numbers of real images, which the models that ship have learned."""
    root = Path(shutil.copytree(rendered_pairs, tmp_path_factory.mktemp("data") / "clinic"))
    for path in root.glob("*/*"):
        path.rename(path.with_name(path.name.replace("ISIC_00000", "p")))
    return root


@pytest.fixture(scope="module")
def tuned(clinic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder: one epoch of three batches."""
    out = tmp_path_factory.mktemp("tuned") / "clinic"
    code, told = train(clinic, out, "--recipe", "fine-tune", "--start-from", "unet-light")
    assert code == 0, told
    assert "fine-tune: unet, 192 px, 1 epochs on cpu" in told
    return out


def test_the_network_is_that_of_the_start(tuned: Path) -> None:
    recipe = yaml.safe_load((tuned / "config.yaml").read_text())["recipe"]
    assert (recipe["architecture"], recipe["layout"], recipe["input_size"]) == ("unet", "light", 192)
    assert recipe["standardise"] == 1.0
    _, card = load_model(tuned / "best.pt")
    assert card.name == "clinic"
    assert card.training["recipe"] == "fine-tune"
    assert {run["recipe"] for run in card.training["start_from"]["mean_of"]} == {"unet-light", "unet-light-soft-192"}


def test_it_begins_with_what_the_start_knows(tuned: Path, rendered_pairs: Path) -> None:
    model, card = load_model(tuned / "best.pt")
    path = rendered_pairs / "images" / "ISIC_0000001.jpg"
    image = np.asarray(Image.open(path).resize((192, 192), Image.Resampling.BILINEAR))
    with Segmenter("unet-light") as segmenter:
        before = segmenter.probability(image).astype(float)
    after = model(normalise(torch.from_numpy(image[None].copy()), card.mean, card.std)).sigmoid()
    after = 255 * after.detach().numpy()[0, 0]
    assert 0.05 < (before > 127).mean() < 0.95
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.95


def test_it_says_what_the_start_learned_from_and_is_not_validated_by_that(rendered_pairs: Path, tmp_path: Path) -> None:
    options = ("--recipe", "fine-tune", "--start-from", "unet-light-isic2016")
    code, told = train(rendered_pairs, tmp_path / "run", *options)
    assert code == 2
    assert "unet-light-isic2016.onnx: has learned from or was chosen by 1 of the 2 images that would validate" in told
    assert not (tmp_path / "run").exists()
    assert "unet-light-isic2016 learned from 722 training images (isic2016); a score on those" in told


class StopAtOnce(Listener):
    """Ctrl-C after an epoch."""

    def finished(self, row: Any) -> None:
        raise KeyboardInterrupt


def test_it_goes_on_after_a_stop(rendered_pairs: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(load_recipe("fine-tune").with_epochs(2), batch_size=4)
    start = shipped.resolve("unet-light")
    whole = RunSettings(recipe=recipe, data=(rendered_pairs,), out=tmp_path / "whole", fold=None, start_from=start)
    stopped = dataclasses.replace(whole, out=tmp_path / "stopped")
    run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, StopAtOnce())
    run(dataclasses.replace(stopped, resume=stopped.out / "last.pt"))
    expected, found = (load(folder.out / "last.pt")[1]["weights"] for folder in (whole, stopped))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_run_goes_on_only_with_the_model_that_it_began_with(tuned: Path, rendered_pairs: Path) -> None:
    options = ("--recipe", "fine-tune", "--start-from", "gone.pt", "--resume", "auto")
    code, told = train(rendered_pairs, tuned, *options)
    assert code == 1
    assert "A run goes on only with the model that it began with" in told


def test_a_recipe_may_have_an_input_size_of_its_own_and_no_network(tmp_path: Path) -> None:
    settings = RunSettings(
        recipe=Recipe.from_dict({**load_recipe("fine-tune").to_dict(), "input_size": 256}),
        data=(),
        out=tmp_path,
        start_from=shipped.resolve("unet-light"),
    )
    recipe = with_network(settings).recipe
    assert (recipe.architecture, recipe.input_size, recipe.standardise) == ("unet", 256, 1.0)
    with pytest.raises(SettingsError, match="architecture: start' has layout, decoder_channels and standardise of"):
        Recipe.from_dict({**load_recipe("fine-tune").to_dict(), "standardise": 0.5})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "recipe fine-tune goes on from another model: name one with --start-from"),
        (("--start-from", "unet-light-int8"), "rounded to 8 bits, which learn no more"),
        (("--start-from", "unet-heavy"), "unet-heavy: no such model"),
        (("--start-from", "unet-light", "--model", "segnet-attention"), "--model"),
    ],
    ids=["no_start", "8_bits", "no_such", "other_model"],
)
def test_what_cannot_be_is_said(rendered_pairs: Path, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    code, told = train(rendered_pairs, tmp_path / "run", "--recipe", "fine-tune", *options)
    assert code in (1, 2)
    assert message in told
    assert not (tmp_path / "run").exists()


def test_another_recipe_needs_the_same_network(rendered_pairs: Path, tmp_path: Path) -> None:
    options = ("--recipe", "unet-light", "--start-from", "unet-light-isic2016", "--fold", "none")
    code, told = train(rendered_pairs, tmp_path / "run", *options)
    assert code == 2
    assert "holds standardise 0.0; the recipe asks for standardise 1.0" in told
