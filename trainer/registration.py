"""Do two photographs show the same piece of skin? Local features, the similarity that maps one onto the other, and how
well they agree once they lie on each other.

Magnification, rotation, crop and colour processing may differ; a mirror image is another image. Descriptors: Lowe,
"Distinctive image features from scale-invariant keypoints", IJCV 2004; their square roots: Arandjelovic & Zisserman,
"Three things everyone should know to improve object retrieval", CVPR 2012. The transform: Fischler & Bolles, CACM 1981,
but every match proposes one from its own scale and angle (Philbin et al., CVPR 2007, section 4), so that all hypotheses
are tried and nothing is random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from isicrt.engine.geometry import UInt8Array

Float32Array = npt.NDArray[np.float32]

SHORT_SIDE = 256
"""Pixels of the short side of what is compared. Hair and pores below that differ between two photographs anyway."""
FEATURES = 250

_SIMILAR = 0.8  # of RootSIFT descriptors, a cosine; unrelated ones have about 0.5
_FIRST_TOLERANCE, _TOLERANCE = 12.0, 5.0  # pixels: of one match's proposal, and of the fit to all that agree
_ANGLE, _OCTAVES = np.deg2rad(30), 0.7  # how far a match's own rotation and scale may be from the transform's
# One ruler is on many pictures: this many places must lie further than so many pixels from the line with most of them.
_BESIDE, _LINE = 4, 8.0
_LARGEST = 4.0  # magnification of one image against the other
_CORRELATED_AT = 128  # pixels
_SMALLEST_OVERLAP = 0.2  # of the frame


@dataclass(frozen=True)
class Features:
    """Keypoints of one image, largest first; at most `FEATURES`."""

    points: npt.NDArray[np.complex64]
    """n, x + iy in pixels of the reduced image."""
    frames: npt.NDArray[np.complex64]
    """n: scale (pixels) times e^(i angle). The quotient of two is the similarity that their match proposes."""
    descriptors: Float32Array
    """n x 128, RootSIFT, of unit length."""


@dataclass(frozen=True)
class Registration:
    """The similarity b = scale * a + shift between complex coordinates of two reduced images."""

    inliers: int
    """Places of the skin that agree with it. 0: there is none, and the rest means nothing."""
    scale: complex
    """Magnification and rotation."""
    shift: complex
    """Pixels."""


def reduce(image: UInt8Array) -> UInt8Array:
    """H x W x 3 RGB to what is compared: the short side at `SHORT_SIDE` pixels, shape kept."""
    factor = SHORT_SIDE / min(image.shape[:2])
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    smaller = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    return np.asarray(smaller, np.uint8)


def find_features(image: UInt8Array) -> Features:
    """Keypoints of a reduced image (uint8, H x W x 3, RGB)."""
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (0, 0), 0.8)
    # Lesions are smooth: without the local stretch of contrast half of them have hardly a keypoint.
    grey = cv2.createCLAHE(3.0, (4, 4)).apply(grey)
    sift = cv2.SIFT.create(nfeatures=FEATURES, contrastThreshold=0.01)
    found, descriptors = sift.detectAndCompute(grey, None)
    if not found:
        return Features(np.zeros(0, np.complex64), np.zeros(0, np.complex64), np.zeros((0, 128), np.float32))
    rows = np.array([(*point.pt, point.size, point.angle) for point in found], np.float64)
    order = np.argsort(-rows[:, 2], kind="stable")[:FEATURES]
    x, y, size, angle = rows[order].T
    histograms = np.asarray(descriptors, np.float32)[order]
    roots = np.sqrt(histograms / (histograms.sum(1, keepdims=True) + 1e-7))
    return Features(
        (x + 1j * y).astype(np.complex64), (size * np.exp(1j * np.deg2rad(angle))).astype(np.complex64), roots
    )


def register(a: Features, b: Features) -> Registration:
    """The similarity that most mutual nearest neighbours of two images agree with."""
    nothing = Registration(0, 1, 0)
    if min(len(a.points), len(b.points)) < 3:
        return nothing
    likeness = a.descriptors @ b.descriptors.T
    nearest = likeness.argmax(1)
    index = np.arange(len(nearest))
    kept = (likeness.argmax(0)[nearest] == index) & (likeness[index, nearest] > _SIMILAR)
    if kept.sum() < 3:
        return nothing
    source, target = a.points[kept].astype(np.complex128), b.points[nearest[kept]].astype(np.complex128)
    proposed = b.frames[nearest[kept]].astype(np.complex128) / a.frames[kept]

    def agreeing(scale: Any, shift: Any, tolerance: float) -> npt.NDArray[np.bool_]:
        near = np.abs(scale * source + shift - target) < tolerance * np.maximum(1, np.abs(scale))
        ratio = proposed / scale
        fits = near & (np.abs(np.angle(ratio)) < _ANGLE) & (np.abs(np.log2(np.abs(ratio))) < _OCTAVES)
        return np.asarray(fits, np.bool_)

    sane = np.abs(np.log2(np.abs(proposed))) < np.log2(_LARGEST)
    votes = agreeing(proposed[:, None], (target - proposed * source)[:, None], _FIRST_TOLERANCE) & sane[:, None]
    best = int(votes.sum(1).argmax())
    inliers = votes[best]
    scale, shift = complex(proposed[best]), complex(target[best] - proposed[best] * source[best])
    for tolerance in (_FIRST_TOLERANCE, 8.0, _TOLERANCE, _TOLERANCE, _TOLERANCE):
        if _places(source, target, inliers) < 3:
            return nothing
        scale, shift = _fit(source[inliers], target[inliers])
        inliers = agreeing(scale, shift, tolerance)
    beside = min(_beside_a_line(points[inliers]) for points in (source, target))
    if beside < _BESIDE or not 1 / _LARGEST < abs(scale) < _LARGEST:
        return nothing
    return Registration(_places(source, target, inliers), scale, shift)


def _fit(a: npt.NDArray[np.complex128], b: npt.NDArray[np.complex128]) -> tuple[complex, complex]:
    """Least squares b = scale * a + shift."""
    centred = a - a.mean()
    scale = complex(np.vdot(centred, b - b.mean()) / max(float(np.vdot(centred, centred).real), 1e-9))
    return scale, complex(b.mean() - scale * a.mean())


def _distinct(points: npt.NDArray[np.complex128]) -> npt.NDArray[np.complex128]:
    """A keypoint with two orientations or scales counts once."""
    return points[np.unique(np.round(points / 3), return_index=True)[1]]


def _places(a: npt.NDArray[np.complex128], b: npt.NDArray[np.complex128], kept: npt.NDArray[np.bool_]) -> int:
    return min(len(_distinct(points[kept])) for points in (a, b))


def _beside_a_line(points: npt.NDArray[np.complex128]) -> int:
    """Distinct places away from the line that has most of them, of all lines through two."""
    places = _distinct(points)
    most = 0
    for place in places:
        rays = places - place
        lengths = np.abs(rays)
        directions = rays[lengths > 2 * _LINE] / lengths[lengths > 2 * _LINE]
        if len(directions):
            most = max(most, int((np.abs((rays[:, None] * directions.conj()).imag) < _LINE).sum(0).max()))
    return len(places) - most


def correlate(a: UInt8Array, b: UInt8Array, registration: Registration) -> float:
    """How alike two reduced images are where they overlap, from -1 to 1; 0 where they hardly do.

    Normalised cross-correlation of the brightness at 128 px after an affine refinement (Evangelidis & Psarakis,
    "Parametric image alignment using enhanced correlation coefficient maximization", PAMI 2008). Slow changes of
    brightness are taken out first: two dark blobs on pale skin are no evidence.
    """
    factor = _CORRELATED_AT / SHORT_SIDE
    small_a, small_b = (_detail(image, factor) for image in (a, b))
    # OpenCV wants the map from the template's pixels to the input's: from b to a.
    inverse = 1 / registration.scale
    shift = -registration.shift * inverse * factor
    warp = np.array([[inverse.real, -inverse.imag, shift.real], [inverse.imag, inverse.real, shift.imag]], np.float32)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-4)
    warps = [warp]
    try:
        refined = cv2.findTransformECC(small_b, small_a, warp.copy(), cv2.MOTION_AFFINE, criteria, None, 5)[1]
        if np.abs(refined[:, :2] @ np.linalg.inv(warp[:, :2]) - np.eye(2)).max() < 0.3:
            warps.append(np.asarray(refined, np.float32))
    except cv2.error:  # it did not converge: the similarity stands
        pass
    return max(_overlap_correlation(small_a, small_b, matrix) for matrix in warps)


def _detail(image: UInt8Array, factor: float) -> Float32Array:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    grey = cv2.resize(grey, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA).astype(np.float32)
    fine = cv2.GaussianBlur(grey, (0, 0), 1.0) - cv2.GaussianBlur(grey, (0, 0), _CORRELATED_AT / 12)
    # By the local contrast: else the border of a dark lesion decides alone.
    return np.asarray(fine / np.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), _CORRELATED_AT / 8) + 4), np.float32)


def _overlap_correlation(a: Float32Array, b: Float32Array, warp: Float32Array) -> float:
    size = (b.shape[1], b.shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    seen = cv2.warpAffine(np.ones_like(a), warp, size, flags=flags) > 0.999
    if seen.mean() < _SMALLEST_OVERLAP:
        return 0.0
    x, y = cv2.warpAffine(a, warp, size, flags=flags)[seen], b[seen]
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / max(float(np.sqrt((x * x).sum() * (y * y).sum())), 1e-9))
