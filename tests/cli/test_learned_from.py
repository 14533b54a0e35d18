"""What is said of the images that a model learned from."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from isicrt.benchmarks.evaluation import Case
from isicrt.cli.evaluate import _find
from isicrt.cli.learned_from import say_learned_from
from isicrt.cli.main import group
from isicrt.engine import shipped
from isicrt.engine.onnx_file import read_onnx_card
from isicrt.trainer.dataset import LEFT_OUT, Pair, check_pairs, checked_pairs, find_pairs, hold_out, split_fold
from isicrt.trainer.learned_ids import learned_ids
from isicrt.trainer.official_ids import TEST_IDS
from isicrt.trainer.origins import trainings
from isicrt.trainer.twins import TEST_TWINS

GENERAL = "learned from {} training images ({}); a score on those, or on others of their lesions, says nothing about"


@pytest.fixture
def cases(rendered_pairs: Path) -> list[Case]:
    return [Case(pair.id, pair.image, pair.mask) for pair in find_pairs(rendered_pairs)]


@pytest.fixture
def sha256(rendered_pairs: Path) -> str:
    return check_pairs(find_pairs(rendered_pairs)).sha256


def test_models_of_one_training_are_one_line(cases: list[Case]) -> None:
    both = {"data": ["data/isic2016", "data/isic2018-extra"], "data_sha256": "ab" * 32, "training_images": 1772}
    other = {"data": "shots/of\a", "training_images": 12}
    lines = say_learned_from([("a", both), ("b", other), ("c", both)], cases)
    assert [line.partition(" learned")[0] for line in lines] == ["a, c", "b"]
    assert GENERAL.format("1,772", "isic2016, isic2018-extra") in lines[0]
    assert GENERAL.format("12", "shots/of\\x07") in lines[1]


@pytest.mark.parametrize(
    "training", [{}, {"data": []}, {"data": ["a"]}, {"training_images": 3}, {"data": 7, "training_images": 3}]
)
def test_a_card_that_says_nothing(training: dict, cases: list[Case]) -> None:
    assert say_learned_from([("a", training)], cases) == []


@pytest.mark.parametrize(
    ("learned", "held_out", "known"),
    [(12, 0, True), (9, 3, True), (12, None, True), (11, 0, False), (12, 1, False)],
)
def test_the_images_themselves(learned: int, held_out: int | None, known: bool, cases: list[Case], sha256: str) -> None:
    training = {"data": ["x/mine"], "data_sha256": sha256, "training_images": learned, "validation_images": held_out}
    left_out = [Case(max(ids), cases[0].image, cases[0].truth) for ids in (TEST_IDS, TEST_TWINS)]
    for scored in (cases, [*cases, *left_out]):
        (line,) = say_learned_from([("a", training)], scored)
        whole = (
            "a LEARNED FROM THESE IMAGES (x/mine; "
            if held_out  # without a fold in the card
            else f"a LEARNED FROM 12 OF THESE {len(scored)} IMAGES (x/mine; "
        )
        assert (whole in line) is known
    (line,) = say_learned_from([("a", {**training, "data_sha256": "ab" * 32})], cases)
    assert "LEARNED" not in line, "other images, as many of them"


def test_test_images_that_were_learned_before_they_were_left_out(cases: list[Case]) -> None:
    scored = sorted([*cases, Case("ISIC_0000012", cases[0].image, cases[0].truth)], key=lambda case: case.id)
    sha256 = check_pairs([Pair(case.id, case.image, case.truth) for case in scored]).sha256
    (line,) = say_learned_from([("a", {"data": ["x"], "data_sha256": sha256, "training_images": 13})], scored)
    assert "LEARNED FROM 13 OF THESE 13 IMAGES" in line


def test_groups_are_part_of_what_was_learned(rendered_pairs: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(rendered_pairs, tmp_path / "data"))
    (data / "groups.csv").write_text("image,group\nISIC_0000001,p1\nISIC_0000002,p1\n")
    cases, _, _ = _find(data, "test")
    training = {"data": ["x"], "data_sha256": checked_pairs([data])[1].sha256, "training_images": 12}
    (line,) = say_learned_from([("a", training)], cases)
    assert "LEARNED FROM 12 OF THESE 12 IMAGES" in line
    alone = {**training, "data_sha256": checked_pairs([rendered_pairs])[1].sha256}
    assert alone != training
    (line,) = say_learned_from([("a", alone)], cases)
    assert "LEARNED FROM 12 OF THESE 12 IMAGES" in line, "before there were groups"
    folded = {**alone, "training_images": 9, "validation_images": 3, "fold": 0, "folds": 4}
    (line,) = say_learned_from([("a", folded)], cases)
    assert "LEARNED FROM THESE IMAGES" in line, "the folds of then are not known"
    (line,) = say_learned_from([("a", folded)], cases[:2], cases)
    assert GENERAL.format(9, "x") in line


@pytest.fixture
def fold(rendered_pairs: Path, sha256: str) -> tuple[dict, set[str]]:
    """What the card of a run says that held out fold 2 of 4, and the ids of that."""
    learned, validated = split_fold(find_pairs(rendered_pairs), 4, 2)
    counts = {"training_images": len(learned), "validation_images": len(validated)}
    training = {"data": ["data/clinic"], "data_sha256": sha256, "fold": 2, "folds": 4, **counts}
    return training, {pair.id for pair in validated}


def test_a_fold_of_the_data(cases: list[Case], fold: tuple[dict, set[str]]) -> None:
    training, validated = fold
    new, old = ([case for case in cases if (case.id in validated) is held] for held in (True, False))
    (line,) = say_learned_from([("a", training)], new, cases)
    assert line == "a held these images out (clinic; fold 2 of 4); they did choose the epoch of its best.pt."
    for scored in (old[:3], [*old[:3], *new]):
        (line,) = say_learned_from([("a", training)], scored, cases)
        assert f"a LEARNED FROM 3 OF THESE {len(scored)} IMAGES (clinic; " in line
    other = dataclasses.replace(new[0], id="ISIC_0000003")  # a test image, which training leaves out
    (line,) = say_learned_from([("a", training)], [other], [*cases, other])
    assert GENERAL.format(training["training_images"], "clinic") in line
    (line,) = say_learned_from([("a", {**training, "validation_images": None})], old[:3], cases)
    assert " learned from " in line, "other data by their number"


def test_what_one_training_held_out_is_not_called_so_where_another_learned_it(
    cases: list[Case], fold: tuple[dict, set[str]]
) -> None:
    training, validated = fold
    new = [case for case in cases if case.id in validated]
    start = _shipped("unet-light")
    assert validated & learned_ids(start["data_sha256"])
    lines = say_learned_from([("a", {**training, "start_from": start}), ("b", training)], new, cases)
    assert [line.partition(" (")[0] for line in lines] == [
        "b held these images out",
        f"a LEARNED FROM {len(validated & learned_ids(start['data_sha256']))} OF THESE {len(new)} IMAGES",
    ]


@pytest.mark.parametrize("other", [{"folds": None}, {"folds": 3}, {"fold": 7}, {"fold": "0"}, {"data_sha256": "ab"}])
def test_a_fold_that_cannot_be_made_again(cases: list[Case], fold: tuple[dict, set[str]], other: dict) -> None:
    training, _ = fold
    (line,) = say_learned_from([("a", {**training, **other})], cases[:3], cases)
    assert GENERAL.format(training["training_images"], "clinic") in line


def test_images_for_training_are_named_as_such_unless_all_held_them_out(
    cases: list[Case], fold: tuple[dict, set[str]]
) -> None:
    training, validated = fold
    start = _shipped("unet-light")
    new = [case for case in cases if case.id in validated - learned_ids(start["data_sha256"])]
    assert new
    for parts, scored, told in (
        ([training], new, False),
        ([{**training, "start_from": start}], new, False),
        ([training, start], new, False),
        ([training], cases, True),
        ([training, {}], new, True),
        ([{**training, "start_from": {"sha256": "ab"}}], new, True),
        ([{**training, "start_from": {**start, "mean_of": None, "data_sha256": "ab"}}], new, True),
        ([{**training, "fold": 1}, training], new, True),
    ):
        models = [("a", part) for part in parts]
        lines = say_learned_from(models, scored, cases, of_training=True)
        assert (lines[-1] == "--split train: a model may have learned from these images.") is told, lines
        assert lines[: len(lines) - told] == say_learned_from(models, scored, cases)


def test_what_it_went_on_from_and_what_it_is_the_mean_of(cases: list[Case], sha256: str) -> None:
    these = {"data": ["x/mine"], "data_sha256": sha256, "training_images": 12}
    other = {"data": ["theirs"], "data_sha256": "ab" * 32, "training_images": 7}
    for training in (
        {**other, "start_from": {"sha256": "cd" * 32, **these}},
        {**other, "mean_of": [other, these, {"seed": 1}, "x"]},
        {**other, "mean_of": [other, {**other, "start_from": these}]},
    ):
        lines = say_learned_from([("a", training)], cases)
        assert len(lines) == 2
        assert lines[0].startswith("a learned from 7 training images (theirs)")
        assert lines[1].startswith("a LEARNED FROM 12 OF THESE 12 IMAGES (x/mine;")
    assert len(say_learned_from([("a", {**other, "mean_of": "x", "start_from": 7})], cases)) == 1


def _shipped(name: str) -> dict:
    return dict(read_onnx_card(shipped.resolve(name)).training)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("unet-light", "a LEARNED FROM 3 OF THESE 5 IMAGES (isic2016, isic2018-extra; by their ISIC numbers): "),
        (
            "unet-light-isic2016",
            "a LEARNED FROM OR WAS CHOSEN BY 1 OF THESE 5 IMAGES (isic2016; by their ISIC numbers): ",
        ),
    ],
)
def test_some_of_what_a_shipped_model_learned_from(cases: list[Case], name: str, said: str) -> None:
    """As in all of ISIC 2018 Task 1, which has what it learned from, and more."""
    ids = ("ISIC_0000000", "ISIC_0016072", "ISIC_0016066", "ISIC_0000012", "ISIC_0009998")  # the last two: of the test
    mixed = [Case(image, cases[0].image, cases[0].truth) for image in ids]
    (line,) = say_learned_from([("a", _shipped(name))], mixed)
    assert line == f"{said}the scores are no measure of new ones."
    (line,) = say_learned_from([("a", _shipped(name))], mixed[3:])
    assert " learned from " in line


@pytest.fixture
def known_fold(cases: list[Case]) -> tuple[dict, list[Case], list[Case]]:
    """The card of a run that held out fold 0 of 3 of what unet-light learned from, and those images of one of its two
    data sets: what it learned from, and what it held out."""
    sha256 = _shipped("unet-light-isic2016")["data_sha256"], _shipped("unet-light")["data_sha256"]
    first, both = map(learned_ids, sha256)
    learned, validated = split_fold([Pair(id, Path(id), Path(id)) for id in sorted(both)], 3, 0)
    counts = {"training_images": len(learned), "validation_images": len(validated)}
    training = {"data": ["data/one", "data/two"], "data_sha256": sha256[1], "fold": 0, "folds": 3, **counts}
    old, new = (
        [Case(pair.id, cases[0].image, cases[0].truth) for pair in some if pair.id in first]
        for some in (learned, validated)
    )
    return training, old, new


def test_a_fold_of_one_of_two_data_sets(known_fold: tuple[dict, list[Case], list[Case]]) -> None:
    """As a run folder's validation.txt names it, where `evaluate` scores each data set by itself."""
    training, old, new = known_fold
    assert old
    assert new
    fold = "(one, two; fold 0 of 3); they did choose the epoch of its best.pt."
    assert say_learned_from([("a", training)], new, [*old, *new], of_training=True) == [
        f"a held these images out {fold}",
    ]
    for scored in (old[:3], [*old[:3], *new]):
        (line,) = say_learned_from([("a", training)], scored)
        assert line.startswith(f"a LEARNED FROM 3 OF THESE {len(scored)} IMAGES (one, two; by their ISIC numbers): ")


