"""Masks: restored at native size, cleaned, and written as PNGs that everybody reads."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from isicrt.engine.geometry import cutoff, upsample_probability
from isicrt.engine.masks import Mask, encode_png, replace_file, restore_mask, restore_window, write_mask


def _mask(*rows: str) -> Mask:
    return np.array([[c == "#" for c in row] for row in rows])


def _cleaned(mask: Mask, keep_largest: bool, fill_holes: bool) -> Mask:
    probability = mask.astype(np.uint8) * 255
    return restore_mask(probability, mask.shape, threshold=0.5, keep_largest=keep_largest, fill_holes=fill_holes)


RING = _mask(
    "........",
    ".####...",
    ".#..#..#",
    ".#..#...",
    ".####...",
)
FILLED = _mask(
    "........",
    ".####...",
    ".####..#",
    ".####...",
    ".####...",
)


def _without_speck(mask: Mask) -> Mask:
    mask = mask.copy()
    mask[2, 7] = False
    return mask


@pytest.mark.parametrize(
    ("mask", "keep_largest", "fill_holes", "expected"),
    [
        pytest.param(RING, False, False, RING, id="neither"),
        pytest.param(RING, True, False, _without_speck(RING), id="largest"),
        pytest.param(RING, False, True, FILLED, id="holes"),
        pytest.param(RING, True, True, _without_speck(FILLED), id="both"),
        pytest.param(_mask("...", "..."), True, True, _mask("...", "..."), id="empty_stays_empty"),
        pytest.param(_mask("###", "###"), True, True, _mask("###", "###"), id="full_stays_full"),
        pytest.param(_mask("#"), True, True, _mask("#"), id="one_pixel"),
        pytest.param(_mask("#..", ".#.", "..#"), True, True, _mask("#..", ".#.", "..#"), id="diagonals_connect"),
        pytest.param(_mask(".#.", "#.#", ".#."), True, True, _mask(".#.", "###", ".#."), id="a_diagonal_ring_encloses"),
        pytest.param(
            _mask("###", "#.#", "#.#"), True, True, _mask("###", "#.#", "#.#"), id="a_bay_to_the_border_is_no_hole"
        ),
        pytest.param(_mask("##..#", "....."), True, True, _mask("##...", "....."), id="two_pixels_against_one"),
        pytest.param(_mask("#.#"), True, True, _mask("#.."), id="of_equals_the_first"),
        pytest.param(_mask("..#", "#.."), True, True, _mask("..#", "..."), id="of_equals_the_topmost"),
        pytest.param(
            # The ring has 16 pixels and encloses 9; the block has 18: filling before comparing would choose wrongly.
            _mask("#####....", "#...#.###", "#...#.###", "#...#.###", "#####.###", "......###", "......###"),
            True,
            True,
            _mask(".........", "......###", "......###", "......###", "......###", "......###", "......###"),
            id="holes_do_not_count",
        ),
        pytest.param(
            _mask("#####", "#...#", "#.#.#", "#...#", "#####"),
            True,
            False,
            _mask("#####", "#...#", "#...#", "#...#", "#####"),
            id="an_island_is_another_component",
        ),
    ],
)
def test_cleaning(mask: Mask, keep_largest: bool, fill_holes: bool, expected: Mask) -> None:
    np.testing.assert_array_equal(_cleaned(mask, keep_largest, fill_holes), expected)


def _reference(mask: Mask, keep_largest: bool, fill_holes: bool) -> Mask:
    """The same by labelling every pixel."""
    if keep_largest and mask.any():
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        sizes = stats[1:, cv2.CC_STAT_AREA]
        firsts = {label: np.flatnonzero(labels == label)[0] for label in np.flatnonzero(sizes == sizes.max()) + 1}
        mask = labels == min(firsts, key=firsts.__getitem__)
    if fill_holes:
        outside = np.pad(~mask, 1, constant_values=True)
        _, labels = cv2.connectedComponents(outside.astype(np.uint8), connectivity=4)
        mask = (labels != labels[0, 0])[1:-1, 1:-1]
    return mask


@pytest.mark.parametrize("density", [0.05, 0.3, 0.45, 0.6, 0.8, 0.97])
@pytest.mark.parametrize(("keep_largest", "fill_holes"), [(True, True), (True, False), (False, True)])
def test_cleaning_equals_labelling_on_noise(density: float, keep_largest: bool, fill_holes: bool) -> None:
    rng = np.random.default_rng(int(density * 100))
    for _ in range(60):
        mask = rng.random(rng.integers(1, 40, 2)) < density
        if rng.random() < 0.5:
            mask = cv2.resize(mask.astype(np.uint8), None, fx=3, fy=2, interpolation=cv2.INTER_NEAREST) > 0
        np.testing.assert_array_equal(
            _cleaned(mask, keep_largest, fill_holes), _reference(mask, keep_largest, fill_holes)
        )


def _heaviest(mask: Mask, sigma: float) -> tuple[Mask, float]:
    """By labelling every pixel: the component that weighs most, filled, and by what factor more than the next one."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    (height, width), (y, x) = mask.shape, np.mgrid[: mask.shape[0], : mask.shape[1]]
    square = ((y + 0.5) / height - 0.5) ** 2 + ((x + 0.5) / width - 0.5) ** 2
    weights = np.bincount(labels.ravel(), np.exp(-square / (2 * sigma**2)).ravel(), count)[1:]
    order = np.argsort(-weights)
    clear = np.inf if count < 3 else weights[order[0]] / weights[order[1]]
    return _reference(labels == order[0] + 1, keep_largest=False, fill_holes=True), clear


