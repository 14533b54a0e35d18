"""Rendered artefacts of dermoscopy: hair, rulers, ink, stickers, gel bubbles, dark corners, plain borders, to be laid
over images.

The training images are clean square crops; a user's photographs are frames with all of these. Drawing them is an old
remedy (Jahanifar et al. 2018, arXiv:1809.02568, section on augmentation).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from isicrt.engine.geometry import UInt8Array

_SHIFT = 4  # OpenCV's fixed point: sixteenths of a pixel


@dataclass(frozen=True)
class Overlay:
    """What is laid over one image of `size` x `size` pixels."""

    colour: UInt8Array
    """size x size x 3, RGB."""
    alpha: UInt8Array
    """size x size x 1, 0 (the image) to 255 (the overlay)."""
    visible: UInt8Array
    """size x size x 1: 0 where the skin cannot be seen, so that nobody would have drawn a lesion there; else 1."""


def render_overlay(
    rng: np.random.Generator,
    size: int,
    *,
    hair: float = 0.0,
    ruler: float = 0.0,
    ink: float = 0.0,
    sticker: float = 0.0,
    bubbles: float = 0.0,
    vignette: float = 0.0,
    frame: float = 0.0,
) -> Overlay:
    """Draw each kind of artefact with its probability, from 0 to 1; positions, colours and numbers are random."""
    canvas = Overlay(
        np.zeros((size, size, 3), np.uint8), np.zeros((size, size, 1), np.uint8), np.ones((size, size, 1), np.uint8)
    )
    for probability, draw in (
        (bubbles, _bubbles),
        (ink, _ink),
        (sticker, _sticker),
        (ruler, _ruler),
        (hair, _hair),
        (vignette, _vignette),
    ):
        if rng.random() < probability:
            draw(rng, canvas, size)
    # Nothing is drawn at random where there are no frames: a run that began before there were any can be resumed.
    if frame and rng.random() < frame:
        _frame(rng, canvas, size)
    return canvas


def _hair(rng: np.random.Generator, canvas: Overlay, size: int) -> None:
    """Thin curves of one colour, most of them in one direction."""
    base = rng.uniform(10, 80) if rng.random() < 0.85 else rng.uniform(150, 220)
    shade = np.clip(base + np.array([12, 4, -6]) * rng.uniform(0, 2), 0, 255)
    lie, spread = rng.uniform(0, np.pi), rng.uniform(0.1, 0.8)
    thin = size / 192
    for _ in range(rng.integers(2, 26)):
        angle = lie + rng.normal(0, spread)
        length = rng.uniform(0.2, 1.1) * size
        start = rng.uniform(-0.1, 1.1, 2) * size
        points = _curve(rng, start, angle, length, bend=0.25)
        _line(canvas, points, shade, max(1, round(rng.uniform(0.5, 2.2) * thin)), rng.uniform(0.45, 1.0))


def _ruler(rng: np.random.Generator, canvas: Overlay, size: int) -> None:
    """Ticks at equal distances along a line near an edge, every fifth or tenth longer, perhaps on a pale strip."""
    angle = rng.choice([0, np.pi / 2, np.pi, 3 * np.pi / 2]) + rng.normal(0, 0.12)
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    middle = np.array([size / 2, size / 2]) + across * rng.uniform(0.25, 0.5) * size
    step = rng.uniform(0.02, 0.07) * size
    long_every = int(rng.choice([5, 10]))
    tick = rng.uniform(0.02, 0.05) * size
    dark = np.full(3, rng.uniform(0, 60))
    if rng.random() < 0.3:
        strip = [middle + along * (e * size) + across * (f * tick) for e, f in ((-1, -1), (1, -1), (1, 9), (-1, 9))]
        _fill(canvas, np.array(strip), np.full(3, rng.uniform(190, 255)), rng.uniform(0.4, 0.9))
    width = max(1, round(rng.uniform(0.6, 1.8) * size / 192))
    strength = rng.uniform(0.5, 1.0)
    if rng.random() < 0.5:
        _line(canvas, np.stack([middle - along * size, middle + along * size]), dark, width, strength)
    for i in range(int(-size / step), int(size / step) + 1):
        foot = middle + along * (i * step)
        high = tick * (2 if i % long_every == 0 else 1)
        _line(canvas, np.stack([foot, foot + across * high]), dark, width, strength)


def _ink(rng: np.random.Generator, canvas: Overlay, size: int) -> None:
    """Pen strokes of a skin marker: violet, blue, green or black."""
    shades = ((90, 50, 150), (40, 70, 160), (60, 110, 110), (40, 40, 50))
    shade = np.clip(np.array(shades[rng.integers(len(shades))]) + rng.normal(0, 20, 3), 0, 255)
    for _ in range(rng.integers(1, 5)):
        start = rng.uniform(0, 1, 2) * size
        points = _curve(rng, start, rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.7) * size, bend=0.4)
        width = max(2, round(rng.uniform(2, 9) * size / 192))
        _line(canvas, points, shade, width, rng.uniform(0.3, 0.85))


def _sticker(rng: np.random.Generator, canvas: Overlay, size: int) -> None:
    """A coloured patch at an edge, as in the photographs of children's naevi."""
    shades = ((40, 90, 190), (230, 200, 60), (70, 160, 90), (200, 60, 60), (240, 150, 70), (250, 245, 240))
    for _ in range(rng.integers(1, 3)):
        shade = np.clip(np.array(shades[rng.integers(len(shades))]) + rng.normal(0, 15, 3), 0, 255)
        angle = rng.uniform(0, 2 * np.pi)
        centre = size * (0.5 + rng.uniform(0.5, 0.72) * np.array([np.cos(angle), np.sin(angle)]))
        axes = rng.uniform(0.1, 0.32, 2) * size
        shape = np.zeros((size, size), np.uint8)
        cv2.ellipse(shape, _fixed(centre), _fixed(axes), rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA, _SHIFT)
        _lay(canvas, shape, shade, 1.0)
        canvas.visible[shape > 127] = 0


