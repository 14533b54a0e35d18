"""What a model is measured, compared or calibrated on: what is refused, and what is said."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    ],
)
def test_ground_truth_is_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    _touch(tmp_path, *names)
    with pytest.raises(DataError, match=f"{message}.*name the folder of the photographs"):
        find_photographs(tmp_path, print)


@pytest.mark.parametrize("out", [None, Path("out")])
@pytest.mark.parametrize(("other", "named"), [("x.png", "x.jpg and .*x.png"), ("x.png/y.jpg", "x.jpg")])
def test_what_may_be_ground_truth_is_refused_without_options_of_another_command(
    tmp_path: Path, out: Path | None, other: str, named: str
) -> None:
    _touch(tmp_path, "x.jpg", other)
    with pytest.raises(DataError, match=f"{named}: such a name is there twice") as caught:
        find_photographs(tmp_path, print, out=out)
    assert "--" not in str(caught.value)


def test_what_is_not_taken_is_said(tmp_path: Path) -> None:
    _touch(tmp_path, "b.jpg", "a.png", "c.heic", "d.heic")
    said: list[str] = []
    found = find_photographs([tmp_path], said.append)
    assert [path.name for path in found.images] == ["a.png", "b.jpg"]
    assert said == ["passed over 2 files that isicrt does not read: 2 .heic; convert them to .png or .jpg"]
