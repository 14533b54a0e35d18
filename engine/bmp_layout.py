"""What Pillow takes of a BMP's layout for something else: bytes, or halves of them, for bits where it has two greys."""

from __future__ import annotations

from typing import Any

from PIL import BmpImagePlugin, ImagePalette

_HEADER_AT, _OS2 = 14, 12
"""Where the second header begins; the length of that of OS/2."""
_INDICES = {1: "P;1", 4: "P;4", 8: "P"}
"""Pillow's names for pixels of so many bits that are numbers of colours."""


def mend(image: BmpImagePlugin.BmpImageFile, data: bytes) -> None:
    """Let the pixels be numbers of the file's colours where Pillow leaves the palette away although they have another
    size than it takes them for: two colours, black and white, are 1 bit for it, and 0, 1, 2, ... 8 bits.

    Args:
        image: just opened.
        data: the file.
    """
    size = int.from_bytes(data[_HEADER_AT : _HEADER_AT + 4], "little")
    at = _HEADER_AT + (10 if size == _OS2 else 14)
    bits = int.from_bytes(data[at : at + 2], "little")
    # A run-length decoder has indices anyway, and no unpacker to bits.
    if bits not in _INDICES or image.mode == {1: "1", 8: "L"}.get(bits) or image.mode not in ("1", "L"):
        return
    entry = 3 if size == _OS2 else 4
    used = 0 if size == _OS2 else int.from_bytes(data[46:50], "little")
    start = _HEADER_AT + size
    colours = data[start : start + entry * min(used or 1 << bits, 1 << bits)]
    image._mode = "P"
    image.palette = ImagePalette.raw("BGR" if entry == 3 else "BGRX", colours)
    tile: tuple[Any, ...] = image.tile[0]
    if tile[0] == "raw":
        make: Any = getattr(type(tile), "_make", tuple)  # a plain tuple before Pillow 11
        image.tile = [make((tile[0], tile[1], tile[2], (_INDICES[bits], *tile[3][1:])))]


def load(image: BmpImagePlugin.BmpImageFile) -> None:
    """Load the pixels, once.

    Raises:
        ValueError: they are numbers of colours that the file does not have, such as 255 for white where it has two.
            Decoders make them black, and every lesion of a mask would be lost.
    """
    palette: Any = image.palette if image.mode == "P" else None
    # Loading turns it into 256 colours.
    colours = 256 if palette is None else len(palette.palette) // len(palette.rawmode)
    image.load()
    highest: Any = image.getextrema()[1] if palette is not None else 0
    if highest >= colours:
        raise ValueError(f"it uses more than the {colours} colours that it has; save it as PNG")
