"""Rendered dermoscopy-like images with their true masks: for tests, examples and a benchmark without a data set.

They are drawn, not photographed: skin tone with uneven light, an irregular pigmented lesion with darker globules,
hair, and sometimes the dark corners of a dermatoscope. Good for speed, geometry and plumbing; a score on them says
nothing about accuracy on patients.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from isicrt.engine.geometry import UInt8Array


def render(seed: int, size: tuple[int, int] = (767, 1022)) -> tuple[UInt8Array, UInt8Array]:
    """Draw one image and its mask.

    Args:
        seed: the same seed and size give the same pixels.
        size: (height, width) in pixels.

    Returns:
        image: uint8, H x W x 3, RGB.
        mask: uint8, H x W, 0 background, 255 lesion.
    """
    rng = np.random.default_rng(seed)
    h, w = size
    short = min(h, w)
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)

    skin = np.array([225, 175, 155], np.float32) + rng.normal(0, 8, 3).astype(np.float32)
    light = 1 + 0.12 * ((x / w - 0.5) * rng.uniform(-1, 1) + (y / h - 0.5) * rng.uniform(-1, 1))
    image = skin * light[..., None]
    image += 2.5 * (_smooth_noise(rng, size, short / 12) + _smooth_noise(rng, size, short / 90))[..., None]

    # An irregular blob: an ellipse whose radius is modulated by a few harmonics.
    cy, cx = h * rng.uniform(0.38, 0.62), w * rng.uniform(0.38, 0.62)
    radius = short * rng.uniform(0.16, 0.34)
    angle = np.arctan2(y - cy, x - cx)
    border = 1 + sum(rng.uniform(0, 0.22) / k * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(1, 7))
    stretch = rng.uniform(0.75, 1.3)
    distance = np.hypot((x - cx) * stretch, (y - cy) / stretch) / (radius * border)
    mask = (distance < 1).astype(np.uint8) * 255

    pigment = np.array([120, 72, 55], np.float32) * rng.uniform(0.6, 1.15)
    soft = 1 / (1 + np.exp(np.minimum((distance - 1) * rng.uniform(12, 30), 60)))
    image += (pigment - image) * (soft * rng.uniform(0.75, 0.95))[..., None]
    texture = 14 * _smooth_noise(rng, size, short / 14) + 7 * _smooth_noise(rng, size, short / 70)
    image -= (soft * texture)[..., None]

    for _ in range(int(rng.integers(0, 12))):
        _draw_hair(rng, image, short)
    if rng.random() < 0.35:
        corner = np.hypot(x - w / 2, y - h / 2) / (max(h, w) * 0.49)
        image *= np.clip((1.06 - corner) * 14, 0.03, 1)[..., None]
    image += rng.normal(0, 2.5, image.shape).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8), mask


def _smooth_noise(rng: np.random.Generator, size: tuple[int, int], sigma: float) -> npt.NDArray[np.float32]:
    """Gaussian noise of unit variance whose structures are about `sigma` pixels wide."""
    h, w = size
    coarse = rng.standard_normal((max(2, int(h / sigma)), max(2, int(w / sigma)))).astype(np.float32)
    smooth = cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC)
    return np.asarray(smooth / (smooth.std() + 1e-6), dtype=np.float32)


def _draw_hair(rng: np.random.Generator, image: npt.NDArray[np.float32], short: int) -> None:
    """A dark curve from one random point to another, drawn in place."""
    h, w = image.shape[:2]
    p = np.stack([rng.uniform(0, w, 3), rng.uniform(0, h, 3)], axis=1)
    t = np.linspace(0, 1, 48)[:, None]
    curve = (1 - t) ** 2 * p[0] + 2 * t * (1 - t) * p[1] + t**2 * p[2]
    colour = [float(c) for c in rng.uniform(25, 70, 3)]
    cv2.polylines(image, [np.round(curve).astype(np.int32)], False, colour, max(1, round(short / 350)), cv2.LINE_AA)
