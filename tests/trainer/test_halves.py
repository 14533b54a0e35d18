"""What stands in both halves of a data set: copies, groups and ISIC's numbers; nothing that training leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest

from isicrt.trainer.dataset import find_pairs, survey
from isicrt.trainer.halves import notes_on_halves, notes_on_test
from isicrt.trainer.twins import TEST_TWINS, TWINS
from tests.trainer.test_dataset import write_pair

TWIN, OTHER = TWINS[0]


@pytest.mark.parametrize(
    ("train", "test", "groups", "notes"),
    [
        pytest.param({"a": 1}, {"b": 2}, "", [], id="nothing"),
        pytest.param({"a": 1}, {"b": 1}, "", ["1 image of test is a copy of one in train, such as "], id="copy"),
        pytest.param(
            {"a": 1, "b": 2}, {"c": 2, "d": 1}, "", ["2 images of test are copies of some in train, such as "], id="two"
        ),
        pytest.param({"a": 1}, {"a": 2}, "", [], id="a_name_may_be_there_twice"),
        pytest.param(
            {"a": 1}, {"b": 2}, "a,p\nb,p", ["1 group is in train and in test, such as p with "], id="one_group"
        ),
        pytest.param(
            {"a": 1, "b": 2, "c": 3},
            {"d": 4, "e": 5, "f": 6},
            "a,p\nd,p\nb,q\ne,q\nc,r\nf,s",
            ["2 groups are in train and in test, such as p with "],
            id="two_groups",
        ),
        pytest.param({"a": 1}, {"b": 1}, "a,p\nb,p", ["1 image of test is a copy "], id="a_copy_in_its_group"),
        pytest.param({TWIN: 1}, {OTHER: 2}, "", [f"1 group is in train and in test, such as {TWIN} with "], id="twins"),
        pytest.param(
            {"ISIC_9900001": 1}, {"isic_9900001": 2}, "", ["1 group is in train and in test, such as "], id="isic_id"
        ),
    ],
)
def test_notes(tmp_path: Path, train: dict[str, int], test: dict[str, int], groups: str, notes: list[str]) -> None:
    for half, names in (("train", train), ("test", test)):
        for name, content in names.items():
            write_pair(tmp_path / half / "images", tmp_path / half / "masks", name, size=(8 + content, 6))
    if groups:
        (tmp_path / "groups.csv").write_text(f"image,group\n{groups}\n")
    found = notes_on_halves(survey([tmp_path], "train"), survey([tmp_path], "test"))
    assert len(found) == len(notes), found
    assert all(line.startswith(note) for line, note in zip(found, notes, strict=True))


def test_a_test_image_is_compared_with_what_is_learned_alone(tmp_path: Path) -> None:
    """The twin of a test image lies among the training images and is not learned from."""
    twin, test = next((twin, test) for twin, test in TEST_TWINS.items() if test.startswith("ISIC_"))
    write_pair(tmp_path / "train/images", tmp_path / "train/masks", twin)
    write_pair(tmp_path / "train/images", tmp_path / "train/masks", "a", size=(9, 9))
    write_pair(tmp_path / "test/images", tmp_path / "test/masks", test)
    assert notes_on_halves(survey([tmp_path], "train"), survey([tmp_path], "test")) == []


@pytest.mark.parametrize(
    ("train", "test", "groups", "found"),
    [
        pytest.param({"a": 1}, {"a": 2}, "", 0, id="a_name_may_be_there_twice"),
        pytest.param({"a": 1, "b": 2}, {"a": 3, "d": 1}, "", 1, id="copy"),
        pytest.param({"a": 1, "ISIC_9900001": 2}, {"isic_9900001": 3, "c": 4}, "", 1, id="isic_id"),
        pytest.param({"a": 1, "b": 2, "c": 3}, {"d": 4, "e": 5, "f": 1, "g": 6}, "a,p\nd,p\nb,q\ne,q", 3, id="all"),
    ],
)
def test_training_says_how_much_of_its_test_half_it_learns(
    tmp_path: Path, train: dict[str, int], test: dict[str, int], groups: str, found: int
) -> None:
    data = tmp_path / "data"
    for half, names in (("train", train), ("test", test)):
        for name, content in names.items():
            write_pair(data / half / "images", data / half / "masks", name, size=(8 + content, 6))
    if groups:
        (data / "groups.csv").write_text(f"image,group\n{groups}\n")
    write_pair(tmp_path / "more/images", tmp_path / "more/masks", "h", size=(30, 6))  # which has no halves
    notes = notes_on_test([data, tmp_path / "more"], survey([data, tmp_path / "more"])[1].contents)
    are = "1 image of test is" if found == 1 else f"{found} images of test are"
    assert [note.partition(" in train too")[0] for note in notes] == [are] * bool(found)


def test_a_test_half_that_does_not_pair_up_is_no_matter_of_training(tmp_path: Path) -> None:
    for half in ("train", "test"):
        write_pair(tmp_path / half / "images", tmp_path / half / "masks", "a")
    contents = survey([tmp_path])[1].contents
    assert len(notes_on_test([tmp_path], contents)) == 1
    find_pairs(tmp_path, "test")[0].mask.unlink()
    assert notes_on_test([tmp_path], contents) == []


def test_groups_of_one_name_in_two_data_sets_are_one_and_the_line_says_so(tmp_path: Path) -> None:
    train, test = tmp_path / "a", tmp_path / "b"
    write_pair(train / "train/images", train / "train/masks", "here")
    write_pair(test / "train/images", test / "train/masks", "further", size=(30, 6))
    write_pair(test / "test/images", test / "test/masks", "there", size=(30, 7))
    (train / "groups.csv").write_text("image_id,patient_id\nhere,1\n")
    (test / "groups.csv").write_text("image_id,patient_id\nthere,1\n")
    (note,) = notes_on_test([train, test])
    assert "give groups of different data sets different names" in note
    (test / "groups.csv").write_text("image_id,patient_id\nthere,2\n")
    assert notes_on_test([train, test]) == []
    (test / "groups.csv").write_text("image_id,patient_id\nthere,2\nfurther,2\n")
    (note,) = notes_on_test([train, test])
    assert "different names" not in note


def test_an_isic_id_is_one_image_in_every_data_set(tmp_path: Path) -> None:
    train, test = tmp_path / "a", tmp_path / "b"
    write_pair(train / "train/images", train / "train/masks", "ISIC_0024306")
    write_pair(test / "train/images", test / "train/masks", "further", size=(30, 6))
    write_pair(test / "test/images", test / "test/masks", "ISIC_0024306")
    (train / "groups.csv").write_text("image_id,patient_id\nISIC_0024306,1\n")
    (note,) = notes_on_test([train, test])
    assert "1 image of test is in train too" in note
