"""A second look: who gets one, what comes of it, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from isicrt.benchmarks.rendered import render
from isicrt.engine import shipped
from isicrt.engine.card import ModelCard
from isicrt.engine.cpu_runtime import CpuRuntime
from isicrt.engine.errors import ModelError
from isicrt.engine.geometry import resize_image
from isicrt.engine.onnx_file import read_onnx_card
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.openvino_runtime import OpenVinoRuntime
from isicrt.engine.second_look import (
    VIEWS,
    Square,
    confidence,
    looking_again,
    mean_of,
    square_around,
    turned,
    with_zoom,
    zoomed,
)
from isicrt.export.second_look import look_again_below
from tests.tiny_models import darkness_card


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.5, 2 * 1.4 / (2 + 2)),  # two pixels inside, of which 1.4 are expected to be lesion, of 2 in all
        (0.1, 2 * 2 / (4 + 2)),
        (0.9, 0),
    ],
)
def test_the_confidence_of_four_pixels(threshold: float, expected: float) -> None:
    probability = np.array([[204, 153], [102, 51]], np.uint8)  # 0.8, 0.6, 0.4, 0.2
    assert confidence(probability, threshold) == pytest.approx(expected)


def test_the_confidence_is_about_the_dice_coefficient_that_comes_of_it() -> None:
    rng = np.random.default_rng(0)
    probability = rng.integers(0, 256, (64, 64), dtype=np.uint8)
    mask = probability > 127.5
    truths = rng.random((200, 64, 64)) < probability / 255
    dice = [2 * (mask & truth).sum() / (mask.sum() + truth.sum()) for truth in truths]
    assert confidence(probability, 0.5) == pytest.approx(np.mean(dice), abs=0.003)


def test_certainty_and_the_empty_mask() -> None:
    sure = np.zeros((8, 8), np.uint8)
    assert confidence(sure, 0.5) == 0
    sure[2:5, 2:5] = 255
    assert confidence(sure, 0.5) == 1
    assert confidence(np.full((8, 8), 127, np.uint8), 0.5) == 0


def test_views_are_turned_back() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    views = turned(image)
    assert views.shape == (VIEWS - 1, 6, 6, 3)
    assert len({view.tobytes() for view in [image, *views]}) == VIEWS
    np.testing.assert_array_equal(mean_of(image[..., 1], views[..., 1]), image[..., 1])
    # 10 and three times 11 is 10.75
    first, further = np.full((6, 6), 10, np.uint8), np.full((VIEWS - 1, 6, 6), 11, np.uint8)
    assert set(mean_of(first, further).ravel().tolist()) == {11}


class _Network:
    """Sees lesion in the upper half of whatever it is shown, as sure as the image's red says; counts its images."""

    def __init__(self, most: int) -> None:
        self.most, self.seen = most, 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        assert 0 < len(images) <= self.most
        self.seen += len(images)
        found = images[..., 0].copy()
        found[:, found.shape[1] // 2 :] = 0
        found.flags.writeable = False  # as those of some runtimes are
        return found


def _images(*reds: int) -> np.ndarray:
    images = np.zeros((len(reds), 8, 8, 3), np.uint8)
    images[..., 0] = np.array(reds)[:, None, None]
    return images


@pytest.mark.parametrize("most", [2, 3, 64])
def test_doubtful_images_alone_are_looked_at_again(most: int) -> None:
    network = _Network(most)
    look = looking_again(network, darkness_card((8, 8), second_look=0.9), most)
    images = _images(255, 180)  # expected Dice coefficients of 1 and 0.83
    found = look(images)
    assert network.seen == 2 + 3
    np.testing.assert_array_equal(found[0], _Network(1)(images[:1])[0])
    # Each quadrant is in the upper half in two of the four turns.
    assert set(found[1].ravel().tolist()) == {90}
    np.testing.assert_array_equal(look(images[1:])[0], found[1])  # whatever is beside it
    assert looking_again(network, darkness_card((8, 8)), most) is network


def _found(*places: tuple[slice, slice]) -> np.ndarray:
    probability = np.zeros((96, 96), np.uint8)
    for place in places:
        probability[place] = 200
    return probability


@pytest.mark.parametrize(
    ("zoom", "places", "expected"),
    [
        (2.0, [(slice(40, 60), slice(30, 46))], Square(30, 18, 40)),
        (1.5, [(slice(40, 60), slice(30, 46))], Square(35, 23, 30)),
        # Moved inside the image.
        (2.0, [(slice(0, 20), slice(86, 96))], Square(0, 56, 40)),
        # Not of fewer than an eighth of the side: that would be blocks of pixels.
        (2.0, [(slice(50, 52), slice(50, 52))], Square(45, 45, 12)),
        # Around the component that is kept, which is the larger one here.
        (2.0, [(slice(40, 60), slice(30, 46)), (slice(90, 94), slice(90, 94))], Square(30, 18, 40)),
        (2.0, [(slice(10, 80), slice(30, 46))], None),  # the square would be larger than the image
        (2.0, [], None),
        (0.0, [(slice(40, 60), slice(30, 46))], None),
    ],
)
def test_the_square_of_the_zoom(zoom: float, places: list[tuple[slice, slice]], expected: Square | None) -> None:
    card = darkness_card((96, 96), second_look=0.9, second_look_zoom=zoom)
    assert square_around(_found(*places), card) == expected


def test_what_the_zoom_shows_and_where_it_counts() -> None:
    square = Square(8, 16, 24)
    rows, columns = np.mgrid[0:96, 0:96]
    image = np.stack([rows, columns, rows], axis=-1).astype(np.uint8)
    view = zoomed(image, square)
    assert view.shape == image.shape
    # Pixel r of the view is at 8 + (r + 0.5) / 4 - 0.5 of the image.
    assert abs(view[50, 50].astype(int) - [8 + 50.5 / 4 - 0.5, 16 + 50.5 / 4 - 0.5, 8 + 50.5 / 4 - 0.5]).max() <= 0.5
    # A view that says what the image says changes nothing but for what is lost on the way there and back.
    back = with_zoom(image[..., 1], view[..., 1], square)
    assert np.abs(back.astype(int) - image[..., 1]).max() <= 1
    mean = with_zoom(np.full((96, 96), 101, np.uint8), np.full((96, 96), 200, np.uint8), square)
    assert set(mean[square.place].ravel().tolist()) == {151}  # 150.5, rounded up as `mean_of` does
    mean[square.place] = 101
    assert set(mean.ravel().tolist()) == {101}


@pytest.mark.parametrize("most", [2, 3, 64])
def test_each_doubtful_image_is_zoomed_in_on_by_itself(most: int) -> None:
    """Two have a square and one has none: each gets what it would get alone."""
    seen = []

    def network(images: np.ndarray) -> np.ndarray:
        assert 0 < len(images) <= most
        seen.append(len(images))
        lesion = images[..., 1] > 100  # of which it is the surer the larger it is
        sure = images[..., 0] + 20 * (lesion.mean(axis=(1, 2), keepdims=True) > 0.1)
        return np.where(lesion, sure, 0).astype(np.uint8)

    images = np.zeros((3, 96, 96, 3), np.uint8)
    images[..., 0] = 180
    images[0, 30:50, 30:60, 1] = 255
    images[1, 5:90, 5:90, 1] = 255
    images[2, 70:80, 10:30, 1] = 255
    card = darkness_card((96, 96), second_look=0.9, second_look_zoom=2.0)
    look = looking_again(network, card, most)
    found = np.concatenate([look(images[n : n + most]) for n in range(0, 3, most)])
    assert sum(seen) == 3 + 3 * 3 + 2
    for n in range(3):
        np.testing.assert_array_equal(look(images[n : n + 1])[0], found[n])
    turning = looking_again(network, darkness_card((96, 96), second_look=0.9), most)
    turns = np.concatenate([turning(images[n : n + 1]) for n in range(3)])
    np.testing.assert_array_equal(found[1], turns[1])
    square = square_around(network(images[:1])[0], card)
    assert square == Square(10, 15, 60)
    view = network(zoomed(images[0], square)[None])[0]
    np.testing.assert_array_equal(found[0], with_zoom(turns[0], view, square))
    assert (found[0] != turns[0]).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"second_look": 0.9, "second_look_zoom": 0.5}, "'second_look_zoom' must be 0 or lie between 1 and 10"),
        ({"second_look": 0.9, "second_look_zoom": 11}, "'second_look_zoom' must be 0 or lie between 1 and 10"),
        ({"second_look": 0.9, "second_look_zoom": float("nan")}, "'second_look_zoom' must be 0"),
        ({"second_look_zoom": 2.0}, "'second_look_zoom' is for models with a second look"),
    ],
)
def test_a_card_with_another_zoom_is_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        darkness_card(**fields)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan"), True])
def test_a_card_with_another_confidence_is_refused(value: float) -> None:
    with pytest.raises(ModelError, match="'second_look' must be at least 0 and below 1"):
        darkness_card(second_look=value)


