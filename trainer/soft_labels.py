"""Soft labels: a network learns from the mean of each mask and of what a network that has not seen the image predicts.

An outline is one annotator's opinion. What other images teach about the same lesion is another one, and where the two
disagree the target says so. Learning from a network's probabilities is distillation (Hinton et al. 2015,
arXiv:1503.02531); here the teachers are cross-fitted: the training pairs are shared out into parts, each teacher learns
from all parts but one and predicts that one, so that no prediction is a mask learned by heart.

The teachers are ordinary runs in the folder of the run, and go on like it when they were stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isicrt.engine.card import ModelCard
from isicrt.engine.errors import DataError, SettingsError, TrainingError
from isicrt.engine.geometry import UInt8Array, resize_image
from isicrt.engine.images import read_image
from isicrt.trainer import checkpoint
from isicrt.trainer.cache import ResizedPairs, Rows
from isicrt.trainer.dataset import DatasetReport, Pair, hold_out
from isicrt.trainer.models import normalise
from isicrt.trainer.recipe import Recipe, load_recipe
from isicrt.trainer.run import Listener, RunSettings
from isicrt.trainer.run_folder import TEACHERS, check_identity, has_begun, identity_of

LABELS = "soft-labels.npz"
_VIEWS = 8
"""The four turns of an image, each also mirrored."""
_BATCH = 16


class Train(Protocol):
    """`isicrt.trainer.loop.train`, which calls this module."""

    def __call__(
        self, settings: RunSettings, listener: Listener, *, checked: tuple[list[Pair], DatasetReport]
    ) -> Path: ...


def teacher_of(settings: RunSettings) -> Recipe | None:
    """The recipe of a run's teachers, with the folds of the run's own; None where it has no soft labels.

    Raises:
        SettingsError: there is no such recipe, it has teachers of its own, or the run has no cache.
    """
    soft = settings.recipe.soft_labels
    if soft is None:
        return None
    if not settings.cache:
        raise SettingsError(
            f"recipe {settings.recipe.name}: soft labels are made for the pairs of the cache: leave --no-cache away"
        )
    try:
        teacher = load_recipe(soft.teacher)
    except SettingsError as error:
        raise SettingsError(f"recipe {settings.recipe.name}: soft_labels.teacher: {error}") from None
    if teacher.soft_labels is not None:
        raise SettingsError(
            f"recipe {settings.recipe.name}: soft_labels.teacher: {soft.teacher} has soft_labels itself; name a recipe "
            "without"
        )
    # With other folds the teachers would learn from images that validate the run.
    return dataclasses.replace(teacher, folds=settings.recipe.folds)


def teacher_settings(settings: RunSettings, teacher: Recipe, parts: int) -> list[RunSettings]:
    """The runs of the teachers, in order of the part that they leave out. They begin with the encoder's weights and
    not with the checkpoint that their student may begin with, which may have seen the images."""
    runs = []
    for part in range(parts):
        out = settings.out / TEACHERS / str(part)
        last = out / checkpoint.LAST
        runs.append(
            dataclasses.replace(
                settings,
                recipe=teacher,
                out=out,
                held_out=(part, parts),
                start_from=None,
                # One that was stopped while its copies were made has no such file yet.
                resume=last if has_begun(out) else None,
            )
        )
    return runs


def check_parts(pairs: Sequence[Pair], parts: int) -> None:
    """Refuse what would fail when the first of the teachers have learned.

    Args:
        pairs: that the run learns from.
        parts: of its recipe's soft labels.

    Raises:
        DataError: a part of the pairs would be empty.
    """
    try:
        for part in range(parts):
            hold_out(pairs, part, parts)
    except DataError as error:
        raise DataError(f"{error}. Lower soft_labels.parts in the recipe, or take another fold") from None


def soften(
    settings: RunSettings,
    teacher: Recipe,
    pairs: Sequence[Pair],
    checked: tuple[list[Pair], DatasetReport],
    resized: ResizedPairs,
    listener: Listener,
    train: Train,
) -> ResizedPairs:
    """The pairs of a run with soft masks. What was made before is used: teachers that have learned, and predictions.

    Args:
        settings: of the run.
        teacher: see `teacher_of`.
        pairs: that the run learns from.
        checked: all of the run's data, for the teachers' runs.
        resized: `pairs`, from the cache.
        listener: is told of the teachers' runs.
        train: see there.

    Raises:
        SettingsError: the run folder holds other teachers.
        TrainingError: a teacher's loss is not a number any more, or the disk is full.
    """
    soft = settings.recipe.soft_labels
    assert soft is not None, "the recipe has no soft labels"
    runs = teacher_settings(settings, teacher, soft.parts)
    sha256 = checked[1].sha256
    path = settings.out / LABELS
    levels = _read(path, pairs, runs, sha256)
    if levels is None:
        for number, run in enumerate(runs, 1):
            if _epochs_done(run, sha256) < teacher.epochs:
                listener.teaching(number, soft.parts)
                train(run, listener, checked=checked)
        listener.predicting(len(pairs), soft.parts)
        levels = _predictions(pairs, runs)
        _write(path, pairs, levels, _origin(runs, sha256))
    return ResizedPairs(resized.images, soft_masks(resized.masks, levels, soft.share), soft=True)


def soft_masks(masks: UInt8Array | Rows, levels: UInt8Array, share: float) -> UInt8Array:
    """Masks of which only a `share` is the truth and the rest is a prediction.

    Args:
        masks: uint8 N x size x size, 0 or 255.
        levels: uint8 N x H x W, probabilities of the same images as shares of 255; resized bilinearly.
        share: in [0, 1].

    Returns:
        uint8 N x size x size, in memory.
    """
    result = np.empty(masks.shape, np.uint8)
    for i, (mask, level) in enumerate(zip(masks, levels, strict=True)):
        prediction = torch.from_numpy(level.astype(np.float32))[None, None]
        prediction = F.interpolate(prediction, size=mask.shape, mode="bilinear", align_corners=False)[0, 0]
        result[i] = np.round(share * (mask > 128) * 255.0 + (1 - share) * prediction.numpy())
    return result


@torch.inference_mode()
def predict(model: nn.Module, card: ModelCard, images: UInt8Array, device: str = "cpu") -> UInt8Array:
    """The mean probability over `_VIEWS` flips and turns of each image, as a share of 255.

    Args:
        model: in eval mode, on `device`.
        card: says how images are normalised.
        images: uint8 N x size x size x 3, RGB, at the model's size.
        device: ``cpu`` or ``cuda``.

    Returns:
        uint8 N x size x size.
    """
    found = []
    for start in range(0, len(images), _BATCH):
        batch = torch.from_numpy(images[start : start + _BATCH]).to(device).permute(0, 3, 1, 2)
        total = torch.zeros((len(batch), 1, *batch.shape[2:]), device=device)
        for view in range(_VIEWS):
            turned = _turn(batch, view).permute(0, 2, 3, 1).contiguous()
            logits = model(normalise(turned, card.mean, card.std)).float()
            total += _turn_back(logits, view).sigmoid()
        found.append((total[:, 0] / _VIEWS * 255).round().byte().cpu().numpy())
    return np.concatenate(found)


def _turn(images: Tensor, view: int) -> Tensor:
    """One of eight views of N x C x size x size: bit 0 mirrors columns, bit 1 rows, bit 2 swaps rows and columns."""
    images = images.flip(3) if view & 1 else images
    images = images.flip(2) if view & 2 else images
    return images.transpose(2, 3) if view & 4 else images


def _turn_back(images: Tensor, view: int) -> Tensor:
    images = images.transpose(2, 3) if view & 4 else images
    images = images.flip(2) if view & 2 else images
    return images.flip(3) if view & 1 else images


def _predictions(pairs: Sequence[Pair], runs: Sequence[RunSettings]) -> UInt8Array:
    """Of each pair's image, by the teacher that has not learned from it."""
    row = {pair.id: i for i, pair in enumerate(pairs)}
    levels: UInt8Array | None = None
    for run in runs:
        assert run.held_out is not None
        model, card = checkpoint.load_model(run.out / checkpoint.LAST)  # the average, where the recipe has one
        model = model.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if levels is None:
            levels = np.empty((len(pairs), *card.input_size), np.uint8)
        _, unseen = hold_out(pairs, *run.held_out)
        for start in range(0, len(unseen), _BATCH):
            chosen = unseen[start : start + _BATCH]
            images = np.stack([resize_image(read_image(pair.image), card.input_size) for pair in chosen])
            levels[[row[pair.id] for pair in chosen]] = predict(model, card, images, run.device)
    assert levels is not None
    return levels


