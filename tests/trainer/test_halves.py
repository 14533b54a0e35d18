"""What stands in both halves of a data set: copies, groups and ISIC's numbers; nothing that training leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest

from isicrt.trainer.dataset import survey
from isicrt.trainer.halves import notes_on_halves
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
