"""What a run begins with has not learned from what validates the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from isicrt.engine.errors import SettingsError
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
