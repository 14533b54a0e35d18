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
