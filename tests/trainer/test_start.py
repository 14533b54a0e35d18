"""What a run begins with has not learned from what validates the run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from isicrt.engine import shipped
from isicrt.engine.card import ModelCard
from isicrt.engine.errors import DataError, ModelError, SettingsError
from isicrt.engine.onnx_file import read_onnx_card
from isicrt.export.views import average_file
from isicrt.trainer import checkpoint, dataset
from isicrt.trainer.data_hash import Alias
from isicrt.trainer.dataset import Pair, split_fold, survey
from isicrt.trainer.loop import train
from isicrt.trainer.models import build_model
from isicrt.trainer.recipe import FROM_START, Recipe, Stage
from isicrt.trainer.run import Listener, RunSettings
from isicrt.trainer.start import Start
from isicrt.trainer.twins import TEST_TWINS

SAME = {"data_sha256": "d", "recipe": "r", "fold": 0, "folds": 5, "validation_images": 3}
OTHER = {"data_sha256": "other", "recipe": "r", "fold": None, "validation_images": 0}
OLD = {key: value for key, value in SAME.items() if key != "folds"}
"""Of a card from before the number of folds was in it."""
ALL = {**SAME, "fold": None}


def check(training: dict[str, Any]) -> None:
    """For a run on the data ``d`` with fold 0 of 5, which has three pairs."""
    start = Start({}, {"sha256": "0", **training})
    start.check_unseen(Path("trunk.pt"), "d", fold=0, folds=5, validation=["a", "b", "ISIC_0016072"])


@pytest.mark.parametrize(
    "training",
    [
        pytest.param(SAME, id="same_fold"),
        pytest.param(OLD, id="same_fold_old_card"),
        pytest.param(OTHER, id="other_data"),
        pytest.param({**SAME, "start_from": {**OTHER, "start_from": SAME}}, id="chain"),
        pytest.param({**SAME, "mean_of": [SAME, OLD, OTHER]}, id="mean"),
        pytest.param({}, id="nothing_known"),
    ],
)
def test_the_same_fold_and_other_data_are_taken(training: dict[str, Any]) -> None:
    check(training)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        pytest.param(ALL, "held out nothing, not fold 0 of 5. Give --fold none", id="all_pairs"),
        pytest.param({**SAME, "fold": 1}, "held out fold 1 of 5, not", id="other_fold"),
        pytest.param({**SAME, "folds": 10}, "held out fold 0 of 10, not", id="other_folds"),
        pytest.param({**OLD, "validation_images": 2}, "held out fold 0, not", id="old_card_other_folds"),
        pytest.param({**OTHER, "start_from": {**OTHER, "start_from": ALL}}, "held out nothing", id="chain"),
        pytest.param({**SAME, "mean_of": [SAME, {**OTHER, "start_from": ALL}]}, "held out nothing", id="mean"),
        pytest.param(
            {"data_sha256": "d", "mean_of": [SAME, {**SAME, "fold": 1}]}, "held out fold 1 of 5, not", id="two_folds"
        ),
    ],
)
def test_weights_that_have_learned_what_validates_are_refused(training: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=rf"trunk\.pt: has learned from images that would validate .*{message}"):
        check(training)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unet-light", "has learned from 1 of the 3 images that would validate this run, by their ISIC numbers. Give"),
        ("unet-light-isic2016", None),
    ],
)
def test_what_a_model_that_ships_has_learned_is_known_image_by_image(name: str, message: str | None) -> None:
    """One of the three is of ISIC 2018."""
    training = dict(read_onnx_card(shipped.resolve(name)).training)
    for start in (training, {**OTHER, "start_from": training}):
        if message is None:
            check(start)
        else:
            with pytest.raises(SettingsError, match=rf"trunk\.pt: {message} --fold none"):
                check(start)


def test_a_file_that_averages_views_is_no_start(tmp_path: Path) -> None:
    _, content = average_file(shipped.resolve("unet-light"), 2)
    (tmp_path / "x2.onnx").write_bytes(content)
    recipe = Recipe("r", "unet", (Stage("tuned", 1, 1e-3),))
    with pytest.raises(ModelError, match=r"x2\.onnx: averages 2 views of each image\. Start from the file of one view"):
        Start.read(tmp_path / "x2.onnx", recipe)


@pytest.mark.parametrize(("same_folds", "fold"), [(True, 0), (True, 1), (False, 0), (False, 1)])
def test_the_same_data_under_another_hash(*, same_folds: bool, fold: int) -> None:
    start = Start({}, {"sha256": "0", **OTHER, "start_from": {**SAME, "data_sha256": "before", "fold": fold}})
    aliases = (Alias("before", "no groups.csv", same_folds=same_folds, earlier=False),)

    def check() -> None:
        start.check_unseen(Path("trunk.pt"), "d", 0, 5, ["a", "b", "c"], aliases)

    if same_folds and fold == 0:
        return check()
    held_out = "held out fold 1 of 5, not fold 0" if same_folds else r"with no groups\.csv, so that its folds were oth"
    with pytest.raises(SettingsError, match=rf"would validate this run: .* same data.*{held_out}.* --fold none"):
        check()


def test_groups_that_are_added_or_test_images_that_are_left_out_hide_nothing(
    rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copytree(rendered_pairs, tmp_path / "data"))
    for folder, ending in (("images", ".jpg"), ("masks", "_Segmentation.png")):
        (data / folder / f"ISIC_0000011{ending}").rename(data / folder / f"ISIC_0000012{ending}")
    stage = Stage("tuned", epochs=1, decoder_lr=1e-3, encoder_lr=1e-4)
    recipe = Recipe("r", "unet", (stage,), decoder_channels=(8, 8, 8, 8), input_size=32, augmentation=None)

    def run(out: str, fold: int | None, start: str | None = None, *, resume: bool = False) -> Path:
        start_from = None if start is None else tmp_path / start / "best.pt"
        settings = RunSettings(recipe, (data,), tmp_path / out, fold=fold, pretrained=None, start_from=start_from)
        return train(replace(settings, resume=tmp_path / out / "last.pt" if resume else None))

    with monkeypatch.context() as before:
        before.setattr(dataset, "LEFT_OUT", dict.fromkeys(TEST_TWINS, ""))
        before.setattr(dataset._scan, "__defaults__", (TEST_TWINS.keys(),))
        run("before", 0)
    assert checkpoint.load(tmp_path / "before/best.pt")[0].training["data_sha256"] != survey([data])[1].sha256
    with pytest.raises(SettingsError, match="held out fold 0 of 5, not fold 1 of 5"):
        run("other", 1, "before")
    run("same", 0, "before")
    with pytest.raises(SettingsError, match=r"with this isicrt:\n.*\n.*test images of ISIC 2016 .*Finish it with"):
        run("before", 0, resume=True)
    (data / "groups.csv").write_text("image,group\n" + "".join(f"ISIC_{n:07d},p{n // 2}\n" for n in range(11)))
    pairs, _ = survey([data])
    fold = next(n for n in range(5) if _validates(pairs, n))
    for start in ("before", "same"):
        with pytest.raises(SettingsError, match=r"no groups\.csv, so that its folds were others\. Give --fold none"):
            run("grouped", fold, start)
    run("grouped", None, "same")


def _validates(pairs: list[Pair], fold: int) -> list[Pair]:
    try:
        return split_fold(pairs, 5, fold)[1]
    except DataError:
        return []


class StopAtOnce(Listener):
    """Ctrl-C after an epoch."""

    def finished(self, row: Any) -> None:
        raise KeyboardInterrupt


def test_a_run_saves_its_mean_with_what_it_began_with_and_goes_on_to_the_same(
    rendered_pairs: Path, tmp_path: Path
) -> None:
    card = ModelCard("trunk", "unet", 64, 64, network={"layout": "light", "decoder_channels": [8, 8, 8, 8]})
    torch.manual_seed(3)
    trunk = build_model("unet", decoder_channels=[8, 8, 8, 8])
    checkpoint.save(tmp_path / "trunk.pt", card=card, weights=trunk.state_dict())
    stage = Stage("tuned", epochs=2, decoder_lr=1e-2, encoder_lr=1e-3)
    recipe = Recipe(
        "r", FROM_START, (stage,), input_size=0, start_share=0.25, batch_size=4, ema_decay=0.5, augmentation=None
    )

    def run(out: str, listener: Listener | None = None, *, resume: bool = False) -> dict[str, Any]:
        settings = RunSettings(
            recipe=recipe,
            data=(rendered_pairs,),
            out=tmp_path / out,
            fold=None,
            start_from=tmp_path / "trunk.pt",
            resume=tmp_path / out / "last.pt" if resume else None,
        )
        train(settings, listener)
        return checkpoint.load(tmp_path / out / "last.pt")[1]

    whole = run("whole")
    for name, value in trunk.state_dict().items():
        if value.is_floating_point():
            learned = whole["average"][f"module.{name}"]
            torch.testing.assert_close(whole["weights"][name], learned + 0.25 * (value - learned))
    assert not torch.equal(whole["weights"]["head.weight"], trunk.state_dict()["head.weight"])
    with pytest.raises(KeyboardInterrupt):
        run("stopped", StopAtOnce())
    again = run("stopped", resume=True)
    for name, value in whole["weights"].items():
        assert torch.equal(again["weights"][name], value), name