@pytest.mark.parametrize("sigma", [0.1, 0.2, 0.4])
@pytest.mark.parametrize("size", [(60, 80), (97, 41)])
def test_the_central_component_is_kept(size: tuple[int, int], sigma: float) -> None:
    rng = np.random.default_rng(3)
    told_apart = 0
    for _ in range(60):
        noise = cv2.GaussianBlur(rng.random(size), (0, 0), rng.uniform(1, 5))
        mask = noise > np.quantile(noise, rng.uniform(0.6, 0.9))
        expected, clear = _heaviest(mask, sigma)
        rules = {"threshold": 0.5, "fill_holes": True, "centre_sigma": sigma}
        found = restore_mask(mask.view(np.uint8) * np.uint8(255), size, keep_largest=True, **rules)
        if clear > 1.02:  # Pick's theorem holds for weights nearly
            np.testing.assert_array_equal(found, expected)
            told_apart += not np.array_equal(found, _cleaned(mask, True, True))
    assert told_apart > 5  # the largest is another one


def test_the_centre_is_the_image_s_and_not_the_window_s() -> None:
    probability = np.zeros((100, 200), np.uint8)
    probability[5:35, 5:45] = 255
    probability[40:60, 90:110] = 255  # in the middle, a third as large, and at the edge of the window that is searched
    rules = {"threshold": 0.5, "keep_largest": True, "fill_holes": True}
    assert restore_mask(probability, (100, 200), **rules)[:40].any()
    found = restore_mask(probability, (100, 200), centre_sigma=0.2, **rules)
    assert not found[:40].any()
    assert found.sum() == 400
    # At another size, and of a single pixel.
    assert restore_mask(probability, (300, 500), centre_sigma=0.2, **rules)[150, 250]
    probability[40:60, 90:110] = 0
    probability[50, 100] = 255
    assert restore_mask(probability, (100, 200), centre_sigma=0.05, **rules).sum() == 1


@pytest.mark.parametrize("size", [(7, 9), (24, 24), (61, 200), (200, 61), (300, 301), (511, 30)])
@pytest.mark.parametrize("threshold", [0.02, 0.5, 0.98])
def test_only_background_is_left_out_of_the_search(size: tuple[int, int], threshold: float) -> None:
    rng = np.random.default_rng(size[0])
    cut = cutoff(threshold)
    for n in range(60):
        # Spots of any place and height, some at the edges and many just at the threshold.
        probability = np.zeros((24, 24), np.uint8)
        for _ in range(n % 4):
            y, x = rng.integers(0, 24, 2)
            level = rng.choice([cut - 1, cut, 255])
            probability[y : y + rng.integers(1, 9), x : x + rng.integers(1, 9)] = level
        whole = upsample_probability(probability, size) >= cut
        for clean in (False, True):
            mask = restore_mask(probability, size, threshold=threshold, keep_largest=clean, fill_holes=clean)
            expected = _reference(whole, True, True) if clean else whole
            np.testing.assert_array_equal(mask, expected)


