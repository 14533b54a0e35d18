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
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.openvino_runtime import OpenVinoRuntime
from isicrt.engine.second_look import VIEWS, confidence, looking_again, mean_of, turned
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


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan"), True])
def test_a_card_with_another_confidence_is_refused(value: float) -> None:
    with pytest.raises(ModelError, match="'second_look' must be at least 0 and below 1"):
        darkness_card(second_look=value)


def test_it_is_for_square_inputs() -> None:
    with pytest.raises(ModelError, match="'second_look' is for square inputs"):
        darkness_card((64, 96), second_look=0.9)
    card = darkness_card(second_look=0.9)
    assert ModelCard.from_json(card.to_json()) == card


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.stack([resize_image(render(seed, (96, 128))[0], (192, 192)) for seed in range(5)])


@pytest.mark.parametrize("cpu_runtime", [OnnxRuntime, OpenVinoRuntime])
def test_every_way_into_a_runtime_looks_again(
    pixels: np.ndarray, tmp_path: Path, cpu_runtime: type[CpuRuntime]
) -> None:
    """With `always`, each image is the mean of what the model without a second look says of its turns."""
    if cpu_runtime is OpenVinoRuntime:
        pytest.importorskip("openvino", reason="OpenVINO is not installed (extra openvino)")
    source = shipped.resolve("unet-light-int8")
    files = {name: tmp_path / f"{name}.onnx" for name in ("never", "always")}
    for file, below in zip(files.values(), (0.0, 0.9999), strict=True):
        file.write_bytes(look_again_below(source, below))
    with cpu_runtime(files["never"], threads=1) as once:
        assert min(confidence(p, 0.5) for p in once.infer_alone(pixels)) < 0.9999
        turns = [[once.infer_alone(view[None])[0] for view in (image, *turned(image))] for image in pixels]
    expected = np.stack([mean_of(views[0], np.stack(views[1:])) for views in turns])
    assert np.abs(expected.astype(int) - np.stack([views[0] for views in turns])).mean() > 0.2
    for threads in (1, 2):
        with cpu_runtime(files["always"], threads=threads) as again:
            for found in (again.infer(pixels), again.infer_alone(pixels), again.collect(again.submit(pixels))):
                # Sums of calls on several threads are rounded in another order.
                assert np.abs(found.astype(int) - expected).mean() < 0.05
