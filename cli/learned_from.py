"""What a model says that it learned from, beside its scores: on those images they say nothing about new ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from isicrt.cli.segment_report import printable

if TYPE_CHECKING:
    from isicrt.benchmarks.evaluation import Case


def say_learned_from(trainings: Sequence[tuple[str, Mapping[str, Any]]], cases: Sequence[Case]) -> list[str]:
    """A line for people for each training that models name, and a stronger one where its data are what is scored.

    Args:
        trainings: label and the card's `training` of each model.
        cases: what is scored.
    """
    labels: dict[tuple[str, int, bool], list[str]] = {}
    sha256: str | None = None
    for label, training in ((label, part) for label, whole in trainings for part in _parts(whole)):
        data, images = training.get("data"), training.get("training_images")
        data = [data] if isinstance(data, str) else data
        if not data or not isinstance(data, (list, tuple)) or not isinstance(images, int):
            continue
        names = [str(name).removeprefix("data/") for name in data]
        # Whoever trained hashed all images, those for validation too, but not those that `find_pairs` leaves out.
        held_out = training.get("validation_images")
        learned = _to_learn(cases) if training.get("data_sha256") else []
        same = bool(learned) and len(learned) == images + (held_out if isinstance(held_out, int) else 0)
        if same:
            sha256 = sha256 or _sha256(learned)
            same = sha256 == training["data_sha256"]
        models = labels.setdefault((printable(", ".join(names)), images, same), [])
        if label not in models:
            models.append(label)
    return [
        f"{', '.join(models)} LEARNED FROM THESE IMAGES ({names}; their hash is in the card): "
        "the scores say nothing about new ones."
        if same
        else f"{', '.join(models)} learned from {images:,} training images ({names}); a score on those, or on others "
        "of their lesions, says nothing about new ones."
        for (names, images, same), models in labels.items()
    ]


def _parts(training: object) -> Iterator[Mapping[str, Any]]:
    """A training, what it started from, and where it is a mean of several, those."""
    if isinstance(training, Mapping):
        yield training
        yield from _parts(training.get("start_from"))
        for other in training["mean_of"] if isinstance(training.get("mean_of"), list) else ():
            yield from _parts(other)


def _to_learn(cases: Sequence[Case]) -> list[Case]:
    from isicrt.trainer.dataset import LEFT_OUT

    return [case for case in cases if case.id not in LEFT_OUT]


def _sha256(cases: Sequence[Case]) -> str:
    from isicrt.trainer.dataset import Pair, check_pairs

    return check_pairs([Pair(case.id, case.image, case.truth) for case in cases]).sha256
