"""Pairs of images side by side, the second turned and enlarged onto the first: a person has the last word on twins."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from isicrt.engine.geometry import UInt8Array
from isicrt.engine.images import read_image
from isicrt.trainer.duplicates import Twin
from isicrt.trainer.registration import SHORT_SIDE, reduce

_CELL = 200  # pixels
_CAPTION = 16
_COLUMNS = 4
MAX_PAIRS = 400
"""On one sheet: 100 rows, 21,600 pixels."""


def draw_sheet(twins: Sequence[Twin]) -> UInt8Array:
    """Draw the first `MAX_PAIRS` pairs, four a row: a, then b as a's camera would have seen it.

    Args:
        twins: at least one.

    Returns:
        uint8, H x W x 3, RGB. Black in b's picture is what b does not show.

    Raises:
        ImageError: a file cannot be decoded any more.
    """
    cells = [_cell(twin) for twin in twins[:MAX_PAIRS]]
    cells += [np.zeros_like(cells[0])] * (-len(cells) % min(_COLUMNS, len(cells)))
    columns = min(_COLUMNS, len(cells))
    return np.vstack([np.hstack(cells[row : row + columns]) for row in range(0, len(cells), columns)])


def _cell(twin: Twin) -> UInt8Array:
    a, b = reduce(read_image(twin.a)), reduce(read_image(twin.b))
    scale, shift = twin.registration.scale, twin.registration.shift
    matrix = np.array([[scale.real, -scale.imag, shift.real], [scale.imag, scale.real, shift.imag]])
    size = (a.shape[1], a.shape[0])
    registered = cv2.warpAffine(b, matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    cell = np.zeros((_CELL + _CAPTION, 2 * _CELL + 8, 3), np.uint8)
    for column, picture in enumerate((a, np.asarray(registered, np.uint8))):
        middle = [(side - SHORT_SIDE) // 2 for side in picture.shape[:2]]
        square = picture[middle[0] : middle[0] + SHORT_SIDE, middle[1] : middle[1] + SHORT_SIDE]
        begin = column * _CELL + 2
        cell[_CAPTION:, begin : begin + _CELL] = cv2.resize(square, (_CELL, _CELL), interpolation=cv2.INTER_AREA)
    caption = f"{twin.a.stem}  {twin.b.stem}  {twin.inliers}  {twin.correlation:.2f}"
    caption = "".join(c if c.isprintable() else "?" for c in caption)  # OpenCV crashes on a name that is no UTF-8
    cv2.putText(cell, caption, (3, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
    return cell