def _epochs_done(run: RunSettings, data_sha256: str) -> int:
    """Of a teacher. Raises SettingsError where its folder holds another run."""
    if run.resume is None or not run.resume.exists():
        return 0
    _, state = checkpoint.load(run.resume)
    check_identity(run.resume, state, identity_of(run, data_sha256))
    return len(state["history"])


def _origin(runs: Sequence[RunSettings], data_sha256: str) -> dict[str, Any]:
    """What predictions are made from: the settings of the teachers, and the hashes of their weights where they are
    there."""
    weights = []
    for run in runs:
        last = run.out / checkpoint.LAST
        weights.append(_digest(checkpoint.load(last)[1]["weights"]) if last.exists() else None)
    return {"runs": [identity_of(run, data_sha256) for run in runs], "weights": weights}


def _digest(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _write(path: Path, pairs: Sequence[Pair], levels: UInt8Array, origin: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(
                file, ids=np.array([pair.id for pair in pairs]), levels=levels, origin=np.array(json.dumps(origin))
            )
        temporary.replace(path)
    except OSError as error:
        raise TrainingError(f"{path}: the teachers' predictions could not be saved: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path, pairs: Sequence[Pair], runs: Sequence[RunSettings], data_sha256: str) -> UInt8Array | None:
    """The predictions of these teachers for these pairs; None where they have to be made. Teachers may have been
    deleted since; those that are there must be those that predicted."""
    try:
        # Opened here, because NumPy does not close a file that is not whole.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            ids, levels, then = saved["ids"].tolist(), saved["levels"], json.loads(str(saved["origin"]))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):  # none, or not whole
        return None
    now = json.loads(json.dumps(_origin(runs, data_sha256)))
    same = ids == [pair.id for pair in pairs] and then["runs"] == now["runs"]
    same = same and all(here in (None, made) for here, made in zip(now["weights"], then["weights"], strict=True))
    return levels if same else None
