"""Scores in a comparison: of which images, against which true masks, and of how many."""

from __future__ import annotations

import dataclasses

import pytest

from isicrt.benchmarks.accuracy import Accuracy
from isicrt.benchmarks.comparison import (
    FEW_IMAGES,
    NOISE,
    Comparison,
    compare,
    comparison_cautions,
    comparison_tables,
)
from isicrt.benchmarks.result import Report
from isicrt.engine.scores import ImageScores
from tests.benchmarks.sample_report import sample_model, sample_report


def _verdicts(found: Comparison) -> dict[str, str]:
    ((_, changes),) = found.changes
    return {c.name: c.verdict for c in changes}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ((0.0, 0.0, 0.0), NOISE),
        ((-0.02, -0.02, -0.02), "worse"),
        ((0.02, 0.03, 0.01), "better"),
        # Better in the mean, by one image of three.
        ((0.1, -0.04, -0.04), NOISE),
    ],
)
def test_scores_are_compared_image_by_image(changes: tuple[float, ...], expected: str) -> None:
    def scored(copies: int, changes: tuple[float, ...]) -> Report:
        scores = {
            f"{n}-{copy}": ImageScores(*[j + change] * 6)
            for copy in range(copies)
            for n, (j, change) in enumerate(zip([0.6, 0.7, 0.8], changes, strict=True))
        }
        return sample_report(dataclasses.replace(sample_model(), accuracy=Accuracy(scores)))

    assert _verdicts(compare(scored(4, (0, 0, 0)), scored(4, changes)))["jaccard"] == expected
    found = compare(scored(3, (0, 0, 0)), scored(3, changes))
    few = FEW_IMAGES if any(changes) else NOISE
    assert _verdicts(found)["jaccard"] == _verdicts(found)["dice"] == few, "of nine images"
    assert not found.changed
    (table,) = comparison_tables(found)
    assert [row[-1] for row in table.rows] == [FEW_IMAGES] * 2 * any(changes)


def _of_scored(*images: str) -> Report:
    """IoU 0.9 on ``a`` and ``b``, 0.5 on the others."""
    scores = {n: ImageScores(j, j, j, j, j, j) for n in images for j in [0.9 if n in "ab" else 0.5]}
    return sample_report(dataclasses.replace(sample_model(), accuracy=Accuracy(scores)))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("abcd", "ab", "4 before, 2 now: scores are compared on the 2 in both"),
        ("ab", "abcd", "2 before, 4 now: scores are compared on the 2 in both"),
        ("abc", "abd", "3 before, 3 now: scores are compared on the 2 in both"),
        ("cd", "ab", "2 before, 2 now: none is in both, so scores are not compared"),
        ("ab", "ba", None),
    ],
)
def test_scores_are_compared_on_the_images_that_both_scored(old: str, new: str, said: str | None) -> None:
    found = compare(_of_scored(*old), _of_scored(*new))
    assert comparison_cautions(found) == ([f"darkness: scored images: {said}"] if said else [])
    ((_, changes),) = found.changes
    shown = [(c.old, c.new, c.verdict) for c in changes if c.name == "jaccard"]
    assert shown == ([] if old == "cd" else [(0.9, 0.9, NOISE)])


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (("aa" * 32, 0), ("bb" * 32, 0), ["SHA-256 of true masks: aaaaaaaaaaaa before, bbbbbbbbbbbb now"]),
        # More of them, or fewer: nobody knows whether those that are in both are others.
        (("aa" * 32, 0), ("bb" * 32, 2), []),
        (("aa" * 32, 0), ("aa" * 32, 0), []),
        # One report has no truth, or did not note it.
        ((None, 0), ("bb" * 32, 0), []),
        (("aa" * 32, 0), (None, 0), []),
    ],
)
def test_another_truth_is_a_caution(
    old: tuple[str | None, int], new: tuple[str | None, int], expected: list[str]
) -> None:
    def report(truth: str | None, without: int) -> Report:
        found = sample_report()
        names = tuple(map(str, range(without)))
        workload = dataclasses.replace(found.workload, truth_sha256=truth, without_truth=names)
        return dataclasses.replace(found, workload=workload)

    lines = comparison_cautions(compare(report(*old), report(*new)))
    assert lines[1:] == [f"other truth: {line}" for line in expected]
    assert [line.startswith("the scores of the two reports are against") for line in lines[:1]] == [True] * bool(
        expected
    )
