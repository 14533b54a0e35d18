"""What a model is measured, compared or calibrated on: what is refused, and what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isicrt.engine.errors import DataError
from isicrt.engine.photographs import find_photographs


def _touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("images/a.jpg", "images/b.jpg", "masks/a.png"), "1 of the 3 images .* such as .*a.png"),
        (("a.jpg", "a_segmentation.PNG"), "1 of the 2 images"),
        (("a_superpixels.png",), "1 of the 1 images"),
        (("photographs/a.bmp", "lesions/a_lesion.bmp"), "1 of the 2 images .* such as .*a_lesion.bmp"),
    ],
)
def test_ground_truth_is_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    _touch(tmp_path, *names)
    with pytest.raises(DataError, match=f"{message}.*name the folder of the photographs.*or rename"):
        find_photographs(tmp_path, print)


def test_photographs_may_be_named_as_ground_truth_often_is(tmp_path: Path) -> None:
    photograph = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    for name in ("a_lesion.png", "b_lesion.png", "c_MASK.tif", "d_label1.bmp"):
        Image.fromarray(photograph).save(tmp_path / name)
    assert len(find_photographs(tmp_path, print)) == 4
    assert len(find_photographs([tmp_path / "a_lesion.png", tmp_path / "c_MASK.tif"], print)) == 2
    _touch(tmp_path, "a.jpg")
    with pytest.raises(DataError, match=r"1 of the 5 images have the name of a ground truth, .*a_lesion"):
        find_photographs(tmp_path, print)


@pytest.mark.parametrize("levels", [(0, 255), (0, 0), ((0, 0, 0), (128, 0, 0))])
def test_what_is_named_as_ground_truth_and_has_two_colours_is_refused(tmp_path: Path, levels: tuple[Any, Any]) -> None:
    for name in ("a_mask.png", "b_mask.png"):
        Image.fromarray(np.array([levels, levels], np.uint8)).save(tmp_path / name)
    _touch(tmp_path, "c_lesion.png", "photograph.jpg")  # one that cannot be read is not told here
    with pytest.raises(DataError, match=r"2 of the 4 images have the name of a ground truth, .*a_mask"):
        find_photographs(tmp_path, print)


def test_soft_masks_and_masks_behind_a_photograph_are_told(tmp_path: Path) -> None:
    soft = np.random.default_rng(0).integers(0, 256, (8, 9), dtype=np.uint8)
    for name in ("a_segmentation.png", "b_segmentation.png"):
        Image.fromarray(soft).save(tmp_path / name)
    photograph = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    Image.fromarray(photograph).save(tmp_path / "a_mask.png")
    for name in "bcd":
        Image.fromarray(soft // 128 * 255).save(tmp_path / f"{name}_mask.png")
    with pytest.raises(DataError, match="6 of the 6 images have the name of a ground truth"):
        find_photographs(tmp_path, print)


@pytest.mark.parametrize("out", [None, Path("out")])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("x.png", "x.jpg and .*x.png: such a name is there twice, as if one were the ground truth"),
        ("x.jpeg", "x.jpeg and .*x.jpg: their masks would have one name: rename one"),
        ("x.png/y.jpg", "x.jpg: its mask, x.png, would have the name of a folder that holds images: rename one"),
    ],
)
def test_names_that_clash_are_refused_without_options_of_another_command(
    tmp_path: Path, out: Path | None, other: str, message: str
) -> None:
    _touch(tmp_path, "x.jpg", other)
    with pytest.raises(DataError, match=message) as caught:
        find_photographs(tmp_path, print, out=out)
    assert "--" not in str(caught.value)


def test_what_is_not_taken_is_said(tmp_path: Path) -> None:
    _touch(tmp_path, "b.jpg", "a.png", "c.heic", "d.heic")
    said: list[str] = []
    found = find_photographs([tmp_path], said.append)
    assert [path.name for path in found.images] == ["a.png", "b.jpg"]
    assert said == ["passed over 2 files that isicrt does not read: 2 .heic; convert them to .png or .jpg"]
