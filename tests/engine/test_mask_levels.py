"""True masks are read in every mode that says plainly where the lesion is, and in no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isicrt.engine.errors import DataError
from isicrt.engine.images import read_mask
from isicrt.engine.mask_levels import has_corners
from isicrt.trainer.dataset import Pair, check_pairs

LEVELS = np.array([[0, 255], [255, 0]], np.uint8)
MASK = Image.fromarray(LEVELS)


def _palette(*colours: int, transparent: int | None = None) -> Image.Image:
    image = Image.fromarray(LEVELS // 255)
    image.putpalette(colours)
    if transparent is not None:
        image.info["transparency"] = transparent
    return image


def _deep(white: int) -> Image.Image:
    return Image.fromarray(LEVELS.astype(np.uint16) // 255 * np.uint16(white))


def _alpha(level: int) -> Image.Image:
    image = MASK.convert("RGBA")
    image.putalpha(Image.fromarray(np.array([[255, level], [255, 255]], np.uint8)))
    return image


def _check(path: Path) -> list[str]:
    """What `isicrt data check` finds wrong with a mask."""
    image = path.with_name("image.png")
    Image.new("RGB", (2, 2)).save(image)
    return check_pairs([Pair("a", image, path)]).problems


@pytest.mark.parametrize(
    ("image", "name"),
    [
        *((MASK.convert(mode), "m.png") for mode in ("1", "L", "P", "RGB", "RGBA", "LA")),
        *((MASK.convert(mode), "m.tif") for mode in ("1", "P", "RGB", "RGBA", "LA")),
        (MASK.convert("RGB"), "m.bmp"),
        (_palette(0, 0, 0, 255, 255, 255), "m.png"),
        (_deep(65535), "m.png"),
        (_deep(65535), "m.tif"),
        (_deep(32897), "m.png"),  # 128.004 of 255
        (_alpha(255), "m.png"),
    ],
)
def test_plain_masks_are_read(tmp_path: Path, image: Image.Image, name: str) -> None:
    path = tmp_path / name
    image.save(path)
    mask = read_mask(path)
    assert mask.dtype == bool
    assert mask.tolist() == [[False, True], [True, False]]
    assert _check(path) == []


@pytest.mark.parametrize(
    ("image", "name", "message"),
    [
        (_palette(0, 0, 0, 128, 0, 0), "m.png", "has colours, .* save it as 8-bit grey"),
        (Image.new("RGB", (2, 2), (255, 255, 254)), "m.png", "has colours"),
        (_alpha(0), "m.png", "is partly transparent, .* save it as 8-bit grey"),
        (_palette(0, 0, 0, 255, 255, 255, transparent=0), "m.png", "is partly transparent"),
        (MASK.convert("CMYK"), "m.tif", "has mode CMYK"),
        (MASK.convert("F"), "m.tif", "has mode F"),
        (
            _deep(1),
            "m.png",
            "its highest value is 1 of 65535, and lesion is above 32896: save it with 8 bits, lesion 255",
        ),
        (_deep(255), "m.tif", "its highest value is 255 of 65535"),
        (_deep(32896), "m.png", "its highest value is 32896 of 65535"),
    ],
)
def test_others_are_refused(tmp_path: Path, image: Image.Image, name: str, message: str) -> None:
    path = tmp_path / name
    image.save(path)
    (problem,) = _check(path)
    with pytest.raises(DataError, match=rf"{name}: {message}") as caught:
        read_mask(path)
    assert str(caught.value) == problem


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 1), (2, 2), (3, 4)])
def test_corners(shape: tuple[int, int]) -> None:
    mask = np.zeros(shape, bool)
    for y, x in ((0, 0), (0, -1), (-1, 0)):
        mask[y, x] = True
    assert has_corners(mask) == (1 in shape)
    mask[-1, -1] = True
    assert has_corners(mask)
