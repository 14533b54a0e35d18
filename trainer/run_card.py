"""What the card of a run's models says: of the network, of how it was learned, and of its validation."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping
from typing import Any

import torch

from isicrt._version import __version__
from isicrt.engine.card import CENTRE_SIGMA, ModelCard
from isicrt.trainer.recipe import Recipe
from isicrt.trainer.run import RunSettings
from isicrt.trainer.run_folder import model_name
from isicrt.trainer.start import Start


def card_of(
    settings: RunSettings,
    network: Mapping[str, Any],
    data_sha256: str,
    training: int,
    validation: int,
    start: Start | None,
    teacher: Recipe | None,
    half: torch.dtype | None,
    encoder: str | None,
) -> ModelCard:
    """The card of a run's models before they are scored.

    Args:
        settings: of the run.
        network: what `build_model` gets beside the architecture.
        data_sha256: see `DatasetReport`.
        training: so many images are learned.
        validation: so many images validate.
        start: what the run begins with, if it is another run's checkpoint.
        teacher: the recipe of the run's teachers.
        half: see `half_type`.
        encoder: see `encoder_weights`; None where it is not known.
    """
    recipe, soft = settings.recipe, settings.recipe.soft_labels
    own = {
        "folds": None if settings.fold is None else recipe.folds,
        "start_from": start and dict(start.origin),
        "encoder_weights": None if start else encoder,
        "held_out": settings.held_out and list(settings.held_out),
        # The recipe's own name: a file's path tells of the machine.
        "soft_labels": soft and teacher and {"teacher": teacher.name, "parts": soft.parts, "share": soft.share},
    }
    return ModelCard(
        name=model_name(settings),
        architecture=recipe.architecture,
        input_height=recipe.input_size,
        input_width=recipe.input_size,
        centre_sigma=CENTRE_SIGMA,
        network=network,
        training={
            # The last two names of the path tell data sets apart and tell nothing of the machine.
            "data": ["/".join(root.absolute().parts[-2:]) for root in settings.data],
            "data_sha256": data_sha256,
            "training_images": training,
            "validation_images": validation,
            "recipe": recipe.name,
            "epochs": recipe.epochs,
            "fold": settings.fold,
            "seed": settings.seed,
            "arithmetic": str(half or torch.float32).removeprefix("torch."),
            **{name: value for name, value in own.items() if value is not None},
        },
        versions={"isicrt": __version__, "python": platform.python_version(), "torch": str(torch.__version__)},
        created=datetime.date.today().isoformat(),
    )


def noted(scores: Mapping[str, Any], recipe: Recipe, fold: int | None, remark: str = "") -> dict[str, Any]:
    """What a card says of the validation; nothing where there was none."""
    if not scores:
        return {}
    kept = ("images", "jaccard", "dice", "threshold_jaccard", "jaccard_low", "jaccard_high")
    protocol = {"protocol": f"official, without clean-up{remark}", "fold": f"{fold} of {recipe.folds}"}
    return {"validation": {name: scores[name] for name in kept} | protocol}
