"""The resize rule in both directions."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from isicrt.engine.geometry import cutoff, resize_image, upsample_probability


def test_an_image_of_the_right_size_is_left_alone() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    assert resize_image(image, (4, 6)) is image


def test_reduction_is_antialiased() -> None:
    # A checkerboard of single pixels is grey from afar; interpolating neighbours would leave it black and white.
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = resize_image(np.dstack([board] * 3), (8, 8))
    assert small.shape == (8, 8, 3)
    assert abs(small.astype(int) - 127).max() <= 2


def test_it_is_pillows_bilinear() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    expected = Image.fromarray(image).resize((32, 24), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resize_image(image, (24, 32)), np.asarray(expected))


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
