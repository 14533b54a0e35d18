"""The gate: does what was built give the masks of what was trained, on images?

Compared are probabilities and masks at the network's resolution, and, where there is ground truth, the Jaccard index
of the finished masks at the image's own size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from isicrt.engine.card import ModelCard
from isicrt.engine.errors import BuildError, DataError
from isicrt.engine.geometry import UInt8Array, cutoff
from isicrt.engine.images import decode_image, read_mask
from isicrt.engine.masks import Mask, restore_mask
from isicrt.engine.onnx_runtime import set_exact_sums
from isicrt.engine.scores import score_mask
from isicrt.engine.silent_imports import import_onnxruntime
from isicrt.export.half import anchors, round_through_half
from isicrt.export.onnx_graph import expose_levels

MAX_DISAGREEMENT = 0.005
"""Of the pixels, in the mean over the images."""
MAX_JACCARD_CHANGE = 0.005
"""Of the mean Jaccard index, either way."""

Levels = npt.NDArray[np.float32]
"""N x H x W, probability times 255, not rounded."""
Compute = Callable[[UInt8Array], Levels]
"""From uint8 N x H x W x 3."""


@dataclass(frozen=True)
class Sample:
    """An image to compare on."""

    name: str
    pixels: UInt8Array
    """uint8, h x w x 3, at the model's input size."""
    truth: Mask | None = None
    """bool, H x W, at the image's own size."""


def read_sample(image: Path, truth: Path | None, size: tuple[int, int]) -> Sample:
    """An image at a model's input `size`, (height, width), and its ground truth.

    Raises:
        DataError: one that cannot be read, or a truth of another size than its image.
    """
    decoded, mask = decode_image(image, size), read_mask(truth) if truth is not None else None
    if mask is not None and mask.shape != decoded.native_size:
        (height, width), (rows, columns) = mask.shape, decoded.native_size
        raise DataError(f"{truth}: is {width} x {height}, its image {columns} x {rows}")
    return Sample(image.name, decoded.pixels, mask)


@dataclass(frozen=True)
class Parity:
    """How far a candidate is from its reference."""

    reference: str
    candidate: str
    source: str
    """Which images, for people."""
    images: int
    disagreement_mean: float
    """Share of the pixels whose mask differs, 0..1; mean over the images."""
    disagreement_max: float
    difference_median: float
    """Of the probability, 0..1, over all pixels."""
    difference_p99: float
    difference_max: float
    non_finite: int
    """Candidate's pixels that are not a number or infinite."""
    largest_activation: float | None
    """The largest value that a convolution of a half graph gave, of 65504; None for a float32 graph."""
    images_with_truth: int
    jaccard_reference: float | None
    jaccard_candidate: float | None

    @property
    def jaccard_change(self) -> float | None:
        """Candidate minus reference; None without ground truth."""
        if self.jaccard_reference is None or self.jaccard_candidate is None:
            return None
        return self.jaccard_candidate - self.jaccard_reference

    def to_dict(self) -> dict[str, Any]:
        """For the model card."""
        return asdict(self) | {"jaccard_change": self.jaccard_change}


class OnnxLevels:
    """An ONNX graph on ONNX Runtime, with its output before it is rounded.

    Args:
        model: of ours, in any precision.
        rehearse_half: of a float32 graph, compute what its half version computes, see `round_through_half`.
    """

    def __init__(self, model: onnx.ModelProto, *, rehearse_half: bool = False) -> None:
        onnxruntime = import_onnxruntime()

        self._peaks = np.zeros(0, np.float32)
        self._anchors = anchors(model)
        peaks: list[str] = []
        if rehearse_half:
            model, name = round_through_half(model)
            peaks = [name]
        else:
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            model = copy
        self._outputs = [expose_levels(model), *peaks]
        self._input = model.graph.input[0].name
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        set_exact_sums(options)
        self._session: Any = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, images: UInt8Array) -> Levels:
        levels, *peaks = self._session.run(self._outputs, {self._input: images})
        if peaks:
            self._peaks = np.maximum(self._peaks, peaks[0]) if self._peaks.size else peaks[0]
        result: Levels = levels
        return result

    @property
    def largest_activation(self) -> tuple[float, str] | None:
        """The largest value that a convolution gave so far, and its node; None unless half is rehearsed."""
        if not self._peaks.size:
            return None
        worst = int(np.argmax(np.where(np.isfinite(self._peaks), self._peaks, np.inf)))
        return float(self._peaks[worst]), self._anchors[worst]


