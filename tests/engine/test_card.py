"""The model card: what it accepts, and that it survives the trip through JSON."""

from __future__ import annotations

import json

import pytest

from isicrt.engine.card import FORMAT, MAX_SIDE, ModelCard
from isicrt.engine.errors import ModelError

CARD = ModelCard(
    name="unet-light",
    architecture="unet",
    input_height=192,
    input_width=256,
    mean=(0.1, 0.2, 1 / 3),
    threshold=0.45,
    network={"decoder_channels": [96, 48]},
    scores={"isic2016-test": {"jaccard": 0.87}},
)


def test_json_round_trip_is_exact() -> None:
    assert ModelCard.from_json(CARD.to_json()) == CARD
    assert ModelCard.from_json(CARD.to_json().encode()) == CARD


def test_json_is_one_line_with_the_format_first() -> None:
    text = CARD.to_json()
    assert "\n" not in text
    assert next(iter(json.loads(text).items())) == ("format", FORMAT)


def test_tuples_come_back_from_lists() -> None:
    assert ModelCard.from_json(CARD.to_json()).mean == (0.1, 0.2, 1 / 3)


def test_input_size_is_height_and_width() -> None:
    assert CARD.input_size == (192, 256)


def test_a_model_looks_at_an_image_once_unless_its_card_says_otherwise() -> None:
    assert CARD.views == 1
    assert ModelCard.from_json(CARD.replace(network={"views": 4}).to_json()).views == 4


def test_what_is_done_to_a_mask() -> None:
    assert CARD.clean_up == {"keep_largest": True, "fill_holes": True, "centre_sigma": 0.0}
    old = {name: value for name, value in CARD.to_dict().items() if name != "centre_sigma"}
    assert ModelCard.from_dict(old) == CARD  # cards of before there was one
    assert ModelCard.from_json(CARD.replace(centre_sigma=0.2).to_json()).clean_up["centre_sigma"] == 0.2


def test_replace_checks_again() -> None:
    assert CARD.replace(threshold=0.25).threshold == 0.25
    with pytest.raises(ModelError, match="'threshold'"):
        CARD.replace(threshold=1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("centre_sigma", -0.1),
        ("centre_sigma", 10.5),
        ("centre_sigma", float("nan")),
        ("input_height", 0),
        ("input_height", -1),
        ("input_height", MAX_SIDE + 1),
        ("input_height", 2.5),
        ("input_height", True),
        ("input_width", "256"),
        ("resize", "crop"),
        ("precision", "int4"),
        ("colour_order", "BGR"),
        ("mean", [0.1, 0.2]),
        ("mean", [0.1, 0.2, float("nan")]),
        ("mean", [True, 0.2, 0.3]),
        ("std", [0.1, float("inf"), 0.3]),
        ("name", ""),
        ("name", "a\x1b[31m"),
        ("architecture", "x" * 201),
        ("mean", 0.5),
        ("mean", ["a", "b", "c"]),
        ("std", [0.1, 0.0, 0.1]),
        ("threshold", 0),
        ("threshold", 1),
        ("threshold", True),
        ("threshold", "0.5"),
        ("keep_largest", 1),
        ("fill_holes", "yes"),
        ("name", 7),
        ("scores", [1]),
        ("network", {"views": 0}),
        ("network", {"views": 65}),
        ("network", {"views": True}),
        ("network", {"views": "4"}),
    ],
)
def test_a_bad_field_is_named(field: str, value: object) -> None:
    with pytest.raises(ModelError, match=f"field '{field}'"):
        ModelCard.from_dict(CARD.to_dict() | {field: value})


@pytest.mark.parametrize(
    "field", ["input_height", "threshold", "centre_sigma", "second_look", "second_look_zoom", "mean", "std"]
)
def test_a_number_beyond_all_floats_is_named_and_not_shown_whole(field: str) -> None:
    huge = 10**400
    value = [0.5, huge, 0.5] if field in ("mean", "std") else huge
    with pytest.raises(ModelError, match=f"field '{field}'") as error:
        ModelCard.from_json(json.dumps(CARD.to_dict() | {field: value}))
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "field 'format' is None"),
        ('{"format": 99}', "field 'format' is 99"),
        ('{"format": 1}', "field 'name' is missing"),
        ('{"format": NaN}', "NaN is not a number"),
        (json.dumps(CARD.to_dict() | {"colour": "red"}), "unknown field 'colour'"),
    ],
)
def test_bad_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelCard.from_json(text)


def test_defaults_fill_what_is_absent() -> None:
    card = ModelCard.from_dict({"format": 1, "name": "a", "architecture": "b", "input_height": 1, "input_width": 2})
    assert (card.threshold, card.keep_largest, card.precision) == (0.5, True, "fp32")
