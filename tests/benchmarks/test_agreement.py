from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest

from isicrt.benchmarks import agreement as agreement_module
from isicrt.benchmarks.agreement import Agreement, ImageAgreement, Limits, Masker, cpu_masker, measure_agreement
from isicrt.engine.errors import DataError, ImageError
from isicrt.engine.masks import Mask, restore_mask, write_mask
from isicrt.engine.onnx_runtime import OnnxRuntime
from tests.engine.stand_ins import PipelinedOnnx
from tests.tiny_models import write_darkness_model


def _masker(*masks: Mask | ImageError) -> Masker:
    rows = iter(masks)
    return lambda files: [next(rows) for _ in files]


def _mask(lesion: int, shape: tuple[int, int] = (2, 5)) -> Mask:
    mask = np.zeros(shape, bool)
    mask.ravel()[:lesion] = True
    return mask


def _measure(reference: Masker, candidate: Masker, count: int, truths: dict[PurePath, Path] | None = None) -> Agreement:
    names = [PurePath(f"{n}.png") for n in range(count)]
    return measure_agreement(
        reference, candidate, [Path(f"{n}.jpg") for n in range(count)], names, truths or {}, chunk=2
    )


def test_figures_of_pairs_of_masks() -> None:
    agreement = _measure(_masker(_mask(4), _mask(8), _mask(0)), _masker(_mask(4), _mask(4), _mask(0)), 3)
    assert [image.jaccard for image in agreement.images] == [1.0, 0.5, 1.0]
    assert [image.pixels_differing for image in agreement.images] == [0, 4, 0]
    assert agreement.jaccard_mean == pytest.approx(2.5 / 3)
    assert agreement.jaccard_min == 0.5
    assert agreement.differing_share == pytest.approx(0.4 / 3)
    assert agreement.identical == 2
    assert [image.name for image in agreement.worst(5)] == ["1"]
    assert agreement.worst(0) == []
    assert (agreement.scores, agreement.change) == (None, None)


