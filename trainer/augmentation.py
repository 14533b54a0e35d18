"""Online augmentation: numpy draws the geometry, once for an image and its mask; DALI does the pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from isicrt.trainer.recipe import Augmentation


def draw_matrices(
    rng: np.random.Generator, a: Augmentation, source: int, target: int, count: int
) -> npt.NDArray[np.float32]:
    """Random affine maps from pixels of the augmented image to pixels of the image that it is made from.

    Args:
        rng: of the epoch.
        a: what may happen; all of it zero gives a plain resize.
        source: pixels, side of the square image.
        target: pixels, side of the augmented image.
        count: of maps.

    Returns:
        float32 count x 2 x 3, acting on (x, y, 1) with pixel centres at half-integers. The window that is shown has a
        side of zoom * `source`, zoom uniform in logarithm in [min_zoom, max_zoom]; the aspect jitter shortens one of
        its sides. Below 1 it lies inside the image, above 1 the image lies inside it.
    """
    zoom = np.exp(rng.uniform(np.log(a.min_zoom), np.log(a.max_zoom), count))
    log_ratio = rng.uniform(-np.log(a.max_aspect), np.log(a.max_aspect), count)
    width, height = zoom * np.minimum(np.exp(log_ratio), 1.0), zoom * np.minimum(np.exp(-log_ratio), 1.0)
    room_x, room_y = np.abs(1 - width) / 2, np.abs(1 - height) / 2
    offset = np.stack([rng.uniform(-room_x, room_x), rng.uniform(-room_y, room_y)], axis=1) * source
    angle = np.deg2rad(rng.uniform(-a.max_angle, a.max_angle, count)) * (rng.random(count) < a.rotate_probability)
    shear = np.tan(np.deg2rad(rng.uniform(-a.max_shear, a.max_shear, count)))
    signs = rng.choice([-1.0, 1.0], (count, 2)) if a.flip else np.ones((count, 2))
    scale = source / target
    linear = np.empty((count, 2, 2))
    cosine, sine = np.cos(angle), np.sin(angle)
    # Rotation of the augmented image, then shear, then the window's stretch and flips in the source.
    linear[:, 0, 0], linear[:, 0, 1] = cosine + shear * sine, -sine + shear * cosine
    linear[:, 1, 0], linear[:, 1, 1] = sine, cosine
    linear *= (np.stack([width, height], axis=1) * signs * scale)[:, :, None]
    shift = source / 2 + offset - (linear @ np.full((2, 1), target / 2))[..., 0]
    return np.concatenate([linear, shift[..., None]], axis=2).astype(np.float32)


def warp(
    images: Any, masks: Any, matrices: Any, a: Augmentation, source: int, target: int, soft: bool = False
) -> tuple[Any, Any]:
    """DALI nodes of images and masks under the maps of `draw_matrices`: bilinear, and nearest for masks that are not
    soft."""
    from nvidia.dali import fn, types

    settings: dict[str, Any] = {"size": (target, target), "inverse_map": True}
    if a.border == "reflect":
        margin = source // 2
        images, masks = _reflected(images, margin), _reflected(masks, margin)
        shift = np.zeros((2, 3), np.float32)
        shift[:, 2] = margin
        matrices = matrices + types.Constant(shift)
    else:
        settings["fill_value"] = 0
    images = fn.warp_affine(images, matrix=matrices, interp_type=types.INTERP_LINEAR, **settings)
    rule = types.INTERP_LINEAR if soft else types.INTERP_NN
    return images, fn.warp_affine(masks, matrix=matrices, interp_type=rule, **settings)


def _reflected(images: Any, margin: int) -> Any:
    """With a mirrored border of `margin` pixels on each side, so that no corner is empty after a warp."""
    from nvidia.dali import fn

    mirrored = fn.flip(images, horizontal=1)
    images = fn.cat(mirrored[:, -margin:], images, mirrored[:, :margin], axis=1)
    mirrored = fn.flip(images, horizontal=0, vertical=1)
    return fn.cat(mirrored[-margin:], images, mirrored[:margin], axis=0)


def lay_over(images: Any, masks: Any, overlays: Any) -> tuple[Any, Any]:
    """DALI nodes with artefacts on them. `overlays` is uint8 H x W x 5: RGB, alpha, and 1 where skin can be seen."""
    from nvidia.dali import fn, types

    colour, alpha, visible = overlays[:, :, 0:3], overlays[:, :, 3:4], overlays[:, :, 4:5]
    share = fn.cast(alpha, dtype=types.FLOAT) / 255.0
    blended = fn.cast(images, dtype=types.FLOAT) * (1.0 - share) + fn.cast(colour, dtype=types.FLOAT) * share
    return fn.cast_like(blended, images), fn.cast(masks * visible, dtype=types.UINT8)


def colour(images: Any, a: Augmentation, size: int, seed: int) -> Any:
    """DALI nodes of square images of `size` pixels with jittered colours, blur, a colour cast and noise."""
    from nvidia.dali import fn, types

    def uniform(low: float, high: float) -> Any:
        return fn.random.uniform(range=(low, high)) if low < high else low

    saturation = uniform(1 - a.saturation, 1 + a.saturation)
    if a.grey:
        saturation = saturation * fn.cast(fn.random.coin_flip(probability=1 - a.grey), dtype=types.FLOAT)
    images = fn.color_twist(
        images,
        brightness=uniform(1 - a.brightness, 1 + a.brightness),
        contrast=uniform(1 - a.contrast, 1 + a.contrast),
        saturation=saturation,
        hue=uniform(-a.hue, a.hue),
    )
    if a.max_blur:
        # DALI takes no sigma of 0; a twentieth of a pixel leaves pixels as they are.
        images = fn.gaussian_blur(images, sigma=uniform(0.05, a.max_blur), window_size=2 * int(3 * a.max_blur) + 1)
    if not (a.cast or a.max_noise):
        return images
    levels = fn.cast(images, dtype=types.FLOAT)
    if a.cast:
        levels = levels * fn.random.uniform(range=(1 - a.cast, 1 + a.cast), shape=[1, 1, 3])
    if a.max_noise:
        levels = levels + _noise(images, size, seed) * uniform(0.0, a.max_noise)
    return fn.cast(levels, dtype=types.UINT8)


def _noise(images: Any, size: int, seed: int) -> Any:
    """Gaussian noise of standard deviation 1: a random window of a plane that is drawn once an epoch. To draw each
    image's own took a third of the augmentation's time."""
    from nvidia.dali import fn, types

    plane = np.random.default_rng(seed).standard_normal((2 * size, 2 * size, 3), np.float32)
    plane = types.Constant(plane, device="gpu" if images.device == "gpu" else "cpu")
    corner = fn.cast(fn.random.uniform(range=(0, size), shape=[2]), dtype=types.INT32)
    return fn.slice(plane, start=corner, shape=[size, size], axes=[0, 1])
