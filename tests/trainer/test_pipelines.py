"""DALI on the CPU: the geometry is Pillow's, the mask follows its image, and an epoch can be repeated."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from isicrt.engine.errors import DataError, TrainingError
from isicrt.engine.geometry import resize_image
from isicrt.trainer.cache import resized_pairs
from isicrt.trainer.dataset import Pair, check_pairs, find_pairs
from isicrt.trainer.pipelines import TrainingBatches, cache_size, epoch_seed
from isicrt.trainer.recipe import Augmentation

STILL = Augmentation(
    min_zoom=1,
    max_aspect=1,
    flip=False,
    rotate_probability=0,
    brightness=0,
    contrast=0,
    saturation=0,
    hue=0,
    max_noise=0,
)


def one_epoch(pairs: list[Pair], **settings) -> list[tuple[torch.Tensor, torch.Tensor]]:
    defaults = {"size": 64, "batch_size": 4, "augmentation": None, "seed": 1}
    return list(TrainingBatches(pairs, **(defaults | settings)))


def test_without_augmentation_pixels_are_those_of_the_resize_rule(rendered_pairs: Path) -> None:
    pairs = find_pairs(rendered_pairs)
    batches = TrainingBatches(pairs, size=64, batch_size=12, augmentation=None, seed=3)
    ((images, masks),) = list(batches)
    assert images.shape == (12, 64, 64, 3)
    assert images.dtype == torch.uint8
    assert masks.shape == (12, 1, 64, 64)
    assert masks.dtype == torch.float32
    for index, image, mask in zip(batches.order, images, masks, strict=True):
        expected = resize_image(np.asarray(Image.open(pairs[index].image).convert("RGB")), (64, 64))
        difference = np.abs(image.numpy().astype(int) - expected)
        assert difference.max() <= 8  # DALI and Pillow round differently, see docs/design.md
        assert difference.mean() < 0.5
        truth = Image.open(pairs[index].mask).resize((64, 64), Image.Resampling.NEAREST)
        assert (mask[0].numpy().astype(bool) == (np.asarray(truth) > 128)).mean() > 0.98


def test_a_mask_that_dali_does_not_know_is_told_how_to_save(rendered_pairs: Path, tmp_path: Path) -> None:
    pair = find_pairs(rendered_pairs)[0]
    mask = tmp_path / "mask.tif"
    with Image.open(pair.mask) as truth:
        truth.convert("1").save(mask)
    pairs = [Pair("a", pair.image, mask)]
    assert check_pairs(pairs).problems == []
    with pytest.raises(DataError, match=r"isicrt data check DIR\. If that finds none, .* save it as PNG"):
        one_epoch(pairs)
    assert len(one_epoch(pairs, resized=resized_pairs(pairs, 64, tmp_path))) == 1


@pytest.mark.parametrize(
    ("cached", "said", "kind", "message"),
    [
        (True, "Assert on ...", TrainingError, r"cannot prepare a batch of the images in the cache \(Assert on"),
        (True, "CUDA runtime API error cudaErrorMemoryAllocation (2)", TrainingError, "too little memory on the GPU"),
        (False, "CUDA runtime API error: out of memory", TrainingError, "Lower batch_size or input_size"),
        (False, "Assert on ...", DataError, "isicrt data check DIR"),
    ],
)
def test_an_error_of_dali_is_of_its_decoding_only_where_it_decodes(
    rendered_pairs: Path, tmp_path: Path, cached: bool, said: str, kind: type[Exception], message: str
) -> None:
    pairs = find_pairs(rendered_pairs)[:2]
    resized = resized_pairs(pairs, 32, tmp_path) if cached else None
    batches = TrainingBatches(pairs, size=32, batch_size=2, augmentation=None, seed=1, resized=resized)

    class Fails:
        def run(self) -> None:
            raise RuntimeError(said)

    batches._pipe = Fails()
    with pytest.raises(kind, match=message):
        list(batches)


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    """Images that are red where their mask is lesion and blue elsewhere: whatever moves one must move the other."""
    folder = tmp_path_factory.mktemp("marked")
    pairs = []
    for n in range(8):
        mask = np.zeros((90, 120), np.uint8)
        mask[20 : 50 + n, 15 : 70 + 2 * n] = 255
        image = np.where(mask[..., None] > 0, np.uint8([220, 10, 10]), np.uint8([10, 10, 220]))
        pair = Pair(f"ISIC_{n:07d}", folder / f"{n}.png", folder / f"{n}_m.png")
        Image.fromarray(image).save(pair.image)
        Image.fromarray(mask).save(pair.mask)
        pairs.append(pair)
    return pairs


@pytest.mark.parametrize(
    "moves",
    [
        {},
        {"flip": True},
        {"min_zoom": 0.5, "max_aspect": 1.5},
        {"rotate_probability": 1.0, "max_angle": 180.0},
        {"flip": True, "min_zoom": 0.5, "max_aspect": 1.5, "rotate_probability": 0.5, "max_noise": 5.0},
    ],
)
def test_image_and_mask_move_together_and_the_mask_keeps_two_values(marked: list[Pair], moves: dict) -> None:
    augmentation = dataclasses.replace(STILL, **moves)
    for images, masks in one_epoch(marked, augmentation=augmentation):
        assert set(masks.unique().tolist()) <= {0.0, 1.0}
        red = images[..., 0].float() > images[..., 2].float() + 40
        # Only the interpolated rim of the lesion may disagree.
        assert (red == masks[:, 0].bool()).float().mean() > 0.97


def test_augmentation_changes_pixels(marked: list[Pair]) -> None:
    (plain, _), *_ = one_epoch(marked, augmentation=STILL)
    for change in (
        {"brightness": 0.5},
        {"hue": 60.0},
        {"max_noise": 30.0},
        {"flip": True},
        {"min_zoom": 0.4},
        {"cast": 0.2},
        {"max_blur": 3.0},
        {"max_shear": 20.0},
        {"artefacts": {"hair": 1.0}},
    ):
        (changed, _), *_ = one_epoch(marked, augmentation=dataclasses.replace(STILL, **change))
        assert not torch.equal(plain, changed), change


@pytest.mark.parametrize("saturation", [0.0, 0.5])
def test_a_share_of_images_loses_its_colour_and_nothing_else(marked: list[Pair], saturation: float) -> None:
    jitter = dataclasses.replace(STILL, saturation=saturation)
    (plain, _), *_ = one_epoch(marked, augmentation=jitter, batch_size=8)
    (every, _), *_ = one_epoch(marked, augmentation=dataclasses.replace(jitter, grey=1.0), batch_size=8)
    assert (every.amax(-1) - every.amin(-1)).max() <= 1  # rounding
    luma = plain.float() @ torch.tensor([0.299, 0.587, 0.114])
    assert (every[..., 0] - luma).abs().max() < 4  # saturated colours are cut at 0 and 255
    (some, _), *_ = one_epoch(marked, augmentation=dataclasses.replace(jitter, grey=0.5), batch_size=8)
    colour = (some.amax(-1) - some.amin(-1)).flatten(1).amax(1) > 1
    assert 0 < colour.sum() < 8


def test_noise_is_gaussian_without_a_bias_and_of_another_strength_for_each_image(tmp_path: Path) -> None:
    pairs = []
    for number in range(8):
        image, mask = tmp_path / f"{number}.png", tmp_path / f"{number}-mask.png"
        Image.new("RGB", (64, 64), (100, 120, 140)).save(image)
        Image.new("L", (64, 64)).save(mask)
        pairs.append(Pair(str(number), image, mask))
    augmentation = dataclasses.replace(STILL, max_noise=12.0)
    (noisy, _), *_ = one_epoch(pairs, augmentation=augmentation, batch_size=8)
    noise = noisy.float() - torch.tensor([100.0, 120.0, 140.0])
    spreads = noise.flatten(1).std(1)
    assert spreads.max() < 13
    assert len(spreads.unique()) == 8
    for image, spread in zip(noise, spreads, strict=True):
        assert abs(image.mean()) < 0.05 * max(spread, 1)
        if spread > 2:  # rounding to levels is no matter then
            assert (image.abs() < spread).float().mean() == pytest.approx(0.683, abs=0.06)


def test_corners_that_rotate_in_are_black_background(marked: list[Pair]) -> None:
    augmentation = dataclasses.replace(STILL, rotate_probability=1.0, max_angle=180.0, contrast=0.5)
    images, masks = one_epoch(marked, augmentation=augmentation, batch_size=8)[0]
    black = images.sum(-1) == 0
    assert black.any()
    assert masks[:, 0][black].max() == 0


def test_a_window_larger_than_the_image_shows_it_smaller(marked: list[Pair]) -> None:
    (_, plain), *_ = one_epoch(marked, augmentation=STILL, batch_size=8)
    (_, small), *_ = one_epoch(
        marked, augmentation=dataclasses.replace(STILL, min_zoom=0.999, max_zoom=2), batch_size=8
    )
    assert 0.2 < small.sum() / plain.sum() < 0.9


def test_a_reflected_border_leaves_no_black(marked: list[Pair]) -> None:
    moves = {"rotate_probability": 1.0, "max_angle": 180.0, "max_zoom": 1.5, "border": "reflect"}
    images, masks = one_epoch(marked, augmentation=dataclasses.replace(STILL, **moves), batch_size=8)[0]
    assert images.amax(-1).min() > 100
    red = images[..., 0].float() > images[..., 2].float() + 40
    assert (red == masks[:, 0].bool()).float().mean() > 0.97  # the mirrored lesion is lesion


def test_what_covers_skin_is_no_lesion(marked: list[Pair]) -> None:
    pairs = [dataclasses.replace(pair, image=pair.mask) for pair in marked]  # white where there is lesion
    close = dataclasses.replace(STILL, min_zoom=0.3)
    (_, plain), *_ = one_epoch(pairs, augmentation=close, batch_size=8)
    covered = dataclasses.replace(close, artefacts={"sticker": 1.0, "vignette": 1.0})
    (images, masks), *_ = one_epoch(pairs, augmentation=covered, batch_size=8)
    assert masks.sum() < plain.sum()
    dark_or_coloured = images.amin(-1) < 200
    assert dark_or_coloured[masks[:, 0] == 0].float().mean() > 0.95


def test_the_cache_gives_the_epoch_that_the_files_give(marked: list[Pair], tmp_path: Path) -> None:
    resized = resized_pairs(marked, cache_size(64), tmp_path)
    moves = dataclasses.replace(STILL, flip=True, min_zoom=0.6, rotate_probability=0.5)
    for a, b in zip(
        one_epoch(marked, augmentation=moves), one_epoch(marked, augmentation=moves, resized=resized), strict=True
    ):
        assert (a[0].float() - b[0].float()).abs().mean() < 3
        assert (a[1] == b[1]).float().mean() > 0.98


def test_same_seed_same_epoch_other_seed_other_epoch(marked: list[Pair]) -> None:
    first, again, other = (one_epoch(marked, augmentation=Augmentation(), seed=epoch_seed(0, e)) for e in (4, 4, 5))
    assert all(torch.equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True))
    assert not torch.equal(first[0][0], other[0][0])


def test_epoch_seeds_differ_and_suit_dali() -> None:
    seeds = [epoch_seed(s, e) for s in range(5) for e in range(40)]
    assert len(set(seeds)) == 200
    assert all(0 < s < 2**31 for s in seeds)


def test_each_pair_comes_once_and_the_rest_of_a_batch_is_dropped(marked: list[Pair]) -> None:
    batches = TrainingBatches(marked, size=32, batch_size=3, augmentation=None, seed=0)
    assert len(batches) == 2
    assert [len(images) for images, _ in batches] == [3, 3]
    assert sorted(batches.order) == list(range(8))
    few = TrainingBatches(marked[:2], size=32, batch_size=16, augmentation=None, seed=0)
    assert [len(images) for images, _ in few] == [2]


def test_a_bad_file_says_how_to_find_it(marked: list[Pair], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"this is no image")
    with pytest.raises(DataError, match="isicrt data check"):
        one_epoch([Pair("x", bad, marked[0].mask)])
    with pytest.raises(DataError, match=r"missing\.jpg: cannot be read"):
        one_epoch([Pair("x", tmp_path / "missing.jpg", marked[0].mask)])


@pytest.mark.gpu
def test_gpu_decoding_agrees_with_the_cpu(rendered_pairs: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    pairs = find_pairs(rendered_pairs)
    (cpu, cpu_masks), *_ = one_epoch(pairs, augmentation=None)
    (gpu, gpu_masks), *_ = one_epoch(pairs, augmentation=None, device="cuda")
    assert gpu.is_cuda
    assert (cpu.float() - gpu.cpu().float()).abs().mean() < 1.0
    assert torch.equal(cpu_masks, gpu_masks.cpu())