@pytest.mark.parametrize(("id", "is_new"), [("ISIC_0000003", True), ("patient7", False)])
def test_a_fold_and_images_that_are_not_known(
    known_fold: tuple[dict, list[Case], list[Case]], id: str, is_new: bool
) -> None:
    training, _, new = known_fold
    scored = [*new[:2], dataclasses.replace(new[0], id=id)]
    line, *rest = say_learned_from([("a", training)], scored, of_training=True)
    assert line == (
        "a held 2 of these 3 images out (one, two; fold 0 of 3); they did choose the epoch of its best.pt. Of the "
        "others: a score on training images under another name, or on others of their lesions, says nothing about new "
        "ones."
    )
    assert rest == ([] if is_new else ["--split train: a model may have learned from these images."])


def test_a_teacher_has_not_learned_the_part_that_it_labels(known_fold: tuple[dict, list[Case], list[Case]]) -> None:
    training, old, new = known_fold
    pairs = [Pair(id, Path(id), Path(id)) for id in sorted(learned_ids(training["data_sha256"]))]
    rest, part = hold_out(split_fold(pairs, 3, 0)[0], 0, 2)
    training |= {"training_images": len(rest), "held_out": [0, 2]}
    unseen = {pair.id for pair in part}
    seen_by_it = [case for case in old if case.id not in unseen]
    labelled = [case for case in old if case.id in unseen]
    (line,) = say_learned_from([("a", training)], [*seen_by_it[:3], *labelled[:4], *new])
    assert line.startswith(f"a LEARNED FROM 3 OF THESE {7 + len(new)} IMAGES (one, two; by their ISIC numbers): ")
    (line,) = say_learned_from([("a", training)], labelled)
    assert line.startswith(f"a learned from {len(rest):,} training images (one, two); ")


