"""Masks under other conditions: what a condition does to an image and its truth, and what is made of the scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from isicrt.benchmarks.conditions import CONDITIONS, UNCHANGED, Condition
from isicrt.benchmarks.evaluation import Candidate, Case, score_model
from isicrt.benchmarks.rendered import render
from isicrt.benchmarks.robustness import SCHEMA, command, differences, measure_robustness, summarised, to_markdown
from isicrt.benchmarks.scoring_protocol import OfficialProtocol
from isicrt.benchmarks.tradeoff import find_cases, read_ids
from isicrt.engine.errors import DataError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.masks import Mask
from isicrt.engine.runtime import open_runtime

BY_NAME = {condition.name: condition for condition in CONDITIONS}


@pytest.fixture(scope="module")
def photograph() -> tuple[UInt8Array, Mask]:
    """Of no square shape, with odd sides; its lesion is in the middle."""
    image, mask = render(3, (97, 131))
    return image, mask > 128


def cases_of(root: Path) -> list[Case]:
    return find_cases([root], "test")


def call(*arguments: Path | str) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.name)
def test_an_image_and_its_truth_stay_together(condition: Condition, photograph: tuple[UInt8Array, Mask]) -> None:
    image, truth = photograph
    before = image.copy()
    changed, true = condition.apply(image, truth, "ISIC_0000000")
    again, _ = condition.apply(image, truth, "ISIC_0000000")
    assert changed.dtype == np.uint8
    assert true.dtype == bool
    assert changed.shape == (*true.shape, 3)
    assert np.array_equal(changed, again)
    assert np.array_equal(image, before)
    assert true.any()
    assert (changed.shape == image.shape and np.array_equal(changed, image)) == (condition.name == UNCHANGED)
    # No condition invents lesion, and only a round field of view hides any.
    assert true.sum() <= truth.sum()
    assert true.sum() == truth.sum() or condition.name.startswith("round")


@pytest.mark.parametrize("name", ["round field", "round field, 4:3", "black border", "quarter turn", "grey", "bright"])
def test_the_truth_lies_on_the_lesion(name: str) -> None:
    """Lesion of one colour that is nowhere else: it is to be found where the truth is, and only there."""
    truth = np.zeros((90, 131), bool)
    truth[10:60, 70:125] = True
    image = np.where(truth[..., None], (40, 40, 40), (150, 150, 150)).astype(np.uint8)
    changed, true = BY_NAME[name].apply(image, truth, "")
    dark = (changed[..., 0] > 20) & (changed[..., 0] < 80)
    assert np.array_equal(dark, true)
    assert true.any()


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("dark", (100, 50, 10)),
        ("bright", (255, 140, 28)),
        ("warm", (240, 100, 15)),
        ("cool", (150, 100, 24)),
        ("grey", (121, 121, 121)),
    ],
)
def test_light_and_colour(name: str, levels: tuple[int, int, int]) -> None:
    image = np.full((4, 4, 3), (200, 100, 20), np.uint8)
    changed, _ = BY_NAME[name].apply(image, np.ones((4, 4), bool), "")
    assert tuple(changed[2, 2]) == levels


@pytest.mark.parametrize(
    ("name", "size", "shade"),
    [
        ("black sides", (97, 175), 0),
        ("white sides", (97, 175), 255),
        ("black border", (145, 197), 0),
        ("white border", (145, 197), 255),
    ],
)
def test_a_border_lies_around_the_photograph(
    photograph: tuple[UInt8Array, Mask], name: str, size: tuple[int, int], shade: int
) -> None:
    image, truth = photograph
    changed, true = BY_NAME[name].apply(image, truth, "")
    assert true.shape == size
    down, across = (size[0] - 97) // 2, (size[1] - 131) // 2
    inside = np.zeros(size, bool)
    inside[down : down + 97, across : across + 131] = True
    assert np.array_equal(changed[inside].reshape(image.shape), image)
    assert (changed[~inside] == shade).all()
    assert np.array_equal(true[inside].reshape(truth.shape), truth)


def test_what_a_round_field_hides_is_no_lesion() -> None:
    image, truth = np.full((80, 120, 3), 90, np.uint8), np.ones((80, 120), bool)
    changed, true = BY_NAME["round field"].apply(image, truth, "")
    assert np.array_equal(changed.any(axis=2), true)
    assert true.sum() == pytest.approx(np.pi * 40**2, rel=0.01)
    assert true[40, 60]
    assert not true[2, 2]


def test_a_channel_stays_in_its_place() -> None:
    """JPEG by OpenCV, which has them the other way round."""
    image = np.full((64, 64, 3), (200, 120, 40), np.uint8)
    changed, _ = BY_NAME["JPEG 12"].apply(image, np.ones((64, 64), bool), "")
    np.testing.assert_allclose(changed.reshape(-1, 3).mean(0), (200, 120, 40), atol=6)


def test_what_is_random_is_the_images_own(photograph: tuple[UInt8Array, Mask]) -> None:
    one, other = (BY_NAME["noisy"].apply(*photograph, image)[0] for image in ("a", "b"))
    assert not np.array_equal(one, other)


def test_scores_are_those_of_evaluate(darkness_onnx: Path, rendered_pairs: Path) -> None:
    cases = cases_of(rendered_pairs)
    with open_runtime(darkness_onnx) as runtime:
        seen: list[None] = []
        measured = measure_robustness([runtime], cases, on_image=lambda: seen.append(None))
        evaluated = score_model(Candidate("a", "a", "", runtime), cases, OfficialProtocol())
    (found,) = measured.scores
    assert measured.problems == ()
    assert len(seen) == len(cases)
    assert list(found) == list(BY_NAME)
    for case in evaluated.cases:
        # A JPEG is scaled before it is resized there, and here it is whole.
        assert found[UNCHANGED][case.case.id] == pytest.approx(case.scores.jaccard, abs=0.02)
    # The network finds what is dark: a white border is nothing to it, a black one is lesion.
    rows = {row["condition"]: row for row in summarised(found)}
    assert rows[UNCHANGED]["change"] == 0
    assert rows["black border"]["change"] < -0.2
    assert rows["white border"]["change"] > rows["black border"]["change"] + 0.2


def test_changes_and_differences_are_paired() -> None:
    # Ten images, two kinds of them in turn.
    first = {UNCHANGED: _scores(0.9, 0.5), "dark": _scores(0.8, 0.4)}
    second = {UNCHANGED: _scores(0.9, 0.7), "dark": _scores(0.9, 0.7)}
    dark = summarised(first)[1]
    assert dark == pytest.approx(
        {"condition": "dark", "jaccard": 0.6, "below_0.65": 5, "change": -0.1, "low": -0.1, "high": -0.1}
    )
    assert [row["difference"] for row in differences(second, first)] == pytest.approx([0.1, 0.2])


def test_few_images_have_no_interval_and_nothing_is_bold() -> None:
    first, second = ({UNCHANGED: {"a": j, "b": j}, "dark": {"a": j / 2, "b": j / 2}} for j in (0.8, 0.9))
    models: list[dict[str, Any]] = [
        {"label": name, "summary": summarised(scores), "against_first": differences(scores, first)}
        for name, scores in (("m", first), ("n", second))
    ]
    assert {(row["low"], row["high"]) for m in models for row in (*m["summary"], *m["against_first"])} == {(None, None)}
    conditions = [{"name": name, "title": name} for name in (UNCHANGED, "dark")]
    table = to_markdown(
        {"models": models, "conditions": conditions, "data": {"images": 2, "sets": ["s"]}, "problems": []}
    )
    assert "| dark | 0.400 | -0.400 (too few images) |" in table
    assert "**" not in table


def _scores(even: float, odd: float) -> dict[str, float]:
    return {str(n): odd if n % 2 else even for n in range(10)}


def test_the_command_writes_a_table_and_everything(darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    out, ids = tmp_path / "r.json", tmp_path / "ids.txt"
    chosen = [case.id for case in cases_of(rendered_pairs)][:2]
    ids.write_text("\n".join(chosen))
    result = call(darkness_onnx, darkness_onnx, "--data", rendered_pairs, "--ids", ids, "--json", out)
    assert result.exit_code == 0, result.output
    data = json.loads(out.read_text())
    assert data["schema"] == SCHEMA
    assert data["data"] == {
        "sets": ["/".join(rendered_pairs.parts[-2:])],
        "split": "test",
        "ids": "ids.txt",
        "images": 2,
    }
    for path in (tmp_path, rendered_pairs, darkness_onnx.parent):
        assert str(path) not in out.read_text()
    first, second = data["models"]
    assert sorted(first["per_image"]["grey"]) == sorted(chosen)
    assert {row["difference"] for row in second["against_first"]} == {0.0}
    assert f"| {UNCHANGED} |" in result.output
    assert "white border: 1.5 times as wide and as high" in result.output


def test_a_bad_image_costs_itself(darkness_onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for n in range(3):
        image, mask = render(n, (64, 64))
        Image.fromarray(image).save(tmp_path / "images" / f"ISIC_{n:07d}.jpg")
        Image.fromarray(mask if n else mask[:40]).save(tmp_path / "masks" / f"ISIC_{n:07d}_Segmentation.png")
    (tmp_path / "images" / "ISIC_0000001.jpg").write_bytes(b"no JPEG")
    out = tmp_path / "r.json"
    result = call(darkness_onnx, "--data", tmp_path, "--json", out)
    assert result.exit_code == 1
    assert "2 of 3 images were not measured" in result.output
    assert "- 1 images" in result.output
    data = json.loads(out.read_text())
    assert len(data["problems"]) == 2
    assert list(data["models"][0]["per_image"][UNCHANGED]) == ["ISIC_0000002"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [(b"ISIC_9999999", "in no data set"), (b"\n \n", "has no ids"), (b"\xff\xfe\x00", "is no text file")],
)
def test_ids_that_are_none_are_named(
    darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path, ids: bytes, message: str
) -> None:
    file = tmp_path / "ids.txt"
    file.write_bytes(ids)
    result = call(darkness_onnx, "--data", rendered_pairs, "--ids", file)
    assert result.exit_code == 1
    assert message in result.output


def test_ids_may_come_from_windows(tmp_path: Path) -> None:
    file = tmp_path / "ids.txt"
    file.write_bytes(b"\xef\xbb\xbfISIC_0000001\r\n my lesion \r\n")
    assert read_ids(file) == ["ISIC_0000001", "my lesion"]


def test_what_cannot_be_measured_is_said(darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    result = call(tmp_path / "no.onnx", "--data", rendered_pairs)
    assert result.exit_code == 1
    assert "no.onnx" in result.output
    with open_runtime(darkness_onnx) as runtime, pytest.raises(DataError, match="not one of 0 images"):
        measure_robustness([runtime], [])
