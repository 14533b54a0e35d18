"""The report's protocol: cases worked by hand, equality with torch and torchvision, and what it does to scores."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from isicrt.benchmarks.rendered import render
from isicrt.benchmarks.report_protocol import ReportProtocol, coarse_mask, coarse_overlap, grown_truth
from isicrt.engine.errors import DataError
from isicrt.engine.geometry import UInt8Array, resize_image
from isicrt.engine.images import read_image, read_mask
from isicrt.engine.masks import Mask
from isicrt.engine.scores import score_mask
from tests.tiny_models import darkness_card


def _pixels(*lesion: tuple[int, int], size: int = 8, level: int = 255) -> UInt8Array:
    mask = np.zeros((size, size), np.uint8)
    for y, x in lesion:
        mask[y, x] = level
    return mask


# From 8 to 4 pixels the triangle filter is two pixels wide to each side: pixel 3 has weight 3/8 in output 1 and 1/8 in
# output 2, and none in 0 and 3. The mean of 2 x 2 then makes 2 of 4.
@pytest.mark.parametrize(
    ("levels", "truth"),
    [
        pytest.param(_pixels(), "00 00", id="nothing"),
        pytest.param(_pixels((3, 3)), "11 11", id="one_pixel_of_64_is_all_of_it"),  # 255 x (1/8)^2 = 4
        pytest.param(_pixels((0, 0)), "10 00", id="corner"),
        pytest.param(_pixels((2, 2)), "10 00", id="pixel_2_is_in_outputs_0_and_1"),
        pytest.param(_pixels((0, 3)), "11 00", id="an_edge_is_crossed"),
        pytest.param(_pixels((3, 3), level=7), "10 00", id="rounded_away_on_one_side"),  # 7 x 9/64 = 1; 7 x 3/64 = 0
        pytest.param(_pixels((3, 3), level=3), "00 00", id="rounded_away"),  # 3 x 9/64 = 0.4
    ],
)
def test_truth_by_hand(levels: UInt8Array, truth: str) -> None:
    expected = [[c == "1" for c in row] for row in truth.split()]
    assert grown_truth(levels, side=4).tolist() == expected


@pytest.mark.parametrize(
    ("block", "lesion"),
    [
        ([[255, 255], [0, 0]], False),  # 127.5 is not above 0.5
        ([[255, 255], [1, 0]], True),
        ([[128, 128], [128, 128]], True),
        ([[127, 127], [127, 127]], False),
        ([[255, 255], [255, 0]], True),
    ],
)
def test_prediction_by_hand(block: list[list[int]], lesion: bool) -> None:
    probability = np.zeros((4, 4), np.uint8)
    probability[2:, :2] = block
    assert coarse_mask(probability, side=4).tolist() == [[False, False], [lesion, False]]


@pytest.mark.parametrize("size", [(64, 64), (192, 192), (224, 224), (320, 256), (32, 32)])
def test_prediction_of_models_of_other_sizes(size: tuple[int, int]) -> None:
    probability = np.zeros(size, np.uint8)
    probability[: size[0] // 2] = 200
    assert np.array_equal(coarse_mask(probability), np.repeat(np.arange(64) < 32, 64).reshape(64, 64))


A, B = [[True, False], [False, False]], [[True, True], [True, True]]
EMPTY = [[False, False], [False, False]]


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        (A, A, (1.0, 1.0)),
        (A, B, (0.25, float(np.float32(0.4)))),
        (B, A, (0.25, float(np.float32(0.4)))),
        (EMPTY, A, (0.0, 0.0)),
        (EMPTY, EMPTY, (1.0, 1.0)),
    ],
)
def test_overlap_by_hand(prediction: list[list[bool]], truth: list[list[bool]], expected: tuple[float, float]) -> None:
    overlap = coarse_overlap(np.array(prediction), np.array(truth))
    assert (overlap.jaccard, overlap.dice) == expected


def test_truth_and_scores_equal_torch_to_the_bit(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("torchvision.transforms")
    resize = transforms.Compose([transforms.Resize((128, 128)), transforms.ToTensor()])
    protocol = ReportProtocol()
    rng = np.random.default_rng(3)
    for seed, size in enumerate([(96, 131), (200, 150), (128, 128), (301, 402), (60, 50)]):
        _, mask = render(seed, size)
        path = tmp_path / f"{seed}.png"
        Image.fromarray(mask).save(path)
        tensor = resize(Image.open(path).convert("L"))[None]
        theirs = torch.nn.functional.interpolate(tensor, size=(64, 64), mode="bilinear", align_corners=False).bool()
        truth, native = protocol.read_truth(path)
        assert native == size
        assert np.array_equal(truth, theirs[0, 0].numpy())
        guess = truth ^ (rng.random(truth.shape) < 0.1)
        p, t = torch.from_numpy(guess), theirs[0, 0]
        both, either = (p & t).sum(), (p | t).sum()
        scores = protocol.score(guess, truth)
        assert scores.jaccard == (both / either).item()
        assert scores.dice == (2.0 * both / (p.sum() + t.sum())).item()


def test_the_image_is_what_pillow_makes_of_it(tmp_path: Path) -> None:
    image, _ = render(5, (600, 800))
    Image.fromarray(image).save(tmp_path / "a.jpg", quality=90)
    expected = Image.open(tmp_path / "a.jpg").convert("RGB").resize((128, 128), Image.Resampling.BILINEAR)
    decoded = ReportProtocol().decode(tmp_path / "a.jpg", (128, 128))
    assert decoded.native_size == (600, 800)
    assert np.array_equal(decoded.pixels, np.asarray(expected))


@pytest.mark.parametrize("mode", ["1", "L"])
def test_masks_of_either_depth(tmp_path: Path, mode: str) -> None:
    _, mask = render(1, (90, 120))
    Image.fromarray(mask).convert(mode).save(tmp_path / "m.png")
    assert np.array_equal(ReportProtocol().read_truth(tmp_path / "m.png")[0], grown_truth(mask))


def test_a_truth_with_colours_is_refused(tmp_path: Path) -> None:
    image, _ = render(1, (40, 40))
    Image.fromarray(image).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"m\.png: a mask must be greyscale"):
        ReportProtocol().read_truth(tmp_path / "m.png")


@pytest.mark.parametrize(
    ("size", "said"), [((128, 128), "128 x 128 px"), ((192, 192), "192 x 192 px in place of the report's 128")]
)
def test_it_says_what_the_model_was_fed(size: tuple[int, int], said: str) -> None:
    assert ReportProtocol().describe_input(darkness_card(size)) == said


def test_the_card_changes_neither_threshold_nor_clean_up() -> None:
    card = darkness_card(threshold=0.9, keep_largest=True, fill_holes=True)
    protocol = ReportProtocol()
    assert (protocol.threshold(card), protocol.clean_up(card)) == (0.5, ())
    specks = np.zeros((128, 128), np.uint8)
    specks[:4, :4] = specks[100:102, 100:102] = 140
    assert protocol.mask(specks, (500, 500), card).sum() == 5


def _scores(masks: list[Mask], predictions: list[Mask]) -> tuple[float, float]:
    """Mean Jaccard index at the masks' own size, and by the report's protocol."""
    native = [score_mask(p, m).jaccard for p, m in zip(predictions, masks, strict=True)]
    report = []
    for prediction, mask in zip(predictions, masks, strict=True):
        truth = grown_truth(mask.astype(np.uint8) * 255)
        probability = resize_image(np.repeat(prediction.astype(np.uint8)[..., None] * 255, 3, axis=2), (128, 128))
        report.append(coarse_overlap(coarse_mask(probability[..., 0]), truth).jaccard)
    return float(np.mean(native)), float(np.mean(report))


def _shifted(mask: Mask) -> Mask:
    return np.roll(mask, (round(np.sqrt(mask.sum()) * 0.058),) * 2, (0, 1))


def _grown(mask: Mask, share: float) -> Mask:
    radius = max(1, round(abs(share) * np.sqrt(mask.sum() / np.pi)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    change = cv2.dilate if share > 0 else cv2.erode
    return np.asarray(change(mask.astype(np.uint8), disc) > 0)


def _check_what_it_does(masks: list[Mask]) -> None:
    native, perfect = _scores(masks, masks)
    assert native == 1
    assert 0.85 < perfect < 0.92, "even a perfect mask does not reach 1"
    native, report = _scores(masks, [_shifted(m) for m in masks])
    assert 0.80 < native < 0.85
    assert native - 0.04 < report < native
    native, report = _scores(masks, [_grown(m, -0.09) for m in masks])
    assert report < native - 0.05, "masks that are too small are punished"
    native, report = _scores(masks, [_grown(m, 0.09) for m in masks])
    assert report > native + 0.05, "masks that are too large are rewarded"


def test_what_it_does_to_scores() -> None:
    _check_what_it_does([render(seed, (255, 341))[1] > 0 for seed in range(10)])


def test_what_it_does_to_scores_of_real_lesions(real_data: Path) -> None:
    masks = sorted((real_data / "isic2016" / "train" / "masks").glob("*.png"))[::32]
    _check_what_it_does([read_mask(path) for path in masks])
    image = real_data / "isic2016" / "train" / "images" / masks[0].name.replace("_Segmentation.png", ".jpg")
    assert np.array_equal(read_image(image), np.asarray(Image.open(image).convert("RGB")))
