"""What a run begins with, where that is another run's checkpoint and not ImageNet."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from isicrt.engine.errors import SettingsError
from isicrt.trainer import checkpoint
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
        then = (card.architecture, card.network.get("layout"), card.network.get("decoder_channels"))
        if then != (recipe.architecture, recipe.layout, channels):
            raise SettingsError(
                f"{path}: holds {then[0]}, {then[1]}, decoder_channels {then[2]}; the recipe asks for "
                f"{recipe.architecture}, {recipe.layout}, {channels}. Start from a model of the same network."
            )
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        # The average lags behind the weights; an optimiser that begins anew wants the weights themselves.
        return cls(state.get("model", state["weights"]), {"sha256": digest, **card.training})
