"""What a run begins with has not learned from what validates the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from isicrt.engine.card import ModelCard
from isicrt.engine.errors import SettingsError
from isicrt.trainer import checkpoint
from isicrt.trainer.loop import train
from isicrt.trainer.models import build_model
from isicrt.trainer.recipe import FROM_START, Recipe, Stage
from isicrt.trainer.run import Listener, RunSettings
from isicrt.trainer.start import Start

SAME = {"data_sha256": "d", "recipe": "r", "fold": 0, "folds": 5, "validation_images": 3}
OTHER = {"data_sha256": "other", "recipe": "r", "fold": None, "validation_images": 0}
OLD = {key: value for key, value in SAME.items() if key != "folds"}
"""Of a card from before the number of folds was in it."""
ALL = {**SAME, "fold": None}


def check(training: dict[str, Any]) -> None:
    """For a run on the data ``d`` with fold 0 of 5, which has three pairs."""
    start = Start({}, {"sha256": "0", **training})
    start.check_unseen(Path("trunk.pt"), "d", fold=0, folds=5, validation=3)


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
