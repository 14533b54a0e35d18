"""What a run begins with: an encoder's weights, or another model."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isicrt.engine.card import ModelCard
from isicrt.engine.errors import ModelError, SettingsError
from isicrt.engine.geometry import resize_image
from isicrt.engine.images import read_image
from isicrt.engine.onnx_file import read_onnx_card
from isicrt.trainer import checkpoint, onnx_weights
from isicrt.trainer.data_hash import Alias
from isicrt.trainer.data_notes import count_of
from isicrt.trainer.dataset import Pair
from isicrt.trainer.learned_ids import learned_ids
from isicrt.trainer.models import SegmentationModel, normalise
from isicrt.trainer.origins import trainings
from isicrt.trainer.recipe import FROM_START, Recipe
from isicrt.trainer.run import RunSettings

MEASURED = 128
"""Training images, at most, that say what the batch norms of an ``.onnx`` file's network see."""


def with_network(settings: RunSettings) -> RunSettings:
    """The same run, where its recipe leaves the network to what it starts from with that one's architecture, layout,
    widths and standardising, and with its input size unless the recipe has one.

    Raises:
        ModelError: see `Start.read`.
        SettingsError: the recipe needs something to start from, and there is nothing.
    """
    recipe = settings.recipe
    if settings.start_from is None and (recipe.architecture == FROM_START or recipe.start_share):
        raise SettingsError(
            f"recipe {recipe.name} goes on from another model: name one with --start-from, be it a model that ships "
            "(`isicrt models`), an .onnx file of isicrt or a checkpoint"
        )
    if settings.start_from is None or recipe.architecture != FROM_START:
        return settings
    card = read_card(settings.start_from)
    channels = card.network.get("decoder_channels")
    network: dict[str, Any] = {
        "architecture": card.architecture,
        "layout": card.network.get("layout", "light"),
        "decoder_channels": None if channels is None else tuple(channels),
        "standardise": card.network.get("standardise", 0.0),
        "input_size": recipe.input_size or card.input_height,
    }
    return replace(settings, recipe=replace(recipe, **network))


def read_card(path: Path) -> ModelCard:
    """Of a checkpoint or of an ``.onnx`` file.

    Raises:
        ModelError: it is neither.
    """
    return read_onnx_card(path) if _is_onnx(path) else checkpoint.load(path)[0]


def _is_onnx(path: Path) -> bool:
    return path.suffix.lower() == ".onnx"


@dataclass(frozen=True)
class Start:
    """Weights to begin with."""

    weights: Mapping[str, Tensor]
    origin: Mapping[str, Any]
    """How the weights were learned, for the card and to know them again."""
    folded: bool = False
    """Whether the batch norms are those of `isicrt.trainer.onnx_weights`, which were not measured yet."""

    @classmethod
    def read(cls, path: Path, recipe: Recipe) -> Start:
        """Of a checkpoint, or of an ``.onnx`` file in float32 or float16.

        Raises:
            ModelError: neither of them.
            SettingsError: it holds another network than the recipe asks for.
        """
        folded = _is_onnx(path)
        weights: Mapping[str, Tensor]
        if folded:
            card, weights = onnx_weights.read_weights(path)
        else:
            card, state = checkpoint.load(path)
            # The average lags behind the weights; an optimiser that begins anew wants the weights themselves. A mean
            # with the start is one with what was validated.
            weights = state["weights"] if recipe.start_share else state.get("model", state["weights"])
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
        return cls(weights, {"sha256": digest, **card.training}, folded)

    def begin(self, model: SegmentationModel, pairs: Sequence[Pair], card: ModelCard, batch_size: int) -> None:
        """Give a model these weights, and batch norms that have seen some of these pairs' images where they need it.

        Args:
            model: of the run, on its device.
            pairs: that the run learns from.
            card: says how images are resized and normalised.
            batch_size: of the images that the batch norms see at once.

        Raises:
            DataError: an image cannot be decoded.
        """
        model.load_state_dict(self.weights)
        if not self.folded:
            return
        chosen = pairs[:: max(1, -(-len(pairs) // MEASURED))]
        device = next(model.parameters()).device

        def batches() -> Iterator[Tensor]:
            for start in range(0, len(chosen), batch_size):
                some = chosen[start : start + batch_size]
                images = np.stack([resize_image(read_image(pair.image), card.input_size) for pair in some])
                yield normalise(torch.from_numpy(images).to(device), card.mean, card.std)

        onnx_weights.measure_batch_norms(model, batches())

    def check_unseen(
        self,
        path: Path,
        data_sha256: str,
        fold: int,
        folds: int,
        validation: Collection[str],
        also_known_as: Sequence[Alias] = (),
    ) -> None:
        """Refuse weights that have learned from what would validate the run, whose scores would then say nothing.

        The same data are known by their hashes, and those of the models that ship image by image; whoever learned the
        same images among others of another kind is not found.

        Args:
            path: of the checkpoint.
            data_sha256: of the run's data.
            fold: of `folds`, that validates.
            validation: ids of the images in it.
            also_known_as: see `DatasetReport`.

        Raises:
            SettingsError: the weights, or what they began with, have learned from the same data with another fold held
                out, or none, or with other folds; or from some of the images.
        """
        aliases = {alias.sha256: alias for alias in also_known_as}
        for training in trainings(self.origin):
            sha256 = training.get("data_sha256")
            alias = aliases.get(sha256) if isinstance(sha256, str) else None
            if sha256 != data_sha256 and alias is None:
                if known := len(learned_ids(sha256).intersection(validation)):
                    chosen = " or was chosen by" if training.get("validation_images") else ""
                    raise SettingsError(
                        f"{path}: has learned from{chosen} {known:,} of the {count_of(len(validation), 'image')} that "
                        "would validate this run, by their ISIC numbers. Give --fold none, which validates nothing, or "
                        "take them out of the data"
                    )
                continue
            if alias is not None and not alias.same_folds:
                raise SettingsError(
                    f"{path}: has learned from images that would validate this run: {training.get('recipe')} was "
                    f"trained on the same data, with {alias.because}, so that its folds were others. Give --fold none, "
                    "which validates nothing"
                )
            if _held_out(training, fold, folds, len(validation)):
                continue
            then = "nothing"
            if training.get("fold") is not None:
                then = f"fold {training['fold']}" + (f" of {training['folds']}" if "folds" in training else "")
            raise SettingsError(
                f"{path}: has learned from images that would validate this run: {training.get('recipe')} was trained "
                f"on the same data and held out {then}, not fold {fold} of {folds}. Give --fold none, which validates "
                "nothing, or start from a model that held out the same fold"
            )


class Blend:
    """The mean of what a run has learned and of what it began with. It has most of what was learned, and loses less of
    what the start could do on other images (Wortsman et al. 2022, arXiv:2109.01903).

    Args:
        model: of the run, on its device; for its structure.
        start: its weights when it began; a state dict.
        share: of the start in the mean.
    """

    def __init__(self, model: nn.Module, start: Mapping[str, Tensor], share: float) -> None:
        self._module = copy.deepcopy(model).requires_grad_(False)
        device = next(model.parameters()).device
        self.start = {name: value.detach().clone().to(device) for name, value in start.items()}
        self._share = share

    def of(self, learned: nn.Module) -> nn.Module:
        """The mean with these weights; the same module each time."""
        self._module.load_state_dict(
            {
                name: torch.lerp(value, self.start[name], self._share) if value.is_floating_point() else value
                for name, value in learned.state_dict().items()
            }
        )
        return self._module


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
