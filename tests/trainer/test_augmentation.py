"""The maps of the geometric augmentation, and the artefacts that are drawn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from isicrt.trainer.artefacts import render_overlay
from isicrt.trainer.augmentation import draw_matrices
from isicrt.trainer.recipe import ARTEFACTS, Augmentation

STILL = Augmentation(min_zoom=1, max_aspect=1, flip=False, rotate_probability=0)
CORNERS = np.array([[0, 0, 1], [64, 0, 1], [0, 64, 1], [64, 64, 1]], float).T  # of the augmented image


def draw(count: int = 200, **changes: object) -> np.ndarray:
    """Where the corners of a 64 px image come from in one of 100 px: count x 2 (x, y) x 4."""
    matrices = draw_matrices(np.random.default_rng(0), dataclasses.replace(STILL, **changes), 100, 64, count)
    assert matrices.dtype == np.float32
    return matrices @ CORNERS


def test_no_augmentation_is_a_resize() -> None:
    np.testing.assert_allclose(draw(1)[0], [[0, 100, 0, 100], [0, 0, 100, 100]], atol=1e-4)


def test_a_window_below_one_lies_inside_the_image() -> None:
    corners = draw(min_zoom=0.5, max_aspect=2.0)
    assert corners.min() >= -1e-4
    assert corners.max() <= 100 + 1e-4
    sides = np.ptp(corners, axis=2)
    assert sides.min() >= 25 - 1e-3  # half of the side, and half of that by the aspect jitter
    assert np.ptp(sides[:, 0] / sides[:, 1]) > 0.5


def test_a_window_above_one_holds_the_image() -> None:
    corners = draw(min_zoom=0.999, max_zoom=1.5)
    assert corners[:, :, 0].max() <= 0.1
    assert corners[:, :, 3].min() >= 99.9
    assert np.ptp(corners, axis=2).max() > 140


def test_flips_come_in_all_four_ways() -> None:
    first = np.round(draw(flip=True)[:, :, 0]).astype(int)
    assert {tuple(corner) for corner in first} == {(0, 0), (0, 100), (100, 0), (100, 100)}


@pytest.mark.parametrize("angle", [30.0, 180.0])
def test_rotation_keeps_centre_and_lengths(angle: float) -> None:
    corners = draw(rotate_probability=1.0, max_angle=angle)
    np.testing.assert_allclose(corners.mean(axis=2), 50, atol=1e-3)
    edges = np.linalg.norm(corners[:, :, 1] - corners[:, :, 0], axis=1)
    np.testing.assert_allclose(edges, 100, rtol=1e-4)
    turned = np.rad2deg(np.arctan2(*(corners[:, :, 1] - corners[:, :, 0]).T[::-1]))
    assert 0.8 * angle < np.abs(turned).max() <= angle + 0.01


def test_shear_keeps_the_area() -> None:
    corners = draw(max_shear=20.0)
    across, down = corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0]
    np.testing.assert_allclose(across[:, 0] * down[:, 1] - across[:, 1] * down[:, 0], 100**2, rtol=1e-3)
    assert np.abs(down[:, 0]).max() > 20


@pytest.mark.parametrize("kind", ARTEFACTS)
def test_each_artefact_draws_something_and_only_when_asked(kind: str) -> None:
    covering = {"sticker", "vignette", "frame"}
    hidden = 0
    for seed in range(8):
        overlay = render_overlay(np.random.default_rng(seed), 96, **{kind: 1.0})
        assert overlay.colour.shape == (96, 96, 3)
        assert overlay.alpha.shape == overlay.visible.shape == (96, 96, 1)
        assert overlay.alpha.max() > 0
        # There is skin left to look at.
        assert (overlay.alpha < 128).mean() > 0.2
        hidden += int((overlay.visible == 0).sum())
        nothing = render_overlay(np.random.default_rng(seed), 96, **{kind: 0.0})
        assert nothing.alpha.max() == 0
        assert nothing.visible.min() == 1
    assert (hidden > 0) == (kind in covering)


def test_an_overlay_is_its_seeds() -> None:
    kinds = dict.fromkeys(ARTEFACTS, 0.7)
    first, again, other = (render_overlay(np.random.default_rng(s), 64, **kinds) for s in (3, 3, 4))
    np.testing.assert_array_equal(first.colour, again.colour)
    assert not np.array_equal(first.alpha, other.alpha)
