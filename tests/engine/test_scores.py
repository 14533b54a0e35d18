"""Scores: literal degenerate cases, and equality with the official scorer."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict

import numpy as np
import pytest

from isicrt.engine.errors import DataError
from isicrt.engine.scores import ImageScores, Overlap, bootstrap_interval, score_mask, summarise

EMPTY = np.zeros((4, 4), np.uint8)
FULL = np.full((4, 4), 255, np.uint8)
TOP = np.repeat([[255], [255], [0], [0]], 4, axis=1).astype(np.uint8)
LEFT = TOP.T
BOTTOM = TOP[::-1]


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        # jaccard, dice, threshold_jaccard, accuracy, sensitivity, specificity
        pytest.param(TOP, TOP, (1, 1, 1, 1, 1, 1), id="perfect"),
        pytest.param(EMPTY, EMPTY, (1, 1, 1, 1, 1, 1), id="nothing_there_nothing_found"),
        pytest.param(FULL, FULL, (1, 1, 1, 1, 1, 1), id="all_lesion"),
        pytest.param(EMPTY, FULL, (0, 0, 0, 0, 0, 1), id="all_missed"),
        pytest.param(FULL, EMPTY, (0, 0, 0, 0, 1, 0), id="all_invented"),
        pytest.param(EMPTY, TOP, (0, 0, 0, 0.5, 0, 1), id="half_missed"),
        pytest.param(TOP, EMPTY, (0, 0, 0, 0.5, 1, 0.5), id="half_invented"),
        pytest.param(TOP, BOTTOM, (0, 0, 0, 0, 0, 0), id="disjoint"),
        pytest.param(TOP, LEFT, (1 / 3, 0.5, 0, 0.5, 0.5, 0.5), id="quarter_overlaps"),
        pytest.param(FULL, TOP, (0.5, 2 / 3, 0, 0.5, 1, 0), id="twice_too_large"),
    ],
)
def test_literal_masks(prediction, truth, expected) -> None:
    scores = ImageScores(*map(float, expected))
    assert score_mask(prediction, truth) == scores
    assert score_mask(prediction > 128, truth) == scores
    assert score_mask(prediction, truth > 128) == scores


def test_foreground_is_above_128() -> None:
    grey = np.array([[127, 128, 129, 255]], np.uint8)
    assert score_mask(grey, np.array([[False, False, True, True]])).jaccard == 1


def test_threshold_jaccard_keeps_what_reaches_065() -> None:
    truth = np.ones((1, 20), bool)
    prediction = np.arange(20)[None] < 13
    assert score_mask(prediction, truth).threshold_jaccard == 0.65
    assert score_mask(prediction & (np.arange(20) != 0), truth).threshold_jaccard == 0


def test_shapes_must_agree() -> None:
    with pytest.raises(DataError, match=r"\(4, 4\).*\(2, 8\)"):
        score_mask(EMPTY, EMPTY.reshape(2, 8))


def test_equal_to_the_official_scorer() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pandas and scikit-learn, while they are imported
        confusion = pytest.importorskip("isic_challenge_scoring.confusion")
        metrics = pytest.importorskip("isic_challenge_scoring.metrics")
    official = {
        "jaccard": metrics.binary_jaccard,
        "dice": metrics.binary_dice,
        "threshold_jaccard": metrics.binary_threshold_jaccard,
        "accuracy": metrics.binary_accuracy,
        "sensitivity": metrics.binary_sensitivity,
        "specificity": metrics.binary_specificity,
    }
    rng = np.random.default_rng(5)
    densities = [0.0, 0.02, 0.5, 0.98, 1.0]
    for prediction_density in densities:
        for truth_density in densities:
            prediction = (rng.random((23, 31)) < prediction_density).astype(np.uint8) * 255
            truth = (rng.random((23, 31)) < truth_density).astype(np.uint8) * 255
            matrix = confusion.create_binary_confusion_matrix(truth > 128, prediction > 128)
            ours = asdict(score_mask(prediction, truth))
            assert ours == pytest.approx({name: score(matrix) for name, score in official.items()}, abs=1e-12, rel=0)


def test_summary_of_literal_scores() -> None:
    values = [0.6, 0.8, 1.0]
    summary = summarise([ImageScores(j, j, j if j >= 0.65 else 0, j, j, j) for j in values])
    assert summary["images"] == 3
    assert summary["jaccard"] == pytest.approx(0.8)
    assert summary["threshold_jaccard"] == pytest.approx(0.6)
    assert summary["jaccard_median"] == 0.8
    assert summary["jaccard_p5"] == pytest.approx(0.62)
    assert summary["failures"] == 1
    assert 0.6 <= summary["jaccard_low"] < 0.8 < summary["jaccard_high"] <= 1.0


def test_bootstrap_interval_agrees_with_the_normal_one() -> None:
    jaccard = np.random.default_rng(1).uniform(0.5, 1, 400)
    summary = summarise([ImageScores(j, j, j, j, j, j) for j in map(float, jaccard)])
    half = 1.96 * jaccard.std() / math.sqrt(400)
    assert summary["jaccard_high"] - summary["jaccard_low"] == pytest.approx(2 * half, rel=0.05)
    assert summary == summarise([ImageScores(j, j, j, j, j, j) for j in map(float, jaccard)])


@pytest.mark.parametrize("resamples", [1, 50, 150, 10_000])
def test_bootstrap_draws_as_many_as_asked_for(resamples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    quantile = np.quantile

    def counted(means: np.ndarray, shares: list[float]) -> np.ndarray:
        seen.append(len(means))
        found: np.ndarray = quantile(means, shares)
        return found

    monkeypatch.setattr(np, "quantile", counted)
    bootstrap_interval(np.arange(10.0), resamples=resamples)
    assert seen == [resamples]


def test_nothing_to_score() -> None:
    with pytest.raises(DataError, match="nothing to score"):
        summarise([])


def test_summary_of_overlaps_has_their_scores_only() -> None:
    summary = summarise([Overlap(0.5, 0.6), Overlap(0.7, 0.8)])
    assert summary["jaccard"] == pytest.approx(0.6)
    assert summary["dice"] == pytest.approx(0.7)
    assert summary["failures"] == 1
    assert "accuracy" not in summary


@pytest.mark.parametrize(
    ("values", "interval"), [([0.25], (0.25, 0.25)), ([-0.1] * 7, (-0.1, -0.1)), ([0.0, 1.0], (0.0, 1.0))]
)
def test_bootstrap_of_literal_values(values: list[float], interval: tuple[float, float]) -> None:
    assert bootstrap_interval(np.array(values)) == pytest.approx(interval)
