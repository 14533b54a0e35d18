"""The grey levels of a true mask, in whatever mode a tool saved it: RGB, with a palette, opaque alpha or 16 bits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from isicrt.engine.errors import DataError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.scores import FOREGROUND_ABOVE
from isicrt.engine.tiff_layout import grey_levels

_OPAQUE = 255


def mask_levels(path: str | os.PathLike[str], image: Image.Image, greys: tuple[int, int] | None = None) -> UInt8Array:
    """Levels of a mask: uint8, H x W, 0 to 255.

    Args:
        path: of the mask, to name it.
        image: it, loaded.
        greys: the values of black and of white where it has 16 bits; as its file says, where it is as it was opened.

    Raises:
        DataError: its levels are not plain: colours, transparency, or a mode without a defined white; or it has 16 bits
            and what `check_highest` refuses.
    """
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    # Before Pillow 11 a 16-bit greyscale PNG has mode I.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        black, white = greys or grey_levels(image)
        deep, most = abs(np.asarray(image).astype(np.int32) - black), abs(white - black)
        _check_deep(path, int(deep.max(initial=0)), most)
        # Upwards, so that the same levels are above 128 of 255, and classes such as 1 do not become "no lesion".
        return ((deep * 255 + most - 1) // most).astype(np.uint8)
    if image.mode not in ("P", "PA", "LA", "RGB", "RGBA"):
        raise _refused(path, f"has mode {image.mode}")
    pixels: UInt8Array = np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
    if (pixels[..., 3:] != _OPAQUE).any():
        raise _refused(path, "is partly transparent")
    if (pixels[..., :2] != pixels[..., 1:3]).any():
        raise _refused(path, "has colours")
    return np.ascontiguousarray(pixels[..., 0])


def check_highest(path: str | os.PathLike[str], highest: int) -> None:
    """Refuse a mask that is not 0 throughout and yet has nothing above 128. numpy, nnU-Net and tools for labels write
    classes: what they call 1 would be taken for "no lesion", and every lesion would be lost.

    Args:
        path: of the mask, to name it.
        highest: value in it, of 255.

    Raises:
        DataError: it is such a one.
    """
    if 0 < highest <= FOREGROUND_ABOVE:
        remedy = "multiply by 255" if highest == 1 else "write lesion as 255"
        raise DataError(
            f"{os.fspath(path)}: its highest value is {highest}, and lesion is above {FOREGROUND_ABOVE}: {remedy}"
        )


def _check_deep(path: str | os.PathLike[str], highest: int, most: int) -> None:
    """`check_highest` of more than 8 bits, in the file's own numbers: 255 of 65535 is 1 of 255."""
    if 0 < highest * 255 <= FOREGROUND_ABOVE * most:
        raise DataError(
            f"{os.fspath(path)}: its highest value is {highest} of {most}, and lesion is above "
            f"{FOREGROUND_ABOVE * most // 255}: save it with 8 bits, lesion 255, the rest 0"
        )


def has_corners(lesion: npt.NDArray[np.bool_]) -> bool:
    """Whether all four corners of a mask are lesion: as good as never, unless lesion is black in it."""
    return bool(lesion[:: max(lesion.shape[0] - 1, 1), :: max(lesion.shape[1] - 1, 1)].all())


def say_without_lesion(masks: Sequence[Path | str]) -> str:
    """Masks without any lesion, at least one, in one line for people: how many they are, and one of them."""
    if len(masks) == 1:
        return f"1 mask has no lesion: {masks[0]}"
    return f"{len(masks)} masks have no lesion, such as {masks[0]}"


def say_inverted(corners: int, masks: int) -> str | None:
    """A hint for people where most of some masks are lesion in all four `corners`; None where they are not."""
    if corners < 3 or 2 * corners <= masks:
        return None
    return f"{corners} of {masks} masks are lesion in all four corners: they may be inverted (lesion is white, 255)"


def _refused(path: str | os.PathLike[str], why: str) -> DataError:
    return DataError(f"{os.fspath(path)}: {why}, and a mask is grey: save it as 8-bit grey, lesion 255, the rest 0")