def test_it_is_for_square_inputs() -> None:
    with pytest.raises(ModelError, match="'second_look' is for square inputs"):
        darkness_card((64, 96), second_look=0.9)
    card = darkness_card(second_look=0.9, second_look_zoom=2.0)
    assert ModelCard.from_json(card.to_json()) == card


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.stack([resize_image(render(seed, (96, 128))[0], (192, 192)) for seed in range(5)])


@pytest.mark.parametrize("zoom", [0.0, 1.25])
@pytest.mark.parametrize("cpu_runtime", [OnnxRuntime, OpenVinoRuntime])
def test_every_way_into_a_runtime_looks_again(
    pixels: np.ndarray, tmp_path: Path, cpu_runtime: type[CpuRuntime], zoom: float
) -> None:
    """With `always`, each image is the mean of what the model without a second look says of its views."""
    if cpu_runtime is OpenVinoRuntime:
        pytest.importorskip("openvino", reason="OpenVINO is not installed (extra openvino)")
    source = shipped.resolve("unet-light-int8")
    files = {name: tmp_path / f"{name}.onnx" for name in ("never", "always")}
    for file, below, size in zip(files.values(), (0.0, 0.9999), (0.0, zoom), strict=True):
        file.write_bytes(look_again_below(source, below, size))
    card = read_onnx_card(files["always"])
    expected, squares = [], []
    with cpu_runtime(files["never"], threads=1) as once:
        firsts = once.infer_alone(pixels)
        assert min(confidence(p, 0.5) for p in firsts) < 0.9999
        for image, first in zip(pixels, firsts, strict=True):
            expected.append(mean_of(first, np.stack([once.infer_alone(v[None])[0] for v in turned(image)])))
            squares.append(square_around(first, card))
            if (square := squares[-1]) is not None:
                view = once.infer_alone(zoomed(image, square)[None])[0]
                expected[-1] = with_zoom(expected[-1], view, square)
    assert any(squares) == bool(zoom)
    assert np.abs(np.stack(expected).astype(int) - firsts).mean() > 0.2
    for threads in (1, 2):
        with cpu_runtime(files["always"], threads=threads) as again:
            for found in (again.infer(pixels), again.infer_alone(pixels), again.collect(again.submit(pixels))):
                # Sums of calls on several threads are rounded in another order.
                assert np.abs(found.astype(int) - np.stack(expected)).mean() < 0.05
