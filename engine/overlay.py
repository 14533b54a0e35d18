"""The outline of a mask drawn on its image: for eyes, to see at a glance whether a run went well."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from isal import isal_zlib

from isicrt.engine.errors import ImageError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.images import decode_image, read_mask
from isicrt.engine.masks import Mask
from isicrt.engine.output import OVERLAYS_NAME, OutputError, OutputFolder, make_folder, output_error
from isicrt.engine.overlay_label import add_label, label_of
from isicrt.engine.pixel_budget import BUDGET
from isicrt.engine.routes import Decode
from isicrt.engine.sources import Job, overlay_path

MAX_SIDE = 1024
COLOUR = (0, 255, 160)
"""RGB; no skin and no pigment has it."""
_MARK = b"isicrt drew the images in this folder and leaves it out when it looks for photographs.\n"


class OverlayError(ImageError):
    """An overlay that cannot be written. It costs its image, whose mask is there and stays."""


class OverlayFolder:
    """Writes overlays into a folder, laid out as the masks are. Call it from any thread.

    Args:
        out: the folder of the masks.
        folder: the folder of the overlays. It is made, and marked as one that is not to be searched for images.
        run: 12 hexadecimal digits, see `OutputFolder`; None for random ones.
        decode: reads an image once more, at the overlay's size. The run's own, or else what the run put up with (an
            image above the usual limit) fails here, and what it kept away from this process comes in.

    Raises:
        OutputError: the folder cannot be made or written.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        folder: str | os.PathLike[str],
        *,
        run: str | None = None,
        decode: Decode = decode_image,
    ) -> None:
        self._out = Path(out)
        self._decode = decode
        self._folder = Path(folder)
        make_folder(self._folder)
        self._output = OutputFolder(self._folder, run or secrets.token_hex(6))
        mark = self._folder / OVERLAYS_NAME
        if not os.path.lexists(mark):
            try:
                self._output.write(mark, _MARK)
            except OSError as error:
                raise output_error(self._folder, error) from error

    def __call__(self, job: Job, mask: Mask) -> None:
        """Write the overlay of one job as a JPEG of at most `MAX_SIDE` pixels a side, with its label.

        Args:
            job: of the mask, which is written.
            mask: bool, H x W, at the image's own size.

        Raises:
            OverlayError: the overlay cannot be written.
            ImageError: the image cannot be decoded (any more).
            OutputError: no overlay can be written.
        """
        scale = min(1.0, MAX_SIDE / max(mask.shape))
        size = max(1, round(mask.shape[0] * scale)), max(1, round(mask.shape[1] * scale))
        image = self._decode(job.image, size)
        jpeg = simplejpeg.encode_jpeg(draw_outline(image.pixels, mask), quality=90)
        path = overlay_path(job.mask, self._out, self._folder)
        try:
            if image.stamp is not None:
                jpeg = add_label(jpeg, label_of(image.stamp.crc, isal_zlib.crc32(job.mask.read_bytes())))
            self._output.write(path, jpeg)
        except OutputError:
            raise
        except OSError as error:
            raise OverlayError(f"{path}: the overlay cannot be written: {error.strerror or error}") from error


def draw_outline(image: UInt8Array, mask: Mask) -> UInt8Array:
    """A copy of an image with the outline of a mask.

    Args:
        image: uint8, h x w x 3, RGB.
        mask: bool, H x W; it is brought to the image's size.
    """
    height, width = image.shape[:2]
    small = cv2.resize(mask.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    outline, _ = cv2.findContours(small, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    drawn = np.array(image, order="C")
    cv2.drawContours(drawn, outline, -1, COLOUR, max(1, round(max(height, width) / 400)), cv2.LINE_AA)
    return drawn


def redraw(draw: Callable[[Job, Mask], None], job: Job, native_size: tuple[int, int]) -> bool:
    """Draw the overlay of a mask that is there.

    Args:
        draw: as an `OverlayFolder`.
        job: of the mask.
        native_size: (height, width) of image and mask.

    Returns:
        False where image or mask cannot be read: who makes the mask again finds out why, and says it.

    Raises:
        OverlayError: the overlay cannot be written, which no other mask would mend.
        OutputError: none can be.
    """
    try:
        with BUDGET.admit(native_size[0] * native_size[1]):
            draw(job, read_mask(job.mask))
    except (OutputError, OverlayError):
        raise
    except Exception:
        return False
    return True
