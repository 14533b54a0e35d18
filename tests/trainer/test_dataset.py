"""Pairs are found by id in every layout, and every problem is reported at once."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isicrt.engine.errors import DataError
from isicrt.engine.image_search import EXTENSIONS
from isicrt.engine.journal import JOURNAL_NAME
from isicrt.trainer.dataset import (
    IMAGE_SUFFIXES,
    LEFT_OUT,
    Pair,
    check_pairs,
    checked_pairs,
    find_pairs,
    split_fold,
    survey,
)
from isicrt.trainer.official_ids import TEST_IDS
from isicrt.trainer.twins import TEST_TWINS, TWINS


def write_pair(images: Path, masks: Path, name: str, *, size=(8, 6), mask_size=None, mode="L", values=(0, 255)) -> None:
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 150, 140)).save(images / f"{name}.jpg")
    w, h = mask_size or size
    mask = np.resize(np.array(values, np.uint8), (h, w))
    Image.fromarray(mask).convert(mode).save(masks / f"{name}_Segmentation.png")


@pytest.mark.parametrize(
    ("images", "masks", "split"),
    [
        ("images", "masks", "train"),
        ("train/images", "train/masks", "train"),
        ("test/images", "test/masks", "test"),
        ("ISBI2016_ISIC_Part1_Training_Data", "ISBI2016_ISIC_Part1_Training_GroundTruth", "train"),
        ("ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth", "test"),
    ],
)
def test_layouts(tmp_path: Path, images: str, masks: str, split: str) -> None:
    for name in ("ISIC_0000010", "ISIC_0000002"):
        write_pair(tmp_path / images, tmp_path / masks, name)
    (tmp_path / images / "ATTRIBUTION.txt").write_text("ISIC_0000002")
    pairs = find_pairs(tmp_path, split)
    assert [p.id for p in pairs] == ["ISIC_0000002", "ISIC_0000010"]
    assert all(p.id in p.image.name and p.id in p.mask.name for p in pairs)


OFFICIAL = ("ISBI2016_ISIC_Part1_Training_Data", "ISBI2016_ISIC_Part1_Training_GroundTruth")


@pytest.mark.parametrize(
    ("layouts", "refused"),
    [
        pytest.param([("images", "masks"), ("train/images", "train/masks")], ("train", "test"), id="flat_and_train"),
        pytest.param([("images", "masks"), ("test/images", "test/masks")], ("train", "test"), id="flat_and_test"),
        pytest.param([("images", "masks"), OFFICIAL], ("train", "test"), id="flat_and_official"),
        pytest.param(
            [("train/images", "train/masks"), OFFICIAL, ("test/images", "test/masks")], ("train",), id="two_of_train"
        ),
    ],
)
def test_two_layouts_in_one_folder_are_refused(
    tmp_path: Path, layouts: list[tuple[str, str]], refused: tuple[str, ...]
) -> None:
    for images, masks in layouts:
        write_pair(tmp_path / images, tmp_path / masks, "ISIC_0000001")
    for split in refused:
        with pytest.raises(DataError, match=r"holds more than one data set: .* leave one layout") as caught:
            find_pairs(tmp_path, split)
        assert all(f"{images}/ and {masks}/" in str(caught.value) for images, masks in layouts[:2])
    for split in {"train", "test"} - {*refused}:
        assert len(find_pairs(tmp_path, split)) == 1


def test_a_layout_that_links_to_the_other_is_the_same(tmp_path: Path) -> None:
    write_pair(tmp_path / "images", tmp_path / "masks", "ISIC_0000001")
    (tmp_path / "test").symlink_to(tmp_path, target_is_directory=True)
    assert find_pairs(tmp_path, "test") == find_pairs(tmp_path, "train")


def test_known_duplicates_of_test_images_are_left_out_of_training_only(tmp_path: Path) -> None:
    for name in [*LEFT_OUT, "ISIC_0000000"]:
        for split in ("train", "test"):
            write_pair(tmp_path / split / "images", tmp_path / split / "masks", name)
    assert [p.id for p in find_pairs(tmp_path)] == ["ISIC_0000000"]
    assert len(find_pairs(tmp_path, "test")) == 1 + len(LEFT_OUT)
    assert [survey([tmp_path], split)[1].left_out for split in ("train", "test")] == [len(LEFT_OUT), 0]


def test_the_test_images_are_left_out_under_their_own_names() -> None:
    """As ISIC 2017 has them, among its training images."""
    assert len(TEST_IDS) == 379
    assert not TEST_IDS & {*TEST_TWINS, *(name for group in TWINS for name in group)}
    assert {test for test in TEST_TWINS.values() if test.startswith("ISIC")} <= TEST_IDS
    assert len(LEFT_OUT) == 379 + len(TEST_TWINS) - 1  # see `tests.conftest`


def test_where_all_are_left_out_it_is_said(tmp_path: Path) -> None:
    for name in ("ISIC_0000012", "ISIC_0011082"):
        write_pair(tmp_path / "images", tmp_path / "masks", name)
    with pytest.raises(DataError, match=r"no pair to use\. 2 of 2 are left out: they are test images of ISIC 2016, or"):
        checked_pairs([tmp_path])
    assert len(checked_pairs([tmp_path], "test")[0]) == 2
    assert [pair.id for pair in find_pairs(tmp_path, "train", TEST_TWINS.keys())] == ["ISIC_0000012"]


def test_what_is_left_out_is_not_decoded_where_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path / "images", tmp_path / "masks", "ISIC_0000012")
    monkeypatch.setattr("isicrt.trainer.dataset.check_pair", lambda *files: pytest.fail(f"{files} were decoded"))
    assert survey([tmp_path], "train")[1].left_out == 1


def test_names_without_an_isic_id_pair_by_stem(tmp_path: Path) -> None:
    write_pair(tmp_path / "images", tmp_path / "masks", "lesion a")
    assert [p.id for p in find_pairs(tmp_path)] == ["lesion a"]


def test_an_accent_is_one_character_or_two(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "L\xe4sion_1") for form in ("NFC", "NFD"))
    assert composed != apart
    for root, image, mask in (("a", composed, composed), ("b", apart, composed), ("c", apart, apart)):
        write_pair(tmp_path / root / "images", tmp_path / root / "masks", image)
        written = tmp_path / root / "masks" / f"{image}_Segmentation.png"
        written.rename(written.with_name(f"{mask}_Segmentation.png"))
    found = [find_pairs(tmp_path / root) for root in "abc"]
    assert [pair.id for pairs in found for pair in pairs] == [composed] * 3
    assert len({check_pairs(pairs).sha256 for pairs in found}) == 1


@pytest.mark.parametrize("ending", ["", "_segmentation", "_lesion", "_MASK", "_seg", "_GT"])
def test_masks_of_other_data_sets_pair_by_their_endings(tmp_path: Path, ending: str) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    for name in ("IMD002", "IMD003_lesion", "ISIC_0000001"):
        write_pair(images, masks, name)
        (masks / f"{name}_Segmentation.png").rename(masks / f"{name}{ending}.png")
    assert [(p.id, p.mask.name) for p in find_pairs(tmp_path)] == [
        (name, f"{name}{ending}.png") for name in ("IMD002", "IMD003_lesion", "ISIC_0000001")
    ]


def test_an_ending_counts_only_where_no_image_has_it(tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    for name in ("a", "a_mask"):
        write_pair(images, masks, name)
        (masks / f"{name}_Segmentation.png").rename(masks / f"{name}.png")
    assert [p.mask.name for p in find_pairs(tmp_path)] == ["a.png", "a_mask.png"]
    (images / "a_mask.jpg").unlink()
    with pytest.raises(DataError, match=r"a_mask\.png: a second mask of a beside a\.png; remove one"):
        find_pairs(tmp_path)


def test_a_second_mask_that_isicrt_wrote_is_said_to_be_a_prediction(tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    for name in ("a", "b", "c", "d"):
        write_pair(images, masks, name)
    for name in ("a", "b", "c"):
        (masks / f"{name}.png").write_bytes((masks / f"{name}_Segmentation.png").read_bytes())
    plain = [
        f"{masks / f'{name}_Segmentation.png'}: a second mask of {name} beside {name}.png; remove one" for name in "abc"
    ]
    assert survey([tmp_path])[1].problems == plain
    (masks / JOURNAL_NAME).write_text(
        '{"run": "1", "format": 1}\n{"writing": ["a.png", "b.png"]}\n'
        '{"status": "done", "image": "a.jpg", "mask": "a.png"}\n[]\n{"torn\n'
        '{"status": "failed", "image": "b.jpg", "mask": "b.png", "reason": "r"}\n'
        '{"status": "failed", "mask_crc": 1, "image": "c.jpg", "mask": "c.png"}\n'
        '{"status": "done", "image": "c_Segmentation.png", "mask": "c_Segmentation.png"}\n'
        '{"status": "skipped", "image": "a.jpg", "mask": "a_Segmentation.png", "kept": "there"}\n'
    )
    assert survey([tmp_path])[1].problems == [
        f"{masks / 'a_Segmentation.png'}: a second mask of a beside a.png. a.png may be a prediction "
        "of isicrt, whose journal there names it: move it elsewhere",
        plain[1],
        f"{masks / 'c_Segmentation.png'}: a second mask of c beside c.png. c.png and c_Segmentation.png may be "
        "predictions of isicrt, whose journal there names them: move them elsewhere",
    ]


def test_an_isic_id_has_seven_digits_in_capitals_or_not(tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    write_pair(images, masks, "ISIC_0000001_small")
    (images / "ISIC_0000001_small.jpg").rename(images / "isic_0000001.jpg")
    write_pair(images, masks, "isic_0000249")  # a twin of a test image
    write_pair(images, masks, "ISIC_12345678")
    assert [pair.id for pair in find_pairs(tmp_path)] == ["ISIC_0000001", "ISIC_12345678"]
    assert len(find_pairs(tmp_path, "test")) == 3
    (masks / "ISIC_12345678_Segmentation.png").rename(masks / "ISIC_12345679_Segmentation.png")
    with pytest.raises(DataError, match=r"ISIC_12345678\.jpg: has no mask"):
        find_pairs(tmp_path)


def test_superpixels_beside_photographs_are_no_images(tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    write_pair(images, masks, "ISIC_0000001")
    for folder in (images, masks, images / "spare"):
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (8, 6)).save(folder / "ISIC_0000001_superpixels.png")
    assert [p.image.name for p in find_pairs(tmp_path)] == ["ISIC_0000001.jpg"]


def test_every_format_that_segment_reads_is_one_of_a_data_set(tmp_path: Path) -> None:
    assert IMAGE_SUFFIXES == EXTENSIONS
    images, masks = tmp_path / "images", tmp_path / "masks"
    for extension in EXTENSIONS:
        name = f"from {extension[1:]}"
        write_pair(images, masks, name)
        with Image.open(images / f"{name}.jpg") as image:
            image.load()
        (images / f"{name}.jpg").unlink()
        image.save(images / f"{name}{extension}")
    report = check_pairs(find_pairs(tmp_path))
    assert (report.pairs, report.problems) == (len(EXTENSIONS), [])


def test_all_pairing_problems_are_reported_at_once(tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    for n in range(3):
        write_pair(images, masks, f"ISIC_000000{n}")
    (masks / "ISIC_0000000_Segmentation.png").unlink()
    (images / "ISIC_0000001.jpg").unlink()
    Image.new("RGB", (8, 6)).save(images / "ISIC_0000002.png")
    with pytest.raises(DataError) as caught:
        find_pairs(tmp_path)
    message = str(caught.value)
    assert "ISIC_0000000.jpg: has no mask" in message
    assert "ISIC_0000001_Segmentation.png: has no image" in message
    assert "a second image of ISIC_0000002" in message


@pytest.mark.parametrize("kind", [".webp", ".jfif"])
def test_a_preview_beside_an_image_gives_way(tmp_path: Path, kind: str) -> None:
    """Files of these kinds did not count at all until 28 November 2026."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    write_pair(images, masks, "a")
    Image.new("RGB", (4, 3)).save(images / f"a{kind}", format="WEBP" if kind == ".webp" else "JPEG")
    assert [pair.image.name for pair in find_pairs(tmp_path)] == ["a.jpg"]
    (images / "a.jpg").unlink()
    assert [pair.image.name for pair in find_pairs(tmp_path)] == [f"a{kind}"]