@pytest.mark.parametrize("other", [{"folds": None}, {"folds": 4}, {"fold": 3}, {"held_out": [0, 2]}, {"held_out": "x"}])
def test_a_fold_of_known_images_that_cannot_be_made_again(
    known_fold: tuple[dict, list[Case], list[Case]], other: dict
) -> None:
    training, _, new = known_fold
    (line,) = say_learned_from([("a", {**training, **other})], new)
    assert f"a LEARNED FROM OR WAS CHOSEN BY {len(new)} OF THESE {len(new)} IMAGES (one, two; " in line


@pytest.mark.parametrize("name", shipped.names())
def test_the_images_of_every_shipped_model_are_known(name: str) -> None:
    for training in trainings(_shipped(name)):
        ids = learned_ids(training["data_sha256"])
        assert len(ids) == training["training_images"] + training["validation_images"]
        assert not ids & LEFT_OUT.keys()


def test_they_are_those_of_the_data(real_data: Path) -> None:
    pairs, report = checked_pairs([real_data / "isic2016", real_data / "isic2018-extra"])
    assert learned_ids(report.sha256) == {pair.id for pair in pairs}


def test_it_stands_under_the_table(rendered_pairs: Path) -> None:
    """Rendered images have numbers of real ones here."""
    result = CliRunner().invoke(group, ["evaluate", "unet-light-int8", "--data", str(rendered_pairs)])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "unet-light-int8 LEARNED FROM 8 OF THESE 12 IMAGES (isic2016, isic2018-extra; by their ISIC numbers)" in said


def test_images_without_isic_numbers_may_be_what_a_shipped_model_learned_from(cases: list[Case]) -> None:
    (card,) = [read_onnx_card(shipped.resolve("unet-light"))]
    renamed = [dataclasses.replace(case, id=f"p{n}") for n, case in enumerate(cases)]
    *_, last = say_learned_from([("unet-light", card.training)], renamed, of_training=True)
    assert last == "--split train: a model may have learned from these images."
