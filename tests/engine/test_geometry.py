"""The resize rule in both directions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isicrt.engine import geometry
from isicrt.engine.geometry import cutoff, resize_by_pillow, resize_image, upsample_probability


def test_an_image_of_the_right_size_is_left_alone() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    assert resize_image(image, (4, 6)) is image


def test_reduction_is_antialiased() -> None:
    # A checkerboard of single pixels is grey from afar; interpolating neighbours would leave it black and white.
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = resize_image(np.dstack([board] * 3), (8, 8))
    assert small.shape == (8, 8, 3)
    assert abs(small.astype(int) - 127).max() <= 2


@pytest.mark.parametrize(("before", "after"), [((50, 70), (24, 32)), ((767, 1022), (192, 192)), ((9, 300), (20, 20))])
def test_it_is_pillows_bilinear_but_for_the_last_level(before: tuple[int, int], after: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*before, 3), np.uint8)
    expected = np.asarray(Image.fromarray(image).resize(after[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize_by_pillow(image, after), expected)
    difference = resize_image(image, after).astype(int) - expected
    assert np.abs(difference).max() <= 1
    assert abs(difference.mean()) < 0.25


def test_it_takes_pillow_where_there_is_nothing_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    monkeypatch.setattr(geometry, "cykooz_resizer", None)
    np.testing.assert_array_equal(resize_image(image, (24, 32)), resize_by_pillow(image, (24, 32)))


def test_a_view_with_other_strides_is_resized_as_it_looks() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    for view in (image[::-1], image[:, ::-1], image[:, :, ::-1], image.transpose(1, 0, 2)):
        np.testing.assert_array_equal(resize_image(view, (24, 32)), resize_image(view.copy(), (24, 32)))


def test_upsampling_has_half_pixel_centres() -> None:
    probability = np.array([[0, 200]], np.uint8)
    assert upsample_probability(probability, (1, 4)).tolist() == [[0, 50, 150, 200]]


@pytest.mark.parametrize("size", [(2, 2), (5, 7), (1, 1)])
def test_upsampling_a_constant_is_constant(size: tuple[int, int]) -> None:
    result = upsample_probability(np.full((2, 2), 77, np.uint8), size)
    assert result.shape == size
    assert (result == 77).all()


@pytest.mark.parametrize(
    ("threshold", "level"), [(0.5, 128), (0.001, 1), (0.999, 255), (0.2, 52), (0.4, 103), (127 / 255, 128)]
)
def test_cutoff_is_the_first_level_above_the_threshold(threshold: float, level: int) -> None:
    assert cutoff(threshold) == level
    assert level > threshold * 255 >= level - 1


def test_a_resizer_whose_library_does_not_load_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "cykooz_resizer.py").write_text("raise OSError('cannot open shared object file')")
    code = "from isicrt.engine import geometry; assert geometry.cykooz_resizer is None"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, check=True)