def test_images_in_subfolders_are_a_problem_and_those_of_hidden_ones_are_not(tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    write_pair(images, masks, "a")
    for name in (".cache", "__MACOSX", ".isicrt-1/old", "notes/.thumbs"):
        write_pair(images / name, masks / name, "b")
    (images / "notes" / "b.txt").touch()
    write_pair(images / "@eaDir" / "a.jpg", masks, "b")
    (masks / "b_Segmentation.png").unlink()
    for folder, mark in (("predicted", ".isicrt-journal.jsonl"), ("notes/drawn", ".isicrt-overlays")):
        write_pair(images / folder, images / folder, "a")  # isicrt's own, which may lie among images
        (images / folder / mark).touch()
    assert [pair.id for pair in find_pairs(tmp_path)] == ["a"]
    write_pair(images / "part 1", masks / "part 1" / "deep", "c")
    with pytest.raises(DataError) as caught:
        find_pairs(tmp_path)
    lines = [
        f"  {f / 'part 1'}: holds images and is not read: move its files up, or elsewhere" for f in (images, masks)
    ]
    assert str(caught.value).splitlines()[1:] == lines
    pairs, report = survey([tmp_path])
    assert (len(pairs), len(report.problems)) == (1, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: None, "not a data set. Expected images/ and masks/"),
        (lambda d: [(d / n).mkdir() for n in ("images", "masks")], "holds no image"),
    ],
)
def test_what_is_no_data_set(tmp_path: Path, make, message: str) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        find_pairs(tmp_path)


