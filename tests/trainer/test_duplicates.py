"""Twins are found through rotation, magnification, crop and colour; strangers, mirror images and rulers are not."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from isicrt.benchmarks.rendered import render
from isicrt.engine.errors import DataError, ImageError
from isicrt.engine.geometry import UInt8Array
from isicrt.trainer.dataset import LEFT_OUT, find_pairs, split_fold
from isicrt.trainer.duplicates import find_twins, is_twin
from isicrt.trainer.registration import Features, correlate, find_features, reduce, register
from isicrt.trainer.resemblance import resembling, take_print
from isicrt.trainer.twin_sheet import draw_sheet
from isicrt.trainer.twins import TEST_TWINS, TWINS, group_of

SIDE = 300


def photograph(seed: int) -> UInt8Array:
    return render(seed, (SIDE, SIDE))[0]


def again(image: UInt8Array, degrees: float, magnification: float, colour: tuple[float, float, float]) -> UInt8Array:
    """Another photograph of what `image` shows: turned about its centre, enlarged, in other light."""
    matrix = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), degrees, magnification)
    turned = cv2.warpAffine(image, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.clip(turned * np.array(colour) ** 1.2 + 8, 0, 255).astype(np.uint8)


def save(folder: Path, images: dict[str, UInt8Array]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        Image.fromarray(image).save(folder / f"{name}.jpg", quality=90)
    return sorted(folder.iterdir())


@pytest.mark.parametrize(
    ("degrees", "magnification", "colour"),
    [
        (0, 1.0, (1.0, 1.0, 1.0)),
        (0, 1.0, (1.0, 0.8, 0.7)),
        (90, 1.0, (0.9, 0.9, 0.9)),
        (180, 1.05, (0.85, 0.95, 1.0)),
        (-35, 1.3, (1.0, 0.9, 0.8)),
        (12, 0.75, (0.8, 0.8, 0.9)),
    ],
)
def test_registration_recovers_the_transform(
    degrees: float, magnification: float, colour: tuple[float, float, float]
) -> None:
    a = photograph(3)
    b = again(a, degrees, magnification, colour)
    first, second = reduce(a), reduce(b)
    found = register(find_features(first), find_features(second))
    assert found.inliers >= 20
    assert abs(found.scale) == pytest.approx(magnification, rel=0.03)
    turned = np.rad2deg(np.angle(found.scale)) + degrees  # OpenCV turns anticlockwise, pixels count downwards
    assert (turned + 180) % 360 - 180 == pytest.approx(0, abs=2)
    assert correlate(first, second, found) > 0.8


@pytest.mark.parametrize("change", ["stranger", "mirror", "blank"])
def test_what_is_no_twin(change: str) -> None:
    a = photograph(3)
    b = {"stranger": photograph(4), "mirror": a[:, ::-1].copy(), "blank": np.full_like(a, 200)}[change]
    found = register(find_features(reduce(a)), find_features(reduce(b)))
    assert not is_twin(found.inliers, correlate(reduce(a), reduce(b), found) if found.inliers else 0.0)


def test_matches_on_a_line_prove_nothing() -> None:
    """As a ruler gives them: equal descriptors on equal places, all in a row."""
    rng = np.random.default_rng(0)
    descriptors = np.sqrt(rng.dirichlet(np.full(128, 0.2), 30)).astype(np.float32)
    frames = np.full(30, 3 + 0j, np.complex64)

    def features(heights: float) -> Features:
        points = np.linspace(20, 230, 30) + 1j * (100 + heights * rng.uniform(-1, 1, 30))
        return Features(points.astype(np.complex64), frames, descriptors)

    row = features(4)
    cloud = features(90)
    assert register(row, row).inliers == 0
    strays = row.points.copy()
    strays[:2] += 70j  # two chance matches do not make a ruler a lesion
    assert register(*[Features(strays, frames, descriptors)] * 2).inliers == 0
    assert register(cloud, cloud).inliers == 30


@pytest.mark.parametrize(
    ("inliers", "correlation", "expected"),
    [(7, 0.99, False), (8, 0.64, False), (8, 0.65, True), (29, 0.5, False), (30, 0.5, True), (200, 0.4, False)],
)
def test_thresholds(inliers: int, correlation: float, expected: bool) -> None:
    assert is_twin(inliers, correlation) is expected


def test_candidates_are_between_the_sides_only() -> None:
    images = [photograph(seed) for seed in range(4)] + [again(photograph(2), 90, 1.1, (0.9, 0.9, 1.0))]
    prints = [take_print(reduce(image)) for image in images]
    assert (2, 4) in resembling(prints, None, 2)
    pairs = resembling(prints, 3, 2)
    assert (2, 4) in pairs
    assert all(a < 3 <= b for a, b in pairs)
    assert resembling(prints, None, 99) == list(itertools.combinations(range(5), 2))  # more than there are


def test_find_twins_within_and_between(tmp_path: Path) -> None:
    one, two = photograph(1), photograph(2)
    here = save(tmp_path / "a", {"one-1": one, "one-2": again(one, 20, 1.1, (0.9, 1.0, 1.0)), "two": two})
    there = save(tmp_path / "b", {"three": photograph(5), "two-again": again(two, 180, 0.9, (1.0, 0.9, 0.9))})
    steps: list[tuple[str, int, int]] = []

    within = find_twins(here, threads=1, on_progress=lambda *step: steps.append(step))
    assert [(twin.a.stem, twin.b.stem) for twin in within] == [("one-1", "one-2")]
    assert steps == [("read", n, 3) for n in (1, 2, 3)] + [("register", n, 3) for n in (1, 2, 3)]

    between = find_twins(here, there)
    assert [(twin.a.stem, twin.b.stem) for twin in between] == [("two", "two-again")]
    assert find_twins(here, there, threads=2) == between  # nothing is random

    sheet = draw_sheet([*within, *between])
    assert sheet.dtype == np.uint8
    assert sheet.shape == (216, 2 * 408, 3)
    a, b = sheet[66:166, 52:152].astype(int), sheet[66:166, 252:352].astype(int)
    assert np.corrcoef(a.mean(2).ravel(), b.mean(2).ravel())[0, 1] > 0.9  # drawn on each other


def test_frames_of_other_shapes(tmp_path: Path) -> None:
    frame = render(6, (300, 420))[0]
    paths = save(tmp_path, {"crop": frame[:, 60:360], "frame": frame, "other": render(7, (300, 420))[0]})
    assert [(twin.a.stem, twin.b.stem) for twin in find_twins(paths)] == [("crop", "frame")]


def test_images_without_a_feature(tmp_path: Path) -> None:
    blank = np.full((64, 64, 3), 180, np.uint8)
    assert find_twins(save(tmp_path, {"a": blank, "b": blank})) == []


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    paths = save(tmp_path, {"a": photograph(1), "b": photograph(2)})
    with pytest.raises(DataError, match="two images"):
        find_twins(paths[:1])
    with pytest.raises(DataError, match="compared with itself"):
        find_twins(paths, paths[1:])
    paths[0].write_bytes(b"no JPEG")
    with pytest.raises(ImageError, match=r"a\.jpg"):
        find_twins(paths)


def test_table_of_twins() -> None:
    names = [name for group in TWINS for name in group]
    assert len(names) == len(set(names))  # one group each
    assert all(list(group) == sorted(group) and len(group) > 1 for group in TWINS)
    assert not set(names) & TEST_TWINS.keys()  # what is left out needs no fold
    assert not set(TEST_TWINS.values()) & {*names, *TEST_TWINS}
    assert TEST_TWINS.keys() <= LEFT_OUT.keys()
    assert group_of("ISIC_0014826") == group_of("ISIC_0000162") == "ISIC_0000162"
    assert group_of("ISIC_0000001") == "ISIC_0000001"


def test_table_holds_for_the_real_images(real_data: Path) -> None:
    """The surest and the least sure pair of the table, and two lesions that a ruler makes alike."""
    train, more = real_data / "isic2016" / "train" / "images", real_data / "isic2018-extra" / "images"
    tests = real_data / "isic2016" / "test" / "images"
    if not more.is_dir():
        pytest.skip(f"no {more}")
    for a, b, expected in (
        (tests / "ISIC_0000164.jpg", more / "ISIC_0014795.jpg", True),
        (tests / "ISIC_0000198.jpg", more / "ISIC_0014667.jpg", True),
        (train / "ISIC_0011082.jpg", tests / "ISIC_0000449.jpg", True),
        (more / "ISIC_0012888.jpg", more / "ISIC_0013433.jpg", False),
    ):
        assert bool(find_twins([a], [b])) is expected, (a.name, b.name)


def test_folds_keep_twins_together(real_data: Path) -> None:
    pairs = find_pairs(real_data / "isic2016" / "train")
    if (real_data / "isic2018-extra").is_dir():
        pairs += find_pairs(real_data / "isic2018-extra")
    assert not {pair.id for pair in pairs} & TEST_TWINS.keys()
    for fold in range(5):
        training, validation = ({group_of(pair.id) for pair in side} for side in split_fold(pairs, 5, fold))
        assert not training & validation
