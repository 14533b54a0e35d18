"""What is noted of a file that holds more than the image that counts."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from isicrt.benchmarks.rendered import render
from isicrt.engine.images import decode_image

SIZE = (32, 48)
IMAGE = Image.fromarray(render(3, SIZE)[0])


def _tiff(*subfiles: int) -> bytes:
    """Pages of these kinds (tag 254)."""
    file = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(file, new=True) as pages:
        for kind in subfiles:
            IMAGE.save(pages, format="TIFF", tiffinfo={254: kind})
            pages.newFrame()
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "note"),
    [
        pytest.param(_tiff(0), None, id="one"),
        pytest.param(_tiff(0, 0, 2), "first of 3 pages", id="three"),
        pytest.param(_tiff(0, 1, 4), None, id="a_preview_and_a_mask"),
        pytest.param(_tiff(0, 0)[: len(_tiff(0)) + 20], None, id="cut_directory"),
    ],
)
def test_pages_of_a_tiff(tmp_path: Path, data: bytes, note: str | None) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    decoded = decode_image(path, SIZE)
    assert decoded.note == note
    np.testing.assert_array_equal(decoded.pixels, np.asarray(IMAGE))


def test_a_tiff_whose_directories_go_round(tmp_path: Path) -> None:
    data = bytearray(_tiff(0, 0))
    first = int.from_bytes(data[4:8], "little")
    entries = int.from_bytes(data[first : first + 2], "little")
    behind = first + 2 + 12 * entries
    data[behind : behind + 4] = data[4:8]
    (tmp_path / "a.tif").write_bytes(data)
    assert decode_image(tmp_path / "a.tif", SIZE).note is None