def test_interpolation_comes_before_the_threshold() -> None:
    probability = np.array([[0, 255]], np.uint8)
    options = {"keep_largest": False, "fill_holes": False}
    assert restore_mask(probability, (1, 8), threshold=0.5, **options).sum() == 4
    assert restore_mask(probability, (1, 8), threshold=0.9, **options).sum() == 2
    assert restore_mask(probability, (1, 8), threshold=0.01, **options).sum() == 6


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (767, 1022), (2, 40_000)])
def test_any_native_size(size: tuple[int, int]) -> None:
    probability = np.full((16, 16), 200, np.uint8)
    mask = restore_mask(probability, size, threshold=0.5, keep_largest=True, fill_holes=True)
    assert mask.shape == size
    assert mask.dtype == bool
    assert mask.all()


@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.parametrize("size", [(1, 1), (3, 7), (5, 8), (2, 9), (64, 100)])
def test_pillow_and_opencv_read_the_png(tmp_path: Path, size: tuple[int, int], bits: int) -> None:
    mask = np.random.default_rng(0).random(size) < 0.5
    path = tmp_path / "m.png"
    write_mask(mask, path, bits=bits)
    with Image.open(path) as image:
        image.verify()
    with Image.open(path) as image:
        assert image.mode == {1: "1", 8: "L"}[bits]
        assert image.size == size[::-1]
        np.testing.assert_array_equal(np.asarray(image.convert("L")), mask * np.uint8(255))
    np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), mask * np.uint8(255))


def test_png_bytes_are_as_the_standard_says() -> None:
    data = encode_png(_mask("#.......#", "........."))
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    offset, chunks = 8, {}
    while offset < len(data):
        (length,) = struct.unpack_from(">I", data, offset)
        body = data[offset + 4 : offset + 8 + length]
        assert struct.unpack_from(">I", data, offset + 8 + length) == (zlib.crc32(body),)
        chunks[body[:4]] = body[4:]
        offset += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    assert chunks[b"IHDR"] == struct.pack(">IIBBBBB", 9, 2, 1, 0, 0, 0, 0)
    assert zlib.decompress(chunks[b"IDAT"]) == b"\0\x80\x80\0\0\0"


def test_the_official_scorer_reads_it(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies, while they are imported
        official = pytest.importorskip("isic_challenge_scoring.load_image")
    mask = np.random.default_rng(0).random((30, 41)) < 0.5
    for bits in (1, 8):
        path = tmp_path / f"{bits}.png"
        write_mask(mask, path, bits=bits)
        np.testing.assert_array_equal(official.load_segmentation_image(path) > 128, mask)


def test_an_existing_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    path.write_bytes(b"old")
    write_mask(_mask("#."), path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.png"]
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "m.png").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_mask(_mask("#."), tmp_path / "m.png")
    assert [p.name for p in tmp_path.iterdir()] == ["m.png"]
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "absent" / "m.png", b"")


def test_the_longest_names_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".png")
    write_mask(_mask("#."), path)
    assert path.is_file()


@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (40, 61), (64, 128)])
def test_a_window_is_the_same_png_as_the_whole_mask(size: tuple[int, int], bits: int) -> None:
    rng = np.random.default_rng(size[1])
    for lesion in (0.0, 0.3, 1.0):
        probability = np.zeros((16, 16), np.uint8)
        top, left = rng.integers(0, 14, 2)
        spot = probability[top : top + 3, left : left + 5]
        spot[:] = (rng.random(spot.shape) < lesion) * 255
        rules: dict[str, Any] = {"threshold": 0.5, "keep_largest": True, "fill_holes": True, "centre_sigma": 0.2}
        as_it_is = restore_window(probability, size, threshold=0.5, keep_largest=False, fill_holes=False)
        np.testing.assert_array_equal(as_it_is.whole(), upsample_probability(probability, size) >= cutoff(0.5))
        window = restore_window(probability, size, **rules)
        whole = restore_mask(probability, size, **rules)
        assert window.lesion == pytest.approx(whole.mean())
        assert encode_png(window, bits) == encode_png(whole, bits)
        assert window.window[1].start % 8 == 0
