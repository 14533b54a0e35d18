"""Scores of models on a data set, by one protocol: image by image, then averaged, then compared.

What is kept of an image are its scores. Masks are made, scored and dropped, so memory does not grow with the images'
size, and by a few hundred bytes with their number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from isicrt.benchmarks.scoring_protocol import ScoringProtocol
from isicrt.engine.card import ModelCard
from isicrt.engine.errors import DataError, IsicrtError, ModelError, SettingsError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.images import Decoded
from isicrt.engine.mask_levels import has_corners
from isicrt.engine.pipeline import available_cores
from isicrt.engine.runtime import Runtime
from isicrt.engine.scores import Overlap, difference_interval, summarise, without_point_interval


@dataclass(frozen=True)
class Case:
    """An image with its truth."""

    id: str
    image: Path
    truth: Path
    group: str | None = None
    """That its data set gives it, which is part of the data's hash."""


@dataclass(frozen=True)
class CaseScores:
    """What came out for one image."""

    case: Case
    native_size: tuple[int, int]
    """(height, width) of the image in pixels."""
    scores: Overlap
    """`ImageScores` by the official protocol."""
    lesion_share: float
    """Share of the predicted mask that is lesion, in [0, 1], on the grid that is scored."""
    truth_share: float
    """The same of the truth."""
    corners: bool = False
    """Whether the truth is lesion in all four corners: it may be inverted."""


@dataclass(frozen=True)
class Unscored:
    """An image that could not be scored."""

    id: str
    reason: str
    """With the file."""


NEARLY_WHOLE = 0.95
"""A truth that covers more of its image is rare among photographs of lesions: it may be inverted."""


@dataclass(frozen=True)
class Candidate:
    """A model that is scored."""

    label: str
    """For tables; no two of an evaluation are alike."""
    file: str
    """As it is named in results: without this machine's folders."""
    sha256: str
    """Of the file that the user named, be it a checkpoint."""
    runtime: Runtime


@dataclass(frozen=True)
class Scored:
    """One model's scores."""

    label: str
    file: str
    sha256: str
    runtime: str
    """The runtime's name."""
    card: ModelCard
    input: str
    """What the model was fed, for people."""
    threshold: float
    clean_up: tuple[str, ...]
    images: int
    """That the data set has."""
    cases: tuple[CaseScores, ...]
    """Images that were scored, in the data set's order."""
    problems: tuple[Unscored, ...]
    """Images that were not, and why; in the same order."""

    @property
    def without_lesion(self) -> tuple[str, ...]:
        """Ids of the images that were scored and whose truth is empty: an empty mask scores 1 there, any other 0."""
        return tuple(case.case.id for case in self.cases if not case.truth_share)

    @property
    def nearly_whole(self) -> tuple[str, ...]:
        """Ids of the images that were scored and whose truth covers more than `NEARLY_WHOLE` of them."""
        return tuple(case.case.id for case in self.cases if case.truth_share > NEARLY_WHOLE)

    @cached_property
    def summary(self) -> dict[str, float | int]:
        """See `isicrt.engine.scores.summarise`. Its interval takes a moment, once.

        Raises:
            DataError: nothing was scored.
        """
        return summarise([case.scores for case in self.cases])

    @property
    def noted(self) -> dict[str, float | int | None]:
        """The summary as it is written down, see `isicrt.engine.scores.without_point_interval`.

        Raises:
            DataError: nothing was scored.
        """
        return without_point_interval(self.summary)


