from __future__ import annotations

import dataclasses

import pytest

from isicrt.benchmarks.accuracy import Accuracy
from isicrt.benchmarks.gates import BETTER, SCORES, failures, figures, parse_gate
from isicrt.engine.errors import SettingsError
from isicrt.engine.scores import ImageScores
from tests.benchmarks.sample_report import sample_model, sample_report


def test_figures_have_names() -> None:
    found = figures(sample_model())
    assert found["images_per_second"] == pytest.approx(10)
    assert found["limit_ratio"] == pytest.approx(100 / 46.5)
    assert found["p50_ms"] == found["p50_ms@1"] == pytest.approx(1.1)
    assert found["p50_ms@8"] == pytest.approx(6.25)
    assert found["peak_rss_mb"] == 250
    assert found["jaccard"] == pytest.approx(0.7)
    assert "joules_per_image" not in found
    assert {name.partition("@")[0] for name in found} <= set(BETTER)
    assert not set(figures(sample_model(scored=False))) & set(SCORES)
    assert "peak_rss_mb" not in figures(dataclasses.replace(sample_model(), process=None))


@pytest.mark.parametrize(
    ("option", "text", "problem"),
    [
        ("--fail-under", "images_per_second=10", None),
        ("--fail-under", "images_per_second=10.1", "darkness: images_per_second is 10, under 10.1"),
        ("--fail-under", " jaccard = 0.69", None),
        ("--fail-under", "jaccard=0.71", "darkness: jaccard is 0.7, under 0.71"),
        ("--fail-over", "p99_ms@8=7", None),
        ("--fail-over", "p99_ms=2", "darkness: p99_ms is 3, over 2"),
        ("--fail-over", "joules_per_image=5", "darkness: joules_per_image was not measured"),
        ("--fail-over", "p99_ms@4=5", "darkness: p99_ms@4 was not measured"),
        # The older report has a model that takes twice as long.
        ("--fail-under-ratio", "images_per_second=1.9", None),
        ("--fail-under-ratio", "images_per_second=2.1", "images_per_second went from 5 to 10, under 2.1 of before"),
        ("--fail-under-ratio", "p50_ms@8=1.9", None),
        ("--fail-under-ratio", "p50_ms@8=2.1", "p50_ms@8 went from 12.5 to 6.25, under 2.1 of before"),
        ("--fail-under-ratio", "jaccard=1", None),
    ],
)
def test_gates(option: str, text: str, problem: str | None) -> None:
    found = failures(sample_report(), [parse_gate(text, option)], {"darkness": sample_model(slower=2)})
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]


def test_every_model_must_pass_and_a_ratio_needs_an_older_one() -> None:
    report = sample_report(sample_model("a"), sample_model("b", slower=2))
    assert failures(report, [parse_gate("images_per_second=7", "--fail-under")], {}) == [
        "b: images_per_second is 5, under 7"
    ]
    ratio = parse_gate("images_per_second=0.9", "--fail-under-ratio")
    assert failures(report, [ratio], {"a": sample_model("a")}) == ["b: images_per_second is not in the older report"]


@pytest.mark.parametrize("name", ["p99_ms", "p50_ms@8", "network_images_per_second@1"])
def test_a_ratio_of_the_network_alone_is_of_the_same_calls(name: str) -> None:
    old, gate = sample_model(), parse_gate(f"{name}=0.1", "--fail-under-ratio")
    turns = tuple(dataclasses.replace(x, images=256) for x in old.latencies)
    report = sample_report(dataclasses.replace(old, latencies=turns))
    (line,) = failures(report, [gate], {"darkness": old})
    shown = name if "@" in name else f"{name}@1"
    assert line == f"darkness: {shown} cannot be compared: the older report called the network on other images"
    assert failures(report, [gate], {"darkness": report.models[0]}) == []


def test_a_ratio_without_a_batch_is_of_one_and_the_same() -> None:
    """Of the smallest of the newer report: a batch of 8 takes longer than one image, which is no regression."""
    old = sample_model()
    report = sample_report(dataclasses.replace(old, latencies=old.latencies[1:]))
    gate = parse_gate("p50_ms=0.9", "--fail-under-ratio")
    assert failures(report, [gate], {"darkness": old}) == []
    assert failures(sample_report(old), [gate], {"darkness": report.models[0]}) == [
        "darkness: p50_ms@1 is not in the older report, which has no batch 1"
    ]


def test_a_ratio_of_speeds_is_of_the_same_images() -> None:
    old, new = (
        dataclasses.replace(report, workload=dataclasses.replace(report.workload, sha256=digit * 64))
        for report, digit in ((sample_report(sample_model(slower=2)), "a"), (sample_report(), "b"))
    )
    speed, score = (parse_gate(f"{name}=0.9", "--fail-under-ratio") for name in ("images_per_second", "jaccard"))
    pairs = {"darkness": old.models[0]}
    assert failures(new, [speed, score], pairs, old) == [
        "darkness: images_per_second cannot be compared: the older report is of other images"
    ]
    assert failures(dataclasses.replace(new, workload=old.workload), [speed, score], pairs, old) == []
    # A report that noted no hash: by their number.
    unknown = dataclasses.replace(old.workload, sha256=None)
    assert failures(new, [speed], pairs, dataclasses.replace(old, workload=unknown)) == []
    fewer = dataclasses.replace(unknown, images=2)
    assert len(failures(new, [speed], pairs, dataclasses.replace(old, workload=fewer))) == 1


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        # The mean rises from 0.65 to 0.75, since what is left of the images is easier.
        (
            {"a": 0.8, "b": 0.5, "c": 0.65},
            {"a": 0.75},
            "went from 0.8 to 0.75 on the images that both scored (1), under 1",
        ),
        ({"a": 0.8, "b": 0.5}, {"a": 0.8}, None),
        # It falls, since there are harder ones.
        ({"a": 0.8}, {"a": 0.8, "b": 0.5}, None),
        ({"a": 0.8}, {"b": 0.9}, "cannot be compared: no image was scored in both reports"),
        ({"a": 0.8, "b": 0.5}, {"a": 0.8, "b": 0.4}, "went from 0.65 to 0.6, under 1 of before"),
        ({"a": 0.8}, {}, "was not measured"),
        ({}, {"a": 0.8}, "is not in the older report"),
    ],
)
def test_a_ratio_of_scores_is_of_the_images_that_both_scored(
    old: dict[str, float], new: dict[str, float], problem: str | None
) -> None:
    was, now = (
        dataclasses.replace(sample_model(), accuracy=Accuracy({n: ImageScores(*[j] * 6) for n, j in side.items()}))
        for side in (old, new)
    )
    gate = parse_gate("sensitivity=1", "--fail-under-ratio")
    found = failures(sample_report(now), [gate], {"darkness": was})
    assert len(found) == (problem is not None)
    assert problem is None or found[0].startswith(f"darkness: sensitivity {problem}")


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--fail-under", "speed=3", "no figure has that name"),
        ("--fail-under", "jaccard@8=3", "no figure has that name"),
        ("--fail-over", "p99_ms@=3", "no figure has that name"),
        ("--fail-under", "jaccard", "expected NAME=VALUE"),
        ("--fail-under", "jaccard=high", "expected NAME=VALUE"),
        ("--fail-under", "jaccard=nan", "expected NAME=VALUE"),
        ("--fail-under", "p50_ms=3", "use --fail-over"),
        ("--fail-over", "dice=1", "use --fail-under"),
    ],
)
def test_what_is_no_gate(option: str, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_gate(text, option)
