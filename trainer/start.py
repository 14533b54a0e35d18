"""What a run begins with: an encoder's weights, or another run's checkpoint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from isicrt.engine.errors import ModelError, SettingsError
from isicrt.trainer import checkpoint
from isicrt.trainer.origins import trainings
from isicrt.trainer.recipe import Recipe


@dataclass(frozen=True)
class Start:
    """Weights to begin with."""

    weights: Mapping[str, Tensor]
    origin: Mapping[str, Any]
    """How the weights were learned, for the card and to know them again."""

    @classmethod
    def read(cls, path: Path, recipe: Recipe) -> Start:
        """Of a checkpoint.

        Raises:
            ModelError: not a checkpoint.
            SettingsError: it holds another network than the recipe asks for.
        """
        card, state = checkpoint.load(path)
        channels = None if recipe.decoder_channels is None else list(recipe.decoder_channels)
        then: dict[str, Any] = {name: card.network.get(name) for name in ("layout", "decoder_channels")}
        then |= {"architecture": card.architecture, "standardise": card.network.get("standardise", 0.0)}
        now: dict[str, Any] = {"layout": recipe.layout, "decoder_channels": channels}
        now |= {"architecture": recipe.architecture, "standardise": recipe.standardise}
        if wrong := [name for name in now if then[name] != now[name]]:
            raise SettingsError(
                f"{path}: holds {', '.join(f'{name} {then[name]}' for name in wrong)}; the recipe asks for "
                f"{', '.join(f'{name} {now[name]}' for name in wrong)}. Start from a model of the same network."
            )
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        # The average lags behind the weights; an optimiser that begins anew wants the weights themselves.
        return cls(state.get("model", state["weights"]), {"sha256": digest, **card.training})

    def check_unseen(self, path: Path, data_sha256: str, fold: int, folds: int, validation: int) -> None:
        """Refuse weights that have learned from what would validate the run, whose scores would then say nothing.

        The same data are known by their hash alone: whoever learned the same images among others is not found.

        Args:
            path: of the checkpoint.
            data_sha256: of the run's data.
            fold: of `folds`, that validates.
            validation: so many pairs are in it.

        Raises:
            SettingsError: the weights, or what they began with, have learned from the same data with another fold held
                out, or none.
        """
        for training in trainings(self.origin):
            if training.get("data_sha256") != data_sha256 or _held_out(training, fold, folds, validation):
                continue
            then = "nothing"
            if training.get("fold") is not None:
                then = f"fold {training['fold']}" + (f" of {training['folds']}" if "folds" in training else "")
            raise SettingsError(
                f"{path}: has learned from images that would validate this run: {training.get('recipe')} was trained "
                f"on the same data and held out {then}, not fold {fold} of {folds}. Give --fold none, which validates "
                "nothing, or start from a model that held out the same fold"
            )


def encoder_weights(pretrained: str | os.PathLike[str] | None) -> str:
    """What an encoder begins with, see `MobileNetV2Encoder`, as it is known on any machine: ``imagenet``, ``none``, or
    the hash of a file.

    Raises:
        ModelError: the file cannot be read.
    """
    if pretrained is None or pretrained == "imagenet":
        return pretrained or "none"
    try:
        return f"sha256:{hashlib.sha256(Path(pretrained).read_bytes()).hexdigest()}"
    except FileNotFoundError:
        raise ModelError(f"{pretrained}: no such file of encoder weights") from None
    except OSError as error:
        raise ModelError(f"{pretrained}: the encoder's weights cannot be read: {error.strerror}") from error


def _held_out(training: Mapping[str, Any], fold: int, folds: int, validation: int) -> bool:
    """Whether a training on the same data left out this fold, which has so many pairs."""
    if training.get("fold") != fold:
        return False
    # Older cards do not say how many folds there were, but how many pairs the one had.
    return bool(training["folds"] == folds if "folds" in training else training.get("validation_images") == validation)