@dataclass(frozen=True)
class Difference:
    """Of two models' mean Jaccard index, on the images that both were scored on."""

    label: str
    against: str
    images: int
    jaccard: float
    """`label` minus `against`."""
    low: float | None
    """95 % interval of a paired bootstrap; None for too few images, see `isicrt.engine.scores.difference_interval`."""
    high: float | None

    @property
    def is_clear(self) -> bool:
        """Whether there is an interval and it leaves out 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def score_model(
    candidate: Candidate,
    cases: Sequence[Case],
    protocol: ScoringProtocol,
    *,
    batch_size: int | None = None,
    threads: int | None = None,
    on_image: Callable[[], None] = lambda: None,
) -> Scored:
    """Score a model on the images of a data set. An image that cannot be read, or a truth that cannot be read or is
    of 0 and 1 (see `check_highest`), costs that image.

    Args:
        candidate: the model; nobody else uses its runtime meanwhile.
        cases: the data set.
        protocol: says how.
        batch_size: images in one network call; None for 8, or what the model takes if that is less.
        threads: that decode and score; None for one a core.
        on_image: called in the calling thread for each image that is done with.

    Raises:
        SettingsError: a batch that the model was not built for.
        ModelError: the network failed.
        DataError: not one image could be scored.
    """
    runtime, card = candidate.runtime, candidate.runtime.card
    batch_size = check_batch_size(batch_size, runtime)

    def decode(case: Case) -> Decoded | DataError:
        try:
            return protocol.decode(case.image, card.input_size)
        except DataError as error:
            return error

    def score(case: Case, image: Decoded, probability: UInt8Array) -> CaseScores | DataError:
        try:
            truth, truth_size = protocol.read_truth(case.truth)
            _check_sizes(case, image.native_size, truth_size)
        except DataError as error:
            return error
        prediction = protocol.mask(probability, image.native_size, card)
        return CaseScores(
            case=case,
            native_size=image.native_size,
            scores=protocol.score(prediction, truth),
            lesion_share=np.count_nonzero(prediction) / prediction.size,
            truth_share=np.count_nonzero(truth) / truth.size,
            corners=has_corners(truth),
        )

    done: list[CaseScores] = []
    problems: list[Unscored] = []
    batches = [cases[start : start + batch_size] for start in range(0, len(cases), batch_size)]
    pool = ThreadPoolExecutor(threads or available_cores(), thread_name_prefix="isicrt-score")
    try:
        # The next batch is decoded while this one is in the network.
        ahead = [pool.submit(decode, case) for case in (batches[0] if batches else ())]
        for n, batch in enumerate(batches):
            images = [future.result() for future in ahead]
            ahead = [pool.submit(decode, case) for batch in batches[n + 1 : n + 2] for case in batch]
            readable = [(case, i) for case, i in zip(batch, images, strict=True) if isinstance(i, Decoded)]
            probabilities = infer(runtime, [(case, image) for case, image in readable])
            scored = pool.map(score, *zip(*readable, strict=True), probabilities) if readable else iter(())
            for case, image in zip(batch, images, strict=True):
                outcome = next(scored) if isinstance(image, Decoded) else image
                if isinstance(outcome, CaseScores):
                    done.append(outcome)
                else:
                    problems.append(Unscored(case.id, str(outcome)))
                on_image()
    finally:
        pool.shutdown(cancel_futures=True)
    if not done:
        first = f" The first: {problems[0].reason}" if problems else ""
        raise DataError(f"{candidate.label}: not one of {len(cases)} images could be scored.{first}")
    return Scored(
        label=candidate.label,
        file=candidate.file,
        sha256=candidate.sha256,
        runtime=runtime.name,
        card=card,
        input=protocol.describe_input(card),
        threshold=protocol.threshold(card),
        clean_up=protocol.clean_up(card),
        images=len(cases),
        cases=tuple(done),
        problems=tuple(problems),
    )


def check_batch_size(batch_size: int | None, runtime: Runtime) -> int:
    """The batch size to use. Raises SettingsError where the model does not take the one that was asked for."""
    limit = runtime.max_batch
    if batch_size is None:
        return min(8, limit or 8)
    if not 1 <= batch_size <= (limit or batch_size):
        takes = "at least 1" if limit is None else f"1 to {limit}"
        raise SettingsError(f"batch size {batch_size}: model '{runtime.card.name}' takes {takes}")
    return batch_size


def infer(runtime: Runtime, batch: Sequence[tuple[Case, Decoded]]) -> UInt8Array:
    """Probabilities of decoded images, uint8 N x h x w. Raises ModelError."""
    card = runtime.card
    if not batch:
        return np.empty((0, *card.input_size), np.uint8)
    try:
        return runtime.infer(np.stack([image.pixels for _, image in batch]))
    except IsicrtError:
        raise
    except Exception as error:  # runtimes have no common root of their errors
        names = f"{batch[0][0].image.name} and {len(batch) - 1} more"
        raise ModelError(f"model '{card.name}' failed on a batch of {len(batch)} ({names}): {error}") from error


def _check_sizes(case: Case, image: tuple[int, int], truth: tuple[int, int]) -> None:
    if image != truth:
        raise DataError(
            f"{case.truth}: is {truth[1]} x {truth[0]} pixels, its image {case.image.name} {image[1]} x {image[0]}"
        )


def compare(first: Scored, others: Sequence[Scored]) -> Iterator[Difference]:
    """Each of `others` against `first`, by a paired bootstrap of 10,000 resamples. None with no image in common."""
    before = {case.case.id: case.scores.jaccard for case in first.cases}
    for other in others:
        pairs = [(c.scores.jaccard, before[c.case.id]) for c in other.cases if c.case.id in before]
        if pairs:
            differences = np.array([after - earlier for after, earlier in pairs])
            low, high = difference_interval(differences)
            yield Difference(other.label, first.label, len(pairs), float(differences.mean()), low, high)


def labels_of_files(names: Sequence[str], files: Sequence[Path]) -> list[str]:
    """`labels` of models by the names in their cards. Where two share that and the names of their files, their folders
    tell one ``model.onnx`` from the other, and of the machine next to nothing."""
    places = {(name, file.absolute()) for name, file in zip(names, files, strict=True)}
    shared = Counter((name, place.name) for name, place in places)
    return labels(
        [
            (name, "/".join(file.absolute().parts[-2:]) if shared[name, file.name] > 1 else file.name)
            for name, file in zip(names, files, strict=True)
        ]
    )


def labels(names: Sequence[tuple[str, str]]) -> list[str]:
    """A label for each (card's name, file): the name; with the file, then with a number, where that is not enough."""
    shared = Counter(name for name, _ in names)
    found = [f"{name} ({file})" if shared[name] > 1 else name for name, file in names]
    return [f"{x} #{found[: n + 1].count(x)}" if found.count(x) > 1 else x for n, x in enumerate(found)]