def _bubbles(rng: np.random.Generator, canvas: Overlay, size: int) -> None:
    """Bright rings and specular spots of immersion gel."""
    for _ in range(rng.integers(1, 9)):
        centre, radius = rng.uniform(0, 1, 2) * size, rng.uniform(0.01, 0.08) * size
        shape = np.zeros((size, size), np.uint8)
        thickness = -1 if radius < 0.02 * size else max(1, round(rng.uniform(0.5, 2) * size / 192))
        cv2.circle(shape, _fixed(centre), int(radius * 2**_SHIFT), 255, thickness, cv2.LINE_AA, _SHIFT)
        _lay(canvas, shape, np.full(3, rng.uniform(190, 255)), rng.uniform(0.2, 0.8))


def _vignette(rng: np.random.Generator, canvas: Overlay, size: int) -> None:
    """A dermoscope's round field of view: dark outside, with a sharp or a soft edge."""
    centre = size / 2 + rng.normal(0, 0.04, 2) * size
    stretch = rng.uniform(0.75, 1.3)  # the frame is not square, the network's input is
    radius = rng.uniform(0.46, 0.72) * size
    soft = rng.uniform(0.5, 2) if rng.random() < 0.5 else rng.uniform(0.02, 0.25) * size
    axis = np.arange(size, dtype=np.float32) + 0.5
    distance = np.hypot((axis[None, :] - centre[0]) * stretch, (axis[:, None] - centre[1]) / stretch)
    strength = np.clip((distance - radius) / soft, 0, 1) * rng.uniform(0.8, 1.0)
    shape = (strength * 255).astype(np.uint8)
    _lay(canvas, shape, np.full(3, rng.uniform(0, 25)), 1.0)
    canvas.visible[shape > 200] = 0


def _frame(rng: np.random.Generator, canvas: Overlay, size: int) -> None:
    """A plain border of one colour around the photograph, as of a slide, a screenshot or a round field of view in a
    wide frame."""
    kind = rng.random()
    if kind < 0.1:  # round
        axes = rng.uniform(0.32, 0.46) * np.exp(rng.uniform(-0.15, 0.15) * np.array([1, -1])) * size
        centre = size / 2 + rng.normal(0, 0.02, 2) * size
        inside = np.zeros((size, size), np.uint8)
        cv2.ellipse(inside, _fixed(centre), _fixed(axes), 0, 0, 360, 255, -1, cv2.LINE_8, _SHIFT)
        outside = inside == 0
    else:
        margins = np.full(4, rng.uniform(0.02, 0.25)) + rng.uniform(0, 0.03, 4)  # left, top, right, bottom
        if kind < 0.65:  # two sides that face each other, or one
            margins *= np.roll([1, 0, 1, 0] if kind < 0.5 else [1, 0, 0, 0], rng.integers(4))
        left, top, right, bottom = np.round(margins * size).astype(int)
        outside = np.ones((size, size), bool)
        outside[top : size - bottom, left : size - right] = False
    shade = rng.random()
    if shade < 0.55:
        colour = np.full(3, rng.uniform(0, 20))
    elif shade < 0.8:
        colour = np.full(3, rng.uniform(235, 255))
    else:
        colour = rng.uniform(0, 255, 3)
    canvas.colour[outside] = colour.astype(np.uint8)
    canvas.alpha[outside] = 255
    canvas.visible[outside] = 0


def _curve(
    rng: np.random.Generator, start: npt.NDArray[np.float64], angle: float, length: float, bend: float
) -> npt.NDArray[np.float64]:
    """A quadratic Bezier curve as 12 points."""
    end = start + length * np.array([np.cos(angle), np.sin(angle)])
    control = (start + end) / 2 + rng.normal(0, bend, 2) * length
    t = np.linspace(0, 1, 12)[:, None]
    curve: npt.NDArray[np.float64] = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end
    return curve


def _fixed(point: npt.NDArray[np.float64]) -> tuple[int, int]:
    return int(point[0] * 2**_SHIFT), int(point[1] * 2**_SHIFT)


def _line(
    canvas: Overlay,
    points: npt.NDArray[np.float64],
    shade: npt.NDArray[np.float64],
    width: int,
    strength: float,
) -> None:
    fixed = (points * 2**_SHIFT).astype(np.int32)
    level = int(strength * 255)
    # Drawn into colour and alpha at once: a shape of its own for each line would cost as much as the network.
    cv2.polylines(canvas.colour, [fixed], False, shade.tolist(), width + 1, cv2.LINE_8, _SHIFT)
    cv2.polylines(canvas.alpha, [fixed], False, level, width, cv2.LINE_AA, _SHIFT)


def _fill(canvas: Overlay, corners: npt.NDArray[np.float64], shade: npt.NDArray[np.float64], strength: float) -> None:
    shape = np.zeros(canvas.alpha.shape[:2], np.uint8)
    cv2.fillPoly(shape, [(corners * 2**_SHIFT).astype(np.int32)], 255, cv2.LINE_AA, _SHIFT)
    _lay(canvas, shape, shade, strength)


def _lay(canvas: Overlay, shape: UInt8Array, shade: npt.NDArray[np.float64], strength: float) -> None:
    """Lay a shape (its values are its opacity) over what is drawn already."""
    level = (shape * strength).astype(np.uint8)[..., None]
    over = level > canvas.alpha
    np.copyto(canvas.colour, shade.astype(np.uint8), where=over)
    np.maximum(canvas.alpha, level, out=canvas.alpha)