def measure_parity(
    reference: tuple[str, Compute],
    candidate: tuple[str, Compute],
    samples: Sequence[Sample],
    card: ModelCard,
    *,
    source: str,
    on_progress: Callable[[float], None] | None = None,
) -> Parity:
    """Run both on the same images.

    Args:
        reference: what it is called, and what computes it.
        candidate: the same.
        samples: at least one.
        card: gives threshold and post-processing.
        source: of the images, for people.
        on_progress: called with 0..1.

    Raises:
        BuildError: there is no image, the reference is not finite, or the largest activation of a half graph is not.
    """
    if not samples:
        raise BuildError("parity: there is no image to compare on")
    level = cutoff(card.threshold)
    disagreements: list[float] = []
    differences: list[Levels] = []
    jaccards: list[tuple[float, float]] = []
    non_finite = done = 0
    for batch in _batches(samples):
        images = np.stack([sample.pixels for sample in batch])
        expected, found = _expected(reference, images, source), candidate[1](images)
        bad = ~np.isfinite(found)
        non_finite += int(bad.sum())
        found = np.where(bad, np.float32(0), found)
        expected_levels, found_levels = (np.rint(x).astype(np.uint8) for x in (expected, found))
        differences.append(np.abs(expected - found).ravel() / np.float32(255))
        disagreements += ((expected_levels >= level) != (found_levels >= level)).mean(axis=(1, 2)).tolist()
        for sample, *pair in zip(batch, expected_levels, found_levels, strict=True):
            if sample.truth is not None:
                jaccards.append((_jaccard(pair[0], sample.truth, card), _jaccard(pair[1], sample.truth, card)))
        done += len(batch)
        if on_progress:
            on_progress(done / len(samples))
    compute = candidate[1]
    largest = compute.largest_activation if isinstance(compute, OnnxLevels) else None
    if largest is not None and not np.isfinite(largest[0]):
        raise BuildError(
            f"FP16: '{largest[1]}' gives values beyond 65504, the end of half precision, on these images "
            f"({source}). Build with --fp32, or train again with smaller activations (weight decay, batch norm)."
        )
    difference = np.concatenate(differences)
    means = np.mean(jaccards, axis=0).tolist() if jaccards else [None, None]
    return Parity(
        reference=reference[0],
        candidate=candidate[0],
        source=source,
        images=len(samples),
        disagreement_mean=float(np.mean(disagreements)),
        disagreement_max=float(np.max(disagreements)),
        difference_median=float(np.median(difference)),
        difference_p99=float(np.quantile(difference, 0.99)),
        difference_max=float(difference.max()),
        non_finite=non_finite,
        largest_activation=largest[0] if largest else None,
        images_with_truth=len(jaccards),
        jaccard_reference=means[0],
        jaccard_candidate=means[1],
    )


def require_finite(reference: tuple[str, Compute], samples: Sequence[Sample], *, source: str) -> None:
    """Raise BuildError if what is compiled as it came, and so compared with nothing, gives what is no number."""
    for batch in _batches(samples):
        _expected(reference, np.stack([sample.pixels for sample in batch]), source)


def _expected(reference: tuple[str, Compute], images: UInt8Array, source: str) -> Levels:
    levels = reference[1](images)
    if bad := int((~np.isfinite(levels)).sum()):
        raise BuildError(
            f"parity: {bad} probabilities of {reference[0]} itself are not finite on {source}. Nothing was written. "
            "Its weights are damaged, or its training went astray: take another checkpoint, or train again."
        )
    return levels


def _batches(samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    """One, three, then eights: a batch that was baked into a graph shows."""
    start, sizes = 0, iter((1, 3))
    while start < len(samples):
        size = next(sizes, 8)
        yield samples[start : start + size]
        start += size


def _jaccard(probability: UInt8Array, truth: Mask, card: ModelCard) -> float:
    size = (truth.shape[0], truth.shape[1])
    mask = restore_mask(probability, size, threshold=card.threshold, **card.clean_up)
    return score_mask(mask, truth).jaccard


def require_parity(parity: Parity) -> None:
    """Raise BuildError if a limit is passed; the message says which and what to try."""
    problems = []
    if parity.non_finite:
        problems.append(f"{parity.non_finite} probabilities are not finite")
    if parity.disagreement_mean > MAX_DISAGREEMENT:
        problems.append(
            f"the masks differ in {parity.disagreement_mean:.2%} of the pixels (limit {MAX_DISAGREEMENT:.1%})"
        )
    if parity.jaccard_change is not None and abs(parity.jaccard_change) > MAX_JACCARD_CHANGE:
        problems.append(f"the Jaccard index changes by {parity.jaccard_change:+.4f} (limit {MAX_JACCARD_CHANGE})")
    if problems:
        raise BuildError(
            f"parity: {parity.candidate} does not give the masks of {parity.reference} on {parity.source}: "
            f"{'; '.join(problems)}. Nothing was written. Try --fp32; give images like those that "
            "the model was trained on (--images, --masks); or train longer: an untrained model has no clear edges."
        )
