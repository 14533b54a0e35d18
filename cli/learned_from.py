"""What a model says that it learned from, beside its scores: on those images they say nothing about new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from isicrt.cli.segment_report import printable

if TYPE_CHECKING:
    from isicrt.benchmarks.evaluation import Case


def say_learned_from(models: Sequence[tuple[str, Mapping[str, Any]]], cases: Sequence[Case]) -> list[str]:
    """A line for people for each training that models name, and a stronger one where its data are what is scored.

    Args:
        models: label and the card's `training` of each model.
        cases: what is scored.
    """
    from isicrt.trainer.origins import trainings

    labels: dict[tuple[str, int, bool], list[str]] = {}
    sha256: str | None = None
    for label, training in ((label, part) for label, whole in models for part in trainings(whole)):
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
        named = labels.setdefault((printable(", ".join(names)), images, same), [])
        if label not in named:
            named.append(label)
    return [
        f"{', '.join(models)} LEARNED FROM THESE IMAGES ({names}; their hash is in the card): "
        "the scores say nothing about new ones."
        if same
        else f"{', '.join(models)} learned from {images:,} training images ({names}); a score on those, or on others "
        "of their lesions, says nothing about new ones."
        for (names, images, same), models in labels.items()
    ]


def _to_learn(cases: Sequence[Case]) -> list[Case]:
    from isicrt.trainer.dataset import LEFT_OUT

    return [case for case in cases if case.id not in LEFT_OUT]


def _sha256(cases: Sequence[Case]) -> str:
    from isicrt.trainer.dataset import Pair, check_pairs

    return check_pairs([Pair(case.id, case.image, case.truth) for case in cases]).sha256