def test_pairing_and_decoding_problems_are_reported_together(tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    for n in range(3):
        write_pair(images, masks, f"ISIC_000000{n}")
    (masks / "ISIC_0000000_Segmentation.png").unlink()
    (masks / "ISIC_0000001_Segmentation.png").write_text("no image")
    with pytest.raises(DataError) as caught:
        checked_pairs([tmp_path])
    assert "ISIC_0000000.jpg: has no mask" in str(caught.value)
    assert "ISIC_0000001_Segmentation.png: cannot be decoded" in str(caught.value)


def test_hash_follows_the_contents_and_not_the_place(tmp_path: Path) -> None:
    for root in ("a", "b"):
        write_pair(tmp_path / root / "images", tmp_path / root / "masks", "ISIC_0000001")
    a, b = (check_pairs(find_pairs(tmp_path / root)).sha256 for root in ("a", "b"))
    assert a == b
    write_pair(tmp_path / "b" / "images", tmp_path / "b" / "masks", "ISIC_0000001", values=(255,))
    assert check_pairs(find_pairs(tmp_path / "b")).sha256 != a


def test_several_data_sets_are_one_and_share_no_id(tmp_path: Path) -> None:
    for root, name in (("a", "ISIC_0000002"), ("b", "ISIC_0000001")):
        write_pair(tmp_path / root / "images", tmp_path / root / "masks", name)
    pairs, report = checked_pairs([tmp_path / "a", tmp_path / "b"])
    assert [p.id for p in pairs] == ["ISIC_0000001", "ISIC_0000002"]
    assert report.sha256 == checked_pairs([tmp_path / "b", tmp_path / "a"])[1].sha256
    with pytest.raises(DataError, match="ISIC_0000002 is also"):
        checked_pairs([tmp_path / "a", tmp_path / "a"])


def test_names_that_are_no_utf8_have_a_hash_and_a_fold(tmp_path: Path) -> None:
    for name in ("a", os.fsdecode(b"l\xe9sion")):
        write_pair(tmp_path / "images", tmp_path / "masks", name)
    pairs, report = checked_pairs([tmp_path])
    digest = hashlib.sha256()
    for name, pair in zip((b"a", b"l\xe9sion"), pairs, strict=True):
        parts = [hashlib.sha256(path.read_bytes()).digest() for path in (pair.image, pair.mask)]
        digest.update(b"".join([name, *parts]))
    assert report.sha256 == digest.hexdigest()
    many = [Pair(os.fsdecode(b"l\xe9sion %d" % n), Path("i"), Path("m")) for n in range(20)]
    assert sum(len(split_fold(many, 3, fold)[1]) for fold in range(3)) == 20


def test_the_same_data_are_known_by_their_hash_before_0_2_and_without_their_groups(tmp_path: Path) -> None:
    """When names were as the file system has them, and training took the test images and knew no groups."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    names = ["La\u0308sion", "ISIC_0000012", "ISIC_0000001", "ISIC_0011082"]
    for n, name in enumerate(names):
        write_pair(images, masks, name, size=(8 + n, 6))

    def sha256(*ids: str) -> str:
        digest = hashlib.sha256()
        for id in sorted(ids):
            file = unicodedata.normalize("NFD", id)
            files = (images / f"{file}.jpg", masks / f"{file}_Segmentation.png")
            digest.update(b"".join([id.encode(), *(hashlib.sha256(path.read_bytes()).digest() for path in files)]))
        return digest.hexdigest()

    composed, apart = "L\xe4sion", "La\u0308sion"
    report = survey([tmp_path])[1]
    assert (report.sha256, report.left_out) == (sha256("ISIC_0000001", composed), 2)
    then = {alias.sha256: (alias.same_folds, alias.earlier) for alias in report.also_known_as}
    both = {sha256("ISIC_0000001", "ISIC_0000012", apart): (False, True), sha256("ISIC_0000001", apart): (False, True)}
    assert then == {**both, sha256("ISIC_0000001", "ISIC_0000012", composed): (True, True)}
    (tmp_path / "groups.csv").write_text("image,group\nISIC_0000001,p1\nISIC_0000012,p1\n")
    grouped = survey([tmp_path])[1]
    assert grouped.sha256 not in {report.sha256, *then}
    assert {alias.sha256: (alias.same_folds, alias.earlier) for alias in grouped.also_known_as} == {
        **dict.fromkeys(then, (False, True)),
        report.sha256: (False, False),
    }
    because = {alias.sha256: alias.because for alias in grouped.also_known_as}
    assert because[report.sha256] == "no groups.csv"
    assert because[sha256("ISIC_0000001", "ISIC_0000012", composed)] == (
        "test images of ISIC 2016 among them, which isicrt leaves out since version 0.2 and no groups.csv"
    )


def test_the_real_training_set(real_data: Path) -> None:
    pairs, report = checked_pairs([real_data / "isic2016"], "train")
    assert len(pairs) == report.pairs == 786
    assert (report.left_out, report.without_lesion) == (20, ())
    assert not {p.id for p in pairs} & set(LEFT_OUT)
