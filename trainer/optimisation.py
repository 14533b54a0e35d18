"""Optimiser, learning-rate schedule and moving average of the weights, as a recipe asks for them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from isicrt.trainer.models import SegmentationModel
from isicrt.trainer.recipe import Stage


def set_stage(model: SegmentationModel, stage: Stage, frozen_layers: int = 0) -> None:
    """Train mode, with the weights and the batch-norm statistics of the encoder, or of its first `frozen_layers`,
    frozen where the stage or the recipe says so."""
    model.train()
    model.encoder.requires_grad_(not stage.frozen)
    kept = model.encoder.layers if stage.frozen else model.encoder.layers[:frozen_layers]
    kept.eval().requires_grad_(False)


def make_optimiser(model: SegmentationModel, stage: Stage, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) of what `set_stage` has not frozen; one group for each of
    encoder and decoder, with weight decay and without: biases and batch norms do not decay. A group's own rate is in
    its ``base_lr``."""
    groups = []
    for part, rate in (
        (model.encoder, stage.encoder_lr),
        (nn.ModuleList([model.decoder, model.head]), stage.decoder_lr),
    ):
        if rate == 0:
            continue
        parameters = [p for p in part.parameters() if p.requires_grad]
        for chosen, decay in (
            ([p for p in parameters if p.ndim > 1], weight_decay),
            ([p for p in parameters if p.ndim <= 1], 0.0),
        ):
            groups.append({"params": chosen, "lr": rate, "base_lr": rate, "weight_decay": decay})
    # One kernel for all weights, on a GPU and on a CPU; AdamW's default takes several for each of them.
    return torch.optim.AdamW(groups, fused=True)


def restore(optimiser: torch.optim.AdamW, state: Mapping[str, Any]) -> None:
    """Give an optimiser of `make_optimiser` the state of another one, which may have been on another device."""
    # Where a parameter's count of steps is kept, torch decides by what the state says of its groups.
    groups = [{**group, "fused": True} for group in state["param_groups"]]
    optimiser.load_state_dict({**state, "param_groups": groups})


@contextmanager
def chosen_convolutions(device: str) -> Iterator[None]:
    """Within it, cuDNN tries its ways of each convolution when it first meets its sizes, and takes the quickest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def learning_rate_factor(stage: Stage, progress: float) -> float:
    """What the stage's rates are multiplied with.

    Args:
        stage: with its schedule.
        progress: epochs done in this stage, a fraction within the epoch.

    Returns:
        From 0 up to 1 in ``warmup_epochs``, then 1, or a half cosine down to 0 at the end of the stage.
    """
    warmup = min(stage.warmup_epochs, stage.epochs / 2)
    if progress < warmup:
        return progress / warmup
    if stage.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(stage.epochs - warmup, 1e-9)))


def make_average(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of weights and batch-norm statistics (Polyak and Juditsky 1992).

    The decay grows as (1 + n) / (10 + n) up to `decay`, so that the first epochs are not held back by the random
    weights that the run began with.
    """

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: int | Tensor) -> None:
        # The argument is a copy on the weights' device, and to read it would wait for a GPU.
        n = float(average.n_averaged)
        weight = 1 - min(decay, (1 + n) / (10 + n))
        # All of one kind.
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(list(averaged), list(current), weight)
        else:  # number of batches seen
            torch._foreach_copy_(list(averaged), list(current))

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    return average


def all_finite(model: nn.Module) -> bool:
    """Whether all weights and statistics are finite numbers."""
    floats = [value for value in model.state_dict().values() if value.is_floating_point()]
    return bool(torch.stack([value.isfinite().all() for value in floats]).all())  # a GPU is waited for once