def test_scores_with_the_ground_truth_are_means_over_the_images_that_have_one(tmp_path: Path) -> None:
    write_mask(_mask(4), tmp_path / "0.png")
    write_mask(_mask(9, (3, 3)), tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    truths = {PurePath(f"{n}.png"): tmp_path / f"{n}.png" for n in range(3)}
    same = [_mask(2)] * 4
    agreement = _measure(_masker(*same), _masker(_mask(4), *same[1:]), 4, truths)
    assert agreement.scores == (0.5, 1.0)
    assert agreement.change == 0.5
    assert agreement.scored == 1
    assert [
        str(tmp_path / name) in text for name, text in zip(("1.png", "2.png"), agreement.left_out, strict=True)
    ] == [
        True,
        True,
    ]


def test_images_that_cannot_be_read_are_left_out_by_name() -> None:
    broken = ImageError("1.jpg: broken")
    agreement = _measure(_masker(_mask(1), broken, _mask(1)), _masker(_mask(1), broken, ImageError("2.jpg: gone")), 3)
    assert len(agreement.images) == 1
    assert agreement.left_out == ("1.jpg: broken", "2.jpg: gone")
    with pytest.raises(DataError, match=r"(?s)none of the images could be read.*1\.jpg: broken"):
        _measure(_masker(broken), _masker(broken), 1)


def test_masks_of_two_pixel_grids_are_an_error() -> None:
    with pytest.raises(DataError, match="two see different pixel grids"):
        _measure(_masker(_mask(1, (2, 5))), _masker(_mask(1, (5, 2))), 1)


@pytest.mark.parametrize(
    ("jaccard", "scores", "problems"),
    [
        (0.995, (0.9, 0.9009), []),
        (0.995, (None, None), []),
        (0.99499, (0.9, 0.9), ["mean Jaccard index of the masks 0.99499, at least 0.995 wanted"]),
        (1.0, (0.9, 0.8989), ["the score changes by -0.00110, less than 0.001 wanted"]),
        (0.5, (0.5, 0.6), ["mean Jaccard index", "the score changes by +0.10000"]),
    ],
)
def test_limits(jaccard: float, scores: tuple[float | None, float | None], problems: Sequence[str]) -> None:
    found = Agreement((ImageAgreement("a", jaccard, 1, 10, *scores),)).problems(Limits())
    assert len(found) == len(problems)
    assert all(text.startswith(start) for text, start in zip(found, problems, strict=True))


def test_runtimes_of_different_input_sizes_are_compared_at_the_images_own(
    darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path
) -> None:
    write_darkness_model(tmp_path / "large.onnx", (96, 128))
    files = sorted((rendered_pairs / "images").iterdir())[:4]
    names = [PurePath(file.stem + ".png") for file in files]
    with OnnxRuntime(darkness_onnx) as small, OnnxRuntime(tmp_path / "large.onnx") as large:
        same = measure_agreement(cpu_masker(small), cpu_masker(small), files, names, {})
        other = measure_agreement(cpu_masker(small), cpu_masker(large), files, names, {})
    assert (same.jaccard_min, same.identical) == (1.0, 4)
    assert 0 < other.jaccard_min < other.jaccard_mean < 1
    assert [image.pixels for image in other.images] == [120 * 90, 96 * 128] * 2


def test_a_plan_gets_full_batches_and_the_masks_stay_in_order(darkness_onnx: Path, rendered_pairs: Path) -> None:
    files = sorted((rendered_pairs / "images").iterdir())[:7]
    files.insert(2, rendered_pairs / "no such.jpg")
    with OnnxRuntime(darkness_onnx) as onnx, PipelinedOnnx(darkness_onnx, depth=2, max_batch=3) as plan:
        started: list[int] = []
        for slot in plan.slots:
            start = slot.start
            slot.start = lambda images, start=start: (started.append(len(images)), start(images))  # type: ignore
        expected, found = list(cpu_masker(onnx)(files)), list(cpu_masker(plan)(files))
    assert started == [3, 3, 1]
    for one, other in zip(expected, found, strict=True):
        if isinstance(one, ImageError):
            assert str(one) == str(other)
        else:
            np.testing.assert_array_equal(one, other)
    assert isinstance(found[2], ImageError)
    assert isinstance(expected[2], ImageError)


def test_of_a_large_batch_no_more_than_two_masks_of_each_are_there_at_a_time() -> None:
    """One that is compared, and the next; 256 photographs of 12 megapixels would have 3 GB of them each."""
    alive: list[weakref.ref[Mask]] = []
    most = 0

    def segment(files: Sequence[Path]) -> Iterator[Mask]:
        nonlocal most
        for _ in files:
            mask = _mask(3)
            alive.append(weakref.ref(mask))
            most = max(most, sum(one() is not None for one in alive))
            yield mask
            del mask

    names = [PurePath(f"{n}.png") for n in range(64)]
    agreement = measure_agreement(segment, segment, [Path(name) for name in names], names, {}, chunk=64)
    assert (len(agreement.images), agreement.identical) == (64, 64)
    assert most <= 4


def test_a_mask_is_restored_when_it_is_its_turn(
    darkness_onnx: Path, rendered_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted((rendered_pairs / "images").iterdir())[:5]
    restored: list[Mask] = []

    def restore(*arguments: Any, **options: Any) -> Mask:
        restored.append(restore_mask(*arguments, **options))
        return restored[-1]

    monkeypatch.setattr(agreement_module, "restore_mask", restore)
    with PipelinedOnnx(darkness_onnx, depth=2, max_batch=3) as plan:
        masks = iter(cpu_masker(plan)(files))
        assert restored == []
        first = plan.infer(np.zeros((3, 64, 64, 3), np.uint8))  # nothing of it is in flight
    assert len(first) == 3
    assert next(masks) is restored[0]
    assert [len(restored), len(list(masks)), len(restored)] == [1, 4, 5]
