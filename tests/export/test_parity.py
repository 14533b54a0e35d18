from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest

from isicrt.engine.errors import BuildError
from isicrt.engine.geometry import UInt8Array
from isicrt.export.onnx_export import Deployed, export_onnx
from isicrt.export.parity import Compute, Levels, OnnxLevels, Parity, Sample, measure_parity, require_parity
from tests.export.tiny_network import tiny_card, tiny_network

_BLACK = np.zeros((2, 2, 3), np.uint8)


def _fixed(*images: list[float]) -> Compute:
    """Gives these levels, 2 x 2 each, whatever the pixels."""
    rows = iter(images)

    def compute(batch: UInt8Array) -> Levels:
        return np.array([next(rows) for _ in batch], np.float32).reshape(-1, 2, 2)

    return compute


def _measure(reference: Compute, candidate: Compute, samples: list[Sample]) -> Parity:
    card = tiny_card(keep_largest=False, fill_holes=False)
    return measure_parity(("a", reference), ("b", candidate), samples, card, source="images of a test")


def test_equal_answers_differ_in_nothing() -> None:
    levels = [0.0, 100.0, 200.0, 255.0]
    parity = _measure(_fixed(levels), _fixed(levels), [Sample("one", _BLACK)])
    assert (parity.disagreement_mean, parity.difference_max, parity.non_finite) == (0, 0, 0)
    assert parity.jaccard_change is None
    require_parity(parity)


def test_disagreement_is_a_share_of_pixels_by_image() -> None:
    # One of four pixels crosses the threshold in the second image; none in the first, though it moves as far.
    reference = _fixed([0, 0, 200, 200], [0, 127, 200, 200])
    candidate = _fixed([51, 0, 200, 200], [0, 178, 200, 200])
    parity = _measure(reference, candidate, [Sample("a", _BLACK), Sample("b", _BLACK)])
    assert (parity.disagreement_mean, parity.disagreement_max) == (0.125, 0.25)
    assert parity.difference_max == pytest.approx(0.2)
    assert parity.difference_median == 0
    assert parity.images == 2


@pytest.mark.parametrize(("level", "lesion"), [(127.4, False), (127.6, True)])
def test_levels_are_rounded_before_the_threshold_as_the_file_rounds_them(level: float, lesion: bool) -> None:
    parity = _measure(_fixed([255.0] * 4), _fixed([level] * 4), [Sample("a", _BLACK)])
    assert parity.disagreement_mean == (0.0 if lesion else 1.0)


def test_the_jaccard_index_is_that_of_masks_at_the_images_own_size() -> None:
    truth = np.zeros((4, 4), bool)
    truth[:, 2:] = True
    parity = _measure(
        _fixed([0, 255, 0, 255], [0, 0, 0, 0]),
        _fixed([0, 0, 0, 255], [0, 0, 0, 0]),
        [Sample("with", _BLACK, truth), Sample("without", _BLACK)],
    )
    assert parity.images_with_truth == 1
    assert parity.jaccard_reference == 1.0
    assert parity.jaccard_candidate is not None
    assert 0.3 < parity.jaccard_candidate < 0.8
    assert parity.jaccard_change == parity.jaccard_candidate - 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted_and_refused(value: float) -> None:
    parity = _measure(_fixed([0.0] * 4), _fixed([0, value, value, 0]), [Sample("a", _BLACK)])
    assert parity.non_finite == 2
    assert np.isfinite(parity.difference_max)
    with pytest.raises(BuildError, match="2 probabilities are not finite"):
        require_parity(parity)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_reference_that_is_not_finite_proves_nothing(value: float) -> None:
    broken, message = [0, value, value, 0], "2 probabilities of a itself are not finite on images of a test"
    with pytest.raises(BuildError, match=message):
        _measure(_fixed(broken), _fixed(broken), [Sample("a", _BLACK)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"disagreement_mean": 0.0051}, r"masks differ in 0\.51% of the pixels"),
        ({"jaccard_reference": 0.9, "jaccard_candidate": 0.8949}, r"Jaccard index changes by -0\.0051"),
        ({"jaccard_reference": 0.9, "jaccard_candidate": 0.9051}, r"Jaccard index changes by \+0\.0051"),
    ],
)
def test_limits(changes: dict[str, Any], message: str) -> None:
    good = dataclasses.replace(
        _measure(_fixed([0.0] * 4), _fixed([0.0] * 4), [Sample("a", _BLACK)]),
        disagreement_mean=0.0049,
        jaccard_reference=0.9,
        jaccard_candidate=0.8951,
    )
    require_parity(good)
    with pytest.raises(BuildError, match=message + ".*Try --fp32"):
        require_parity(dataclasses.replace(good, **changes))


def test_no_image_is_an_error() -> None:
    with pytest.raises(BuildError, match="no image"):
        _measure(_fixed(), _fixed(), [])


def test_every_image_is_seen_once_in_batches_of_several_sizes() -> None:
    sizes: list[int] = []

    def compute(batch: UInt8Array) -> Levels:
        sizes.append(len(batch))
        return np.zeros((len(batch), 2, 2), np.float32)

    seen: list[float] = []
    measure_parity(
        ("a", compute),
        ("b", lambda batch: np.zeros((len(batch), 2, 2), np.float32)),
        [Sample(str(n), _BLACK) for n in range(14)],
        tiny_card(),
        source="",
        on_progress=seen.append,
    )
    assert sizes == [1, 3, 8, 2]
    assert seen == pytest.approx([1 / 14, 4 / 14, 12 / 14, 1])


def test_half_of_a_real_graph_passes_and_its_record_fits_a_card(
    tiny_onnx: onnx.ModelProto, samples: list[Sample]
) -> None:
    reference, candidate = OnnxLevels(tiny_onnx), OnnxLevels(tiny_onnx, rehearse_half=True)
    parity = measure_parity(("fp32", reference), ("fp16", candidate), samples, tiny_card(), source="rendered")
    require_parity(parity)
    assert 0 < parity.difference_max < 0.02
    assert parity.largest_activation is not None
    assert 1 < parity.largest_activation < 1000
    assert '"jaccard_change"' in tiny_card(parity=parity.to_dict()).to_json()


def test_an_overflow_in_half_names_the_convolution(samples: list[Sample]) -> None:
    card = tiny_card()
    model = export_onnx(Deployed(tiny_network(gain=6e4), card).eval(), card)
    with pytest.raises(BuildError, match=r"FP16: '.+' gives values beyond 65504.*Build with --fp32"):
        measure_parity(
            ("fp32", OnnxLevels(model)), ("fp16", OnnxLevels(model, rehearse_half=True)), samples, card, source="test"
        )
