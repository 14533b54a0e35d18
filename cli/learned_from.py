"""What a model says that it learned from, beside its scores: on those images they say nothing about new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isicrt.cli.plain_text import printable
from isicrt.engine.errors import DataError

if TYPE_CHECKING:
    from isicrt.benchmarks.evaluation import Case
    from isicrt.trainer.dataset import DatasetReport, Pair


def say_learned_from(
    models: Sequence[tuple[str, Mapping[str, Any]]],
    cases: Sequence[Case],
    data: Sequence[Case] | None = None,
    *,
    of_training: bool = False,
) -> list[str]:
    """A line for people for each training that models name, and a stronger one where its data are what is scored, or
    are among it: those of the models that ship are known image by image.

    Args:
        models: label and the card's `training` of each model.
        cases: what is scored.
        data: all of the data set that `cases` are of, since a card knows it by the hash of all; None: they are all.
        of_training: whether that is a data set's half for training. A last line says so, unless no model learned from
            what is scored, for all that is known.
    """
    from isicrt.trainer.dataset import Pair
    from isicrt.trainer.learned_ids import learned_ids
    from isicrt.trainer.origins import trainings
    from isicrt.trainer.twins import isic_id

    said: dict[str, list[str]] = {}
    to_learn = {len(some): some for some in _to_learn(cases if data is None else data) if some}
    hashed: dict[int, tuple[list[Pair], DatasetReport]] = {}
    scored = {case.id for case in cases}
    all_new = True
    for label, training in ((label, part) for label, whole in models for part in trainings(whole)):
        sources, images = training.get("data"), training.get("training_images")
        sources = [sources] if isinstance(sources, str) else sources
        if not sources or not isinstance(sources, (list, tuple)) or not isinstance(images, int):
            all_new = False
            continue
        names = printable(", ".join(str(name).removeprefix("data/") for name in sources))
        # Whoever trained hashed all images, those for validation too, but not those that `find_pairs` leaves out.
        held_out = training.get("validation_images")
        count = images + (held_out if isinstance(held_out, int) else 0)
        learned, validated, same = None, set[str](), False
        if training.get("data_sha256") and count in to_learn:
            if count not in hashed:
                hashed[count] = _hashed(to_learn[count])
            pairs, report = hashed[count]
            same = _same_folds(training, report) is not None and scored >= {pair.id for pair in pairs}
            learned, validated = _learned(training, pairs, report)
        by_hash = learned is not None
        ids = learned_ids(training.get("data_sha256"))
        if not by_hash and ids:
            learned, validated = _split(training, [Pair(id, Path(id), Path(id)) for id in sorted(ids)])
        known = len(scored & (ids if learned is None else learned))
        all_new &= not known and (by_hash or (bool(ids) and all(isic_id(Path(id)) for id in scored)))
        if known and learned is not None:
            how = "their hash is in the card" if by_hash else "by their ISIC numbers"
            line = (
                f"LEARNED FROM {known:,} OF THESE {len(cases):,} IMAGES ({names}; {how}): "
                "the scores are no measure of new ones."
            )
        elif learned is not None and scored & validated:
            all_held = scored <= validated
            these = "these" if all_held else f"{len(scored & validated):,} of these {len(cases):,}"
            caution = (
                "Of the others: a score on training images under another name, or on others of their lesions, says "
                "nothing about new ones."
            )
            line = (
                f"held {these} images out ({names}; fold {training['fold']} of {training['folds']}); they did choose "
                f"the epoch of its best.pt.{'' if all_held else f' {caution}'}"
            )
        elif same:
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
    # What one training held out another may have learned.
    learners = {label for line, labels in said.items() if line.startswith("LEARNED") for label in labels}
    for line in [line for line in said if line.startswith("held")]:
        said[line] = [label for label in said[line] if label not in learners]
    lines = [f"{', '.join(labels)} {line}" for line, labels in said.items() if labels]
    if of_training and not all_new:
        lines.append("--split train: a model may have learned from these images.")
    return lines


def _to_learn(cases: Sequence[Case]) -> list[list[Case]]:
    """Those that training does not leave out; until 28 November 2026 it left out fewer."""
    from isicrt.trainer.dataset import LEFT_OUT
    from isicrt.trainer.twins import TEST_TWINS

    return [[case for case in cases if case.id not in left_out] for left_out in (LEFT_OUT, TEST_TWINS)]


def _hashed(cases: Sequence[Case]) -> tuple[list[Pair], DatasetReport]:
    """With their hash, that without their groups, and those of an isicrt before 0.2."""
    from isicrt.trainer.dataset import Pair, check_pairs

    pairs = [Pair(case.id, case.image, case.truth, case.group) for case in cases]
    return pairs, check_pairs(pairs)


def _same_folds(training: Mapping[str, Any], report: DatasetReport) -> bool | None:
    """Whether a training's folds are those that the data have now. None where they are other data."""
    known = {alias.sha256: alias.same_folds for alias in report.also_known_as} | {report.sha256: True}
    return known.get(str(training["data_sha256"]))


def _learned(
    training: Mapping[str, Any], pairs: Sequence[Pair], report: DatasetReport
) -> tuple[set[str] | None, set[str]]:
    """Ids of the images that a training learned from, and of those that it validated on. None and none where they are
    other data, or its fold is not known."""
    same_folds = _same_folds(training, report)
    if same_folds is not None and not training.get("validation_images"):
        return {pair.id for pair in pairs}, set()
    return _split(training, pairs) if same_folds else (None, set())


def _split(training: Mapping[str, Any], pairs: Sequence[Pair]) -> tuple[set[str] | None, set[str]]:
    """As `_learned`, of the pairs that a training had."""
    from isicrt.trainer.dataset import hold_out, split_fold

    fold, folds, part = (training.get(name) for name in ("fold", "folds", "held_out"))
    if not isinstance(fold, int) or not isinstance(folds, int):  # older cards do not have `folds`
        return None, set()
    try:
        learned, validated = split_fold(pairs, folds, fold)
        if part:  # of a teacher of soft labels
            learned = hold_out(learned, *part)[0]
    except (DataError, TypeError):  # a stranger's card may say anything
        return None, set()
    if (len(learned), len(validated)) != (training.get("training_images"), training.get("validation_images")):
        return None, set()
    return {pair.id for pair in learned}, {pair.id for pair in validated}
