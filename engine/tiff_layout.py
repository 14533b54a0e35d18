"""What Pillow takes of a TIFF's layout for something else: planes of more than 8 bits, and what is black and white."""

from __future__ import annotations

from typing import Any

import PIL
from PIL import Image, TiffImagePlugin

_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _PLANES, _EXTRA, _SIGN = 256, 257, 258, 262, 284, 338, 339
_WHITE_IS_ZERO, _SEPARATE, _PREMULTIPLIED, _SIGNED = 0, 2, 1, 2


def mend(image: TiffImagePlugin.TiffImageFile) -> None:
    """Let libtiff read 16-bit planes that are not compressed, of which Pillow takes each byte for a value.

    Args:
        image: just opened.

    Raises:
        ValueError: it would be misread, or its values have no meaning as greys.
    """
    tags = image.tag_v2
    bits = tuple(tags.get(_BITS, (1,)))
    if image.mode == "I" and max(bits) == 16 and _SIGNED in tags.get(_SIGN, ()):
        raise ValueError("signed 16-bit pixels have no defined black and white; save it with unsigned 8 or 16 bits")
    if tags.get(_PLANES) != _SEPARATE or image.info.get("compression") != "raw":
        return
    inverted = image.mode in ("1", "L") and tags.get(_PHOTOMETRIC, 0) == _WHITE_IS_ZERO
    if set(bits) <= {1, 8} and not inverted:
        return
    if set(bits) != {16} or image.mode not in ("RGB", "RGBA") or _PREMULTIPLIED in tags.get(_EXTRA, ()):
        raise ValueError(
            f"uncompressed planes of {max(bits)} bits and mode {image.mode} are not read; save it with a compression, "
            "or with interleaved channels"
        )
    make: Any = getattr(type(image.tile[0]), "_make", tuple)  # a plain tuple before Pillow 11
    name = () if int(PIL.__version__.split(".")[0]) >= 13 else ("raw",)  # of the compression
    box, arguments = (0, 0, tags[_WIDTH], tags[_HEIGHT]), (f"{image.mode};16N", *name, False, tags.offset)
    image.tile, image.use_load_libtiff = [make(("libtiff", box, 0, arguments))], True


def grey_levels(image: Image.Image) -> tuple[int, int]:
    """The values of black and of white in an image of mode ``I;16``."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0, 65535
    white = (1 << min(max(image.tag_v2.get(_BITS, (16,))), 16)) - 1  # 12 bits come as they are
    return (white, 0) if image.tag_v2.get(_PHOTOMETRIC, 0) == _WHITE_IS_ZERO else (0, white)
