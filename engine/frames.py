"""What else a file holds beside the image that counts: further pages of a TIFF, further frames of an animation."""

from __future__ import annotations

from contextlib import suppress
from io import BytesIO

from PIL import ImageFile, TiffImagePlugin

from isicrt.engine.jpeg_notes import FIRST

_SUBFILE, _COPY_OR_MASK = 254, 1 | 4
"""A TIFF's tag and its bits for a page that is a smaller copy or the mask of another, such as a preview."""
_MOST_PAGES = 1000


def frames_note(image: ImageFile.ImageFile, data: bytes) -> list[str]:
    """The note on an image that is one of several.

    Args:
        image: just opened. It stays at its first page.
        data: the file.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        count, kind = (_pages(data) if image.is_animated else 1), "pages"
    else:
        count, kind = getattr(image, "n_frames", 1), "frames"
    return [f"{FIRST}{count} {kind}"] if count > 1 else []


def _pages(data: bytes) -> int:
    """Pages of a TIFF, as far as its directories can be read."""
    pages = 0
    with suppress(Exception):  # EOFError at the end, anything on damaged bytes
        image = TiffImagePlugin.TiffImageFile(BytesIO(data))
        for page in range(_MOST_PAGES):
            image.seek(page)
            pages += not image.tag_v2.get(_SUBFILE, 0) & _COPY_OR_MASK
    return pages
