"""What a model says that it learned from, beside its scores: on those images they say nothing about new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from isicrt.cli.plain_text import printable

if TYPE_CHECKING:
    from isicrt.benchmarks.evaluation import Case


def say_learned_from(models: Sequence[tuple[str, Mapping[str, Any]]], cases: Sequence[Case]) -> list[str]:
    """A line for people for each training that models name, and a stronger one where its data are what is scored, or
    are among it: those of the models that ship are known image by image.

    Args:
        models: label and the card's `training` of each model.
        cases: what is scored.
    """
    from isicrt.trainer.learned_ids import learned_ids
    from isicrt.trainer.origins import trainings

    said: dict[str, list[str]] = {}
    learned = {len(some): some for some in _to_learn(cases) if some}
    hashes: dict[int, list[str]] = {}
    for label, training in ((label, part) for label, whole in models for part in trainings(whole)):
        data, images = training.get("data"), training.get("training_images")
        data = [data] if isinstance(data, str) else data
        if not data or not isinstance(data, (list, tuple)) or not isinstance(images, int):
            continue
        names = printable(", ".join(str(name).removeprefix("data/") for name in data))
        # Whoever trained hashed all images, those for validation too, but not those that `find_pairs` leaves out.
        held_out = training.get("validation_images")
        count = images + (held_out if isinstance(held_out, int) else 0)
        same = False
        if training.get("data_sha256") and count in learned:
            if count not in hashes:
                hashes[count] = _hashes(learned[count])
            same = training["data_sha256"] in hashes[count]
        ids = learned_ids(training.get("data_sha256"))
        known = sum(case.id in ids for case in cases)
        if same:
            line = (
                f"LEARNED FROM THESE IMAGES ({names}; their hash is in the card): "
                "the scores say nothing about new ones."
            )
        elif known:
            line = (
                f"LEARNED FROM {'OR WAS CHOSEN BY ' if held_out else ''}{known:,} OF THESE {len(cases):,} IMAGES "
                f"({names}; by their ISIC numbers): the scores are no measure of new ones."
            )
        else:
            line = (
                f"learned from {images:,} training images ({names}); a score on those, or on others of their lesions, "
                "says nothing about new ones."
            )
        if label not in (named := said.setdefault(line, [])):
            named.append(label)
    return [f"{', '.join(labels)} {line}" for line, labels in said.items()]


def _to_learn(cases: Sequence[Case]) -> list[list[Case]]:
    """Those that training does not leave out; until 28 November 2026 it left out fewer."""
    from isicrt.trainer.dataset import LEFT_OUT
    from isicrt.trainer.twins import TEST_TWINS

    return [[case for case in cases if case.id not in left_out] for left_out in (LEFT_OUT, TEST_TWINS)]


def _hashes(cases: Sequence[Case]) -> list[str]:
    """With and without their groups, and those of an isicrt before 0.2."""
    from isicrt.trainer.dataset import Pair, check_pairs

    report = check_pairs([Pair(case.id, case.image, case.truth, case.group) for case in cases])
    return [report.sha256, *(alias.sha256 for alias in report.also_known_as)]
