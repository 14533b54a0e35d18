from __future__ import annotations

import csv
import dataclasses
import io
import json
from dataclasses import replace

import pytest

from isicrt.benchmarks.evaluation import compare
from isicrt.benchmarks.evaluation_result import SCHEMA, tables
from tests.benchmarks.sample_evaluation import sample_evaluation

SCORES = ("jaccard", "dice", "threshold_jaccard", "accuracy", "sensitivity", "specificity")


@pytest.mark.parametrize("official", [True, False])
def test_json(official: bool) -> None:
    data = json.loads(sample_evaluation(official=official).to_json())
    assert data["schema"] == SCHEMA
    assert data["command"].startswith("isicrt evaluate ")
    assert data["environment"]["cpu"] == "a CPU"
    assert data["protocol"]["name"] == ("official" if official else "report")
    assert "must not be compared" in data["protocol"]["note"]
    assert data["data"] == {"label": "isic2016/test", "split": "test", "images": 3, "left_out": 0}
    frozen, tuned = data["models"]
    assert (frozen["file"], frozen["sha256"], frozen["name"]) == ("frozen/best.pt", "ab" * 32, "darkness")
    assert frozen["card"]["input_height"] == 64
    assert frozen["clean_up"] == (["keep_largest", "fill_holes"] if official else [])
    assert frozen["input"] == ("64 x 64 px" if official else "64 x 64 px in place of the report's 128")
    assert frozen["summary"]["jaccard"] == pytest.approx(0.7)
    assert [image["image"] for image in frozen["per_image"]] == ["a", "b", "c"]
    assert set(frozen["per_image"][0]) == {"image", "height", "width", "lesion_share", "truth_share"} | set(
        SCORES if official else SCORES[:2]
    )
    assert tuned["summary"]["images"] == 2
    assert tuned["problems"] == ["images/b.jpg: is empty"]
    assert data["differences"] == [
        {
            "label": "tuned",
            "against": "frozen",
            "images": 2,
            "jaccard": pytest.approx(0.175),
            "low": None,
            "high": None,
            "interval_leaves_out_0": False,
        }
    ]


def test_csv_has_a_row_for_each_model_and_image() -> None:
    rows = list(csv.DictReader(io.StringIO(sample_evaluation().to_csv())))
    assert [(row["model"], row["image"]) for row in rows] == [
        ("frozen", "a"),
        ("frozen", "b"),
        ("frozen", "c"),
        ("tuned", "a"),
        ("tuned", "b"),
        ("tuned", "c"),
    ]
    assert list(rows[0]) == ["model", "image", "height", "width", *SCORES, "lesion_share", "truth_share", "error"]
    assert (rows[1]["height"], rows[1]["jaccard"], rows[1]["lesion_share"]) == ("96", "0.7", "0.25")
    assert [row["error"] for row in rows] == ["", "", "", "", "images/b.jpg: is empty", ""]
    assert (rows[4]["height"], rows[4]["jaccard"], rows[4]["truth_share"]) == ("", "", "")


def test_csv_of_a_name_with_a_carriage_return() -> None:
    result = sample_evaluation()
    problem = dataclasses.replace(result.models[1].problems[0], id="b\rc")
    model = dataclasses.replace(result.models[1], problems=[problem])
    text = dataclasses.replace(result, models=[result.models[0], model]).to_csv()
    assert [row["image"] for row in csv.DictReader(io.StringIO(text, newline=""))][4] == "b\rc"


def test_failures_are_counted_over_all_models() -> None:
    assert sample_evaluation().failed == 1


FIRST = ["Images", "Jaccard", "Interval", "Dice", "Median", "p5", "<0.65"]
SECOND = ["Jacc.*", "Acc.", "Sens.", "Spec."]


@pytest.mark.parametrize(
    ("official", "wide", "headings"), [(True, True, FIRST + SECOND), (False, True, FIRST), (False, False, FIRST)]
)
def test_one_table_of_scores(official: bool, wide: bool, headings: list[str]) -> None:
    scores, differences = tables(sample_evaluation(official=official), wide=wide)
    assert list(scores.header) == ["Model", *headings]
    assert [row[:3] for row in scores.rows] == [("frozen", "3/3", "0.7000"), ("tuned", "2/3", "0.8750")]
    assert scores.title == f"Protocol {'official' if official else 'report'}, isic2016/test"
    assert ("place of the report's 128" in scores.note) is not official
    assert differences.title.endswith("difference from frozen")
    assert differences.rows == (("tuned", "2", "+0.1750", "-", "-"),)
    clear = replace(sample_evaluation().differences[0], images=10, low=0.1, high=0.25)
    (shown,) = tables(replace(sample_evaluation(), differences=(clear,)))[1].rows
    assert shown == ("tuned", "10", "+0.1750", "+0.1000 to +0.2500", "no")


def test_the_note_says_which_model_has_which_settings() -> None:
    same = sample_evaluation()
    assert "\nfrozen" not in tables(same)[0].note
    assert tables(same)[0].note.count("clean-up: keep largest and fill holes.") == 1
    frozen, tuned = same.models
    central = replace(tuned, clean_up=("keep_central", "fill_holes"))
    third = replace(frozen, label="third")
    first, *settings, _ = tables(replace(same, models=(frozen, central, third)))[0].note.splitlines()
    assert "clean-up" not in first
    assert settings == [
        "frozen, third: threshold 0.5, clean-up: keep largest and fill holes.",
        "tuned: threshold 0.5, clean-up: keep central and fill holes.",
    ]


def test_two_tables_where_there_is_no_room() -> None:
    first, second, _ = tables(sample_evaluation(), wide=False)
    assert first.header[-1] == "<0.65"
    assert first.rows[0][-1] == "1"
    assert second.header == ("Model", "Jacc.*", "Acc.", "Sens.", "Spec.")
    assert second.rows[0] == ("frozen", "0.5333", "0.900", "0.800", "0.950")
    assert "clean-up: keep largest and fill holes" in second.note


def test_one_image_has_no_interval() -> None:
    """That of the bootstrap would be a point."""
    whole = sample_evaluation()
    models = [replace(model, cases=model.cases[:1]) for model in whole.models]
    one = replace(whole, models=tuple(models), differences=tuple(compare(models[0], models[1:])))
    scores, differences = tables(one)
    at = scores.header.index("Interval")
    assert [row[at] for row in scores.rows] == ["-", "-"]
    assert [row[3:] for row in differences.rows] == [("-", "-")]
    data = json.loads(one.to_json())
    assert {(m["summary"]["jaccard_low"], m["summary"]["jaccard_high"]) for m in data["models"]} == {(None, None)}
    (difference,) = data["differences"]
    assert (difference["low"], difference["high"], difference["interval_leaves_out_0"]) == (None, None, False)
