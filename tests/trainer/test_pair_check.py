"""What is found in images and masks that pair up: what cannot be used, and what is to be known."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from isicrt.engine.errors import DataError
from isicrt.engine.mask_levels import say_inverted, say_without_lesion
from isicrt.trainer.data_notes import notes_on, say_damaged, say_turned
from isicrt.trainer.dataset import (
    check_pairs,
    checked_pairs,
    find_pairs,
)
from tests.engine.hostile_files import HEIGHT, JPEG, WIDTH
from tests.engine.test_bmp_layout import BLACK_WHITE, INDICES, write_bmp
from tests.trainer.test_dataset import write_pair


def test_check_lists_every_bad_file_and_counts_grey_masks(tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    write_pair(images, masks, "ISIC_0000001")
    write_pair(images, masks, "ISIC_0000002", values=(0, 100, 255))
    write_pair(images, masks, "ISIC_0000003", mask_size=(4, 4))
    write_pair(images, masks, "ISIC_0000004", mode="RGB")
    Image.new("RGB", (8, 6), (255, 0, 0)).save(masks / "ISIC_0000004_Segmentation.png")
    write_pair(images, masks, "ISIC_0000005")
    image = images / "ISIC_0000005.jpg"
    image.write_bytes(image.read_bytes()[:200])
    report = check_pairs(find_pairs(tmp_path))
    assert report.pairs == 5
    assert report.grey_masks == 1
    problems = "\n".join(report.problems)
    assert len(report.problems) == 3
    assert "ISIC_0000003_Segmentation.png: is 4 x 4, its image 8 x 6" in problems
    assert "ISIC_0000004_Segmentation.png: has colours, and a mask is grey: save it as 8-bit grey" in problems
    assert "ISIC_0000005.jpg: cannot be decoded" in problems
    with pytest.raises(DataError, match="3 problems"):
        checked_pairs([tmp_path])


@pytest.mark.parametrize(
    ("values", "mode", "problem"),
    [
        pytest.param((0, 1), "L", "its highest value is 1, and lesion is above 128: multiply by 255", id="0_and_1"),
        pytest.param((0, 128), "L", "its highest value is 128, and lesion is above 128: write lesion as 255", id="128"),
        pytest.param((0, 129), "L", None, id="129"),
        pytest.param((0, 255), "1", None, id="1_bit"),
        pytest.param((0, 0), "1", None, id="1_bit_without_lesion"),
        pytest.param((0, 0), "L", None, id="without_lesion"),
    ],
)
def test_a_mask_that_would_be_read_as_empty_is_a_problem(
    tmp_path: Path, values: tuple[int, int], mode: str, problem: str | None
) -> None:
    write_pair(tmp_path / "images", tmp_path / "masks", "ISIC_0000001")
    write_pair(tmp_path / "images", tmp_path / "masks", "ISIC_0000002", values=values, mode=mode)
    report = check_pairs(find_pairs(tmp_path))
    mask = tmp_path / "masks" / "ISIC_0000002_Segmentation.png"
    assert report.problems == ([] if problem is None else [f"{mask}: {problem}"])
    assert report.without_lesion == ((mask,) if max(values) == 0 else ())
    assert report.grey_masks == (max(values) == 129)


def test_masks_without_lesion_are_counted_and_one_is_named() -> None:
    assert say_without_lesion(["a.png"]) == "1 mask has no lesion: a.png"
    assert say_without_lesion(["a.png", "b.png"]) == "2 masks have no lesion, such as a.png"


@pytest.mark.parametrize(("corners", "masks", "hint"), [(2, 2, False), (3, 3, True), (3, 6, False), (4, 7, True)])
def test_most_masks_with_corners_may_be_inverted(corners: int, masks: int, hint: bool) -> None:
    assert (say_inverted(corners, masks) is not None) == hint


def test_images_that_look_damaged_are_named_and_are_no_problem(tmp_path: Path) -> None:
    write_pair(tmp_path / "images", tmp_path / "masks", "a")
    write_pair(tmp_path / "images", tmp_path / "masks", "b", size=(WIDTH, HEIGHT))
    image = tmp_path / "images" / "b.jpg"
    image.write_bytes(JPEG[: len(JPEG) // 2] + b"\xff\xd9")
    report = check_pairs(find_pairs(tmp_path))
    assert report.problems == []
    assert report.damaged == (image,)
    assert say_damaged(report.damaged) == f"1 image looks damaged, though decoders take it: {image}"
    assert say_damaged(report.damaged * 11).endswith(f"{image}, ...")


def turn(image: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(image) as pixels:
        pixels.save(image, exif=exif)
    return image


@pytest.mark.parametrize("kind", [".jpg", ".png", ".tif", ".webp"])
def test_images_that_viewers_turn_are_named_and_are_no_problem(tmp_path: Path, kind: str) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    for name in "abc":
        write_pair(images, masks, name)
        with Image.open(images / f"{name}.jpg") as image:
            image.save(images / f"{name}{kind}")
    for image in set(images.glob("*.jpg")) if kind != ".jpg" else ():
        image.unlink()
    turn(images / f"a{kind}", 1)
    b, c = turn(images / f"b{kind}", 3), turn(images / f"c{kind}", 6)
    report = check_pairs(find_pairs(tmp_path))
    assert (report.problems, report.turned) == ([], (b, c))
    assert say_turned(report.turned) in notes_on(report)
    assert say_turned((b,)).startswith(f"1 image has an EXIF orientation, such as {b}: ")


def test_a_mask_is_not_turned(tmp_path: Path) -> None:
    """Pillow alone turns a TIFF while it loads it."""
    write_pair(tmp_path / "images", tmp_path / "masks", "a")
    mask = tmp_path / "masks" / "a_Segmentation.png"
    with Image.open(mask) as image:
        image.save(mask.with_suffix(".tif"))
    mask.unlink()
    turn(mask.with_suffix(".tif"), 6)
    assert check_pairs(find_pairs(tmp_path)).problems == []


def test_a_mask_of_a_turned_images_other_size_is_told_why(tmp_path: Path) -> None:
    for name in "ab":
        write_pair(tmp_path / "images", tmp_path / "masks", name, mask_size=(6, 8))
    turn(tmp_path / "images" / "a.jpg", 6)
    a, b = check_pairs(find_pairs(tmp_path)).problems
    assert "is 6 x 8, its image 8 x 6 before its EXIF orientation 6 turns it: draw the mask on" in a
    assert b.endswith("is 6 x 8, its image 8 x 6")


def test_masks_are_read_as_training_reads_them(tmp_path: Path) -> None:
    """Pillow alone would find no lesion in it."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Image.new("RGB", INDICES.shape[::-1]).save(tmp_path / "images" / "IMD002.bmp")
    write_bmp(tmp_path / "masks" / "IMD002_lesion.bmp", INDICES, 8, BLACK_WHITE)
    report = check_pairs(find_pairs(tmp_path))
    assert (report.problems, report.without_lesion, report.grey_masks) == ([], (), 0)
    mask = write_bmp(tmp_path / "masks" / "IMD002_lesion.bmp", INDICES * 255, 8, BLACK_WHITE)
    problem = "cannot be decoded: it uses more than the 2 colours that it has; save it as PNG"
    assert check_pairs(find_pairs(tmp_path)).problems == [f"{mask}: {problem}"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda path: os.mkfifo(path), "is not a regular file", id="fifo"),
        pytest.param(lambda path: path.symlink_to("/dev/zero"), "is not a regular file", id="device"),
        pytest.param(lambda path: path.mkdir(), "is not a regular file", id="folder"),
        pytest.param(lambda path: path.symlink_to("nowhere"), "No such file", id="dangling_link"),
        pytest.param(lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "cannot be decoded", id="postscript"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs there")
def test_what_is_no_image_is_neither_waited_for_nor_run(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    for n in range(3):
        write_pair(tmp_path / "images", tmp_path / "masks", f"ISIC_000000{n}")
    image = tmp_path / "images" / "ISIC_0000001.jpg"
    image.unlink()
    make(image)
    with pytest.raises(DataError, match=rf"1 problem:\n  .*ISIC_0000001\.jpg: .*{message}"):
        checked_pairs([tmp_path])
