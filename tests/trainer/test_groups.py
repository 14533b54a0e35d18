"""A data set may say what belongs together, and copies that nothing keeps together are named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from isicrt.engine.errors import DataError
from isicrt.trainer.data_notes import notes_on, say_copies
from isicrt.trainer.dataset import (
    Pair,
    _bucket,
    check_pairs,
    checked_pairs,
    find_pairs,
    hold_out,
    split_fold,
    survey,
)
from isicrt.trainer.groups import join_groups
from isicrt.trainer.loop import train
from isicrt.trainer.recipe import SoftLabels
from isicrt.trainer.twins import TWINS
from tests.trainer.test_dataset import write_pair
from tests.trainer.test_loop import settings, tiny

TWIN, OTHER = TWINS[0]
NAMES = ["a", "b", "c", "d.1", TWIN, "L\xe4sion"]
ROWS = ["image,group", "a,p1", "b.jpg,p2", "images/d.1.jpg, p1 ", f"{TWIN.lower()}.jpg,p2", "La\u0308sion,p3"]
NEEDS = (
    "has to have exactly one of image, image_id, image_name, isic_id, and at least one of group, patient_id, lesion_id"
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for n, name in enumerate(NAMES):
        write_pair(tmp_path / "data/train/images", tmp_path / "data/train/masks", name, size=(8 + n, 6))
    return tmp_path / "data"


def write_groups(folder: Path, *rows: str, encoding: str = "utf-8") -> Path:
    (folder / "groups.csv").write_text("\n".join(rows) + "\n", encoding=encoding)
    return folder / "groups.csv"


def groups(pairs: list[Pair]) -> dict[str, str | None]:
    return {pair.id: pair.group for pair in pairs}


@pytest.mark.parametrize("place", ["", "train"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_groups_are_read_by_ids_or_by_names_of_files(data: Path, place: str, encoding: str) -> None:
    plain = survey([data])[1]
    file = write_groups(data / place, *ROWS, "", "e,p1", encoding=encoding)
    found = {"a": "p1", "b": "p2", "c": None, "d.1": "p1", TWIN: "p2", "L\xe4sion": "p3"}
    assert groups(find_pairs(data)) == found
    pairs, report = checked_pairs([data])
    assert groups(pairs) == found
    notes = [
        f"{file}: 5 images are in 3 groups, each of which stays in one fold",
        f"{file}: 1 image that it names is not there, such as e",
    ]
    assert (list(report.groups), notes_on(report)) == (notes, notes)
    assert report.sha256 != plain.sha256, "the folds are others"
    file.unlink()
    assert survey([data])[1] == plain


HAM10000 = [
    "lesion_id,image_id,dx,dx_type,age,sex,localization",
    "HAM_0000118,ISIC_0027419,bkl,histo,80.0,male,scalp",
    "HAM_0000118,ISIC_0025030,bkl,histo,80.0,male,scalp",
    "HAM_0002730,ISIC_0026769,bkl,histo,,male,scalp",
    "HAM_0001466,ISIC_0031633,bkl,histo,75.0,male,ear",
]
ISIC_2020 = [
    "image_name,patient_id,lesion_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target",
    "ISIC_0027419,IP_7279968,IL_7972535,male,45.0,head/neck,unknown,benign,0",
    "ISIC_0025030,IP_3075186,IL_2735081,female,45.0,upper extremity,unknown,benign,0",
    "ISIC_0026769,IP_7279968,IL_4158600,male,50.0,lower extremity,nevus,benign,0",
    "ISIC_0068279,IP_3075186,IL_0736219,female,45.0,head/neck,unknown,benign,0",
]
ARCHIVE = [
    "isic_id,attribution,copyright_license,age_approx,sex,Patient_ID, LESION_ID ",
    'ISIC_0027419,"Department of Dermatology, Hospital A",CC-0,80,male,,IL_1',
    "ISIC_0025030,Anonymous,CC-0,,,,IL_1",
    "ISIC_0026769,Anonymous,CC-0,55,,,",
    "ISIC_0031633,Anonymous,CC-0,55,,IP_1,",
]


@pytest.mark.parametrize(
    ("rows", "found", "notes"),
    [
        (
            HAM10000,
            ["the lesion_id HAM_0000118", "the lesion_id HAM_0000118", "the lesion_id HAM_0002730"],
            ["3 images are in 2 groups, each of which", "ISIC_0031633"],
        ),
        (
            ISIC_2020,
            ["patient_id IP_7279968", "patient_id IP_3075186", "patient_id IP_7279968"],
            ["3 images are in 2 groups, each of which", "ISIC_0068279"],
        ),
        (
            ARCHIVE,
            ["the lesion_id IL_1", "the lesion_id IL_1", None],
            ["2 images are in 1 group, which", "ISIC_0031633"],
        ),
    ],
)
def test_published_metadata_are_groups_as_they_are(
    tmp_path: Path, rows: list[str], found: list[str | None], notes: list[str]
) -> None:
    names = ["ISIC_0027419", "ISIC_0025030", "ISIC_0026769"]
    for name in names:
        write_pair(tmp_path / "images", tmp_path / "masks", name)
    file = write_groups(tmp_path, *rows)
    pairs, report = checked_pairs([tmp_path])
    assert groups(pairs) == groups(find_pairs(tmp_path)) == dict(zip(names, found, strict=True))
    assert report.groups == (
        f"{file}: {notes[0]} stays in one fold",
        f"{file}: 1 image that it names is not there, such as {notes[1]}",
    )


def test_what_shares_a_value_in_any_column_is_one_group(data: Path, tmp_path: Path) -> None:
    """A patient with two lesions, and a lesion under two patients, whose image is not there; neither blanks nor values
    of two columns are anything in common."""
    rows = ["group,lesion_id,patient_id,image", ",1,2,a", ",1,3,elsewhere", ",4,3,b", ",2,,d.1", f"2,,,{TWIN}", ",,,c"]
    file = write_groups(data, *rows)
    pairs, report = checked_pairs([data])
    found = {"a": "patient_id 2", "b": "patient_id 2", "d.1": "the lesion_id 2", TWIN: "2"}
    assert groups(pairs) == dict.fromkeys(NAMES) | found
    assert report.groups[0] == f"{file}: 4 images are in 3 groups, each of which stays in one fold"
    more = tmp_path / "more"
    write_pair(more / "images", more / "masks", "e")
    write_groups(more, "patient_id,image", "3,e")
    assert groups(survey([data, more])[0])["e"] == "patient_id 2", "in several data sets too"


def test_a_column_of_groups_has_the_names_of_a_file_by_hand(data: Path) -> None:
    write_groups(data, *ROWS)
    by_hand = survey([data])[1]
    write_groups(data, "IMAGE_ID, Group ,sex", *(f"{row}," for row in ROWS[1:]))
    assert survey([data])[1] == by_hand


@pytest.mark.parametrize("row", ["other.2", "other.2.jpg", "test/images/other.2.jpg"])
def test_one_file_for_both_halves_names_images_of_either(data: Path, row: str) -> None:
    for name in ("other.2", "other"):  # the test's half; the train's has one of the latter name
        write_pair(data / "test/images", data / "test/masks", name)
    write_pair(data / "train/images", data / "train/masks", "other")
    file = write_groups(data, *ROWS, f"{row},p4", "other,p5")
    for split, images in (("train", "6 images are in 4 groups"), ("test", "2 images are in 2 groups")):
        pairs, report = survey([data], split)
        assert report.groups == (f"{file}: {images}, each of which stays in one fold",)
        assert groups(pairs)["other"] == "p5"
    assert groups(survey([data], "test")[0])["other.2"] == "p4"
    write_groups(data, *ROWS, f"{row},p4", "nowhere,p5")
    for split in ("train", "test"):
        assert survey([data], split)[1].groups[1:] == (f"{file}: 1 image that it names is not there, such as nowhere",)


def test_one_image_in_one_group(data: Path) -> None:
    file = write_groups(data, "image,group", "a,p1")
    assert survey([data])[1].groups == (f"{file}: 1 image is in 1 group, which stays in one fold",)


def test_a_group_stays_together() -> None:
    pairs = [Pair(f"{n}", Path("i"), Path("m"), group=f"patient {n // 4}") for n in range(80)]
    pairs += [Pair(f"{n}", Path("i"), Path("m")) for n in range(80, 120)]
    alone = [Pair(pair.id, pair.image, pair.mask) for pair in pairs]
    for split in (split_fold, hold_out):
        sides = [split(pairs, *order)[1] for k in range(4) for order in [(4, k) if split is split_fold else (k, 4)]]
        assert sorted(pair.id for side in sides for pair in side) == sorted(pair.id for pair in pairs)
        fold = {pair.id: k for k, side in enumerate(sides) for pair in side}
        assert all(len({fold[f"{4 * n + i}"] for i in range(4)}) == 1 for n in range(20))
        assert {fold[f"{4 * n}"] for n in range(20)} == {0, 1, 2, 3}
    rest = {pair.id for pair in split_fold(pairs, 4, 0)[1] if pair.group is None}
    assert rest == {pair.id for pair in split_fold(alone, 4, 0)[1]} & {f"{n}" for n in range(80, 120)}


def test_an_empty_fold_names_another_and_says_how_many_groups_there_are() -> None:
    def message(fold: int, names: list[str]) -> str:
        pairs = [Pair(f"{name}{n}", Path("i"), Path("m"), group=name) for name in names for n in range(2)]
        with pytest.raises(DataError) as caught:
            split_fold(pairs, 5, fold)
        return str(caught.value)

    fold = {name: next(k for k in range(5) if _bucket(name, 5) == k) for name in ("p0", "p1", "p2", "p3", "p4")}
    one, other = "p0", next(name for name in fold if fold[name] != fold["p0"])
    empty = next(k for k in range(5) if k not in (fold[one], fold[other]))
    first = min(fold[one], fold[other])
    said = message(empty, [one, other])
    assert said.startswith(f"4 pairs in 2 groups are too few for fold {empty} of 5: one side would be empty. ")
    assert f" Take another fold, such as --fold {first}, have fewer folds, or " in said
    for none in (fold[one], empty):
        said = message(none, [one])
        assert said.startswith(f"2 pairs in 1 group are too few for fold {none} of 5: ")
        assert "empty. Have fewer folds" in said


def test_groups_that_leave_a_teacher_no_part_are_refused_before_any_teacher_learns(
    rendered_pairs: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(rendered_pairs, tmp_path / "data"))
    write_groups(data, "image,group", *(f"ISIC_{n:07d},p{n % 3}" for n in range(12)))
    pairs, _ = checked_pairs([data])
    assert hold_out(pairs, 0, 4)[1], "it is not the first part that is empty"
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(tiny(name="teacher").to_dict()))
    recipe = tiny(soft_labels=SoftLabels(str(tmp_path / "teacher.yaml"), parts=4))
    run = settings(data, tmp_path / "run", recipe=recipe, fold=None)
    with pytest.raises(DataError) as refused:
        train(run)
    assert str(refused.value) == (
        "12 training pairs in 3 groups cannot be shared out in 4 parts: one would be empty. Lower soft_labels.parts in "
        "the recipe, or take another fold"
    )
    assert not run.out.exists()


def test_twins_and_several_files_join_groups() -> None:
    assert join_groups([]) == {}
    assert join_groups([("a", "p2"), (OTHER, "p2")]) == {"a": "p2", OTHER: "p2", TWIN: "p2"}
    assert join_groups([("a", "p2"), (OTHER, "p2"), (TWIN, "p1"), ("b", "p3")]) == {
        **dict.fromkeys(("a", OTHER, TWIN), "p1"),
        "b": "p3",
    }
    assert join_groups([("a", "p2"), ("b", "p2"), ("b", "p1")]) == {"a": "p1", "b": "p1"}


def test_a_twin_in_another_data_set_is_of_the_group(data: Path, tmp_path: Path) -> None:
    write_groups(data, *ROWS)
    write_pair(tmp_path / "more/images", tmp_path / "more/masks", OTHER)
    pairs, _ = checked_pairs([data, tmp_path / "more"])
    assert {pair.id for pair in pairs if pair.group == "p2"} == {"b", TWIN, OTHER}


def test_an_id_that_is_another_with_a_dot(data: Path) -> None:
    write_pair(data / "train/images", data / "train/masks", "d")
    write_groups(data, "image,group", "d.1,p1", "d.jpg,p2", "e,p3", "f,p4")
    found = groups(find_pairs(data))
    assert (found["d.1"], found["d"]) == ("p1", "p2")


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (["image,sex", "a,male"], f"its first line is 'image,sex', and {NEEDS}"),
        (["image_id,isic_id,lesion_id", "a,b,1"], f"its first line is 'image_id,isic_id,lesion_id', and {NEEDS}"),
        (
            ["image;group", "a;p1"],
            f"its first line is 'image;group', and {NEEDS}; save it with commas instead of semicolons",
        ),
        ([""], f"its first line is '', and {NEEDS}"),
        (["image_id,lesion_id,sex", "a,1,", "b,2"], "line 3 has to have 3 cells and an image"),
        (["image_id,lesion_id", "a,", ",1"], "line 3 has to have 2 cells and an image"),
        (
            ["image_id,patient_id,lesion_id", "a,,1", "a,2,", "a.jpg,3,1"],
            "line 4: a is in patient_id 2 already, and here in 3; an image has one",
        ),
        (["image,group", "a,p1", "b"], "line 3 has to be an image, a comma and its group"),
        (["image,group", "a,"], "line 2 has to be an image, a comma and its group"),
        (["image,group", "a,p1", "a.jpg,p2"], "line 3: a is in group p1 already, and here in p2; an image has one"),
    ],
)
def test_a_file_that_cannot_be_meant(data: Path, rows: list[str], problem: str) -> None:
    file = write_groups(data, *rows)
    assert survey([data])[1].problems == [f"{file}: {problem}"]
    with pytest.raises(DataError, match=r"groups\.csv: "):
        checked_pairs([data])
    assert set(groups(find_pairs(data)).values()) == {None}, "whoever scores has no folds"


def test_two_files_and_one_that_is_no_utf8(data: Path) -> None:
    file = write_groups(data, "image,group", "L\xe4sion,p1", encoding="latin-1")
    assert survey([data])[1].problems == [f"{file}: is not UTF-8; save it as CSV in UTF-8"]
    other = write_groups(data / "train", *ROWS)
    assert survey([data])[1].problems == [f"{other}: {file} is there too; remove one"]


def test_copies_are_named_unless_something_keeps_them_together(data: Path) -> None:
    images, masks = data / "train/images", data / "train/masks"
    for name in ("a2", OTHER):
        shutil.copy(masks / f"{'a' if name == 'a2' else TWIN}_Segmentation.png", masks / f"{name}_Segmentation.png")
        shutil.copy(images / f"{'a' if name == 'a2' else TWIN}.jpg", images / f"{name}.jpg")
    report = check_pairs(find_pairs(data))
    assert (report.problems, report.copies) == ([], ((images / "a2.jpg", images / "a.jpg"),))
    assert say_copies(report.copies) in notes_on(report)
    assert say_copies(report.copies).startswith(f"1 image is a copy of another, such as {images / 'a2.jpg'} of a.jpg: ")
    write_groups(data, *ROWS, "a2,p1")
    assert check_pairs(find_pairs(data)).copies == ()
