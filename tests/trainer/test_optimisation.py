"""Stages freeze what they say, rates follow the schedule, and the average lags behind the weights."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

from isicrt.benchmarks.rendered import render
from isicrt.engine.card import IMAGENET_MEAN, IMAGENET_STD
from isicrt.trainer.losses import mix
from isicrt.trainer.models import SegmentationModel, build_model, normalise
from isicrt.trainer.optimisation import learning_rate_factor, make_average, make_optimiser, restore, set_stage
from isicrt.trainer.recipe import Stage

FROZEN = Stage("frozen", epochs=1, decoder_lr=0.1)
TUNED = Stage("tuned", epochs=1, decoder_lr=0.1, encoder_lr=0.01)


@pytest.mark.parametrize(("stage", "moves"), [(FROZEN, False), (TUNED, True)])
def test_a_frozen_encoder_keeps_weights_and_statistics(stage: Stage, moves: bool) -> None:
    torch.manual_seed(0)
    model = build_model("unet", decoder_channels=[8, 8, 8, 8])
    before = {k: v.clone() for k, v in model.state_dict().items() if v.is_floating_point()}
    set_stage(model, stage)
    optimiser = make_optimiser(model, stage, weight_decay=0.1)
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    optimiser.step()
    changed = {k for k, v in model.state_dict().items() if k in before and not torch.equal(v, before[k])}
    assert any(k.startswith("encoder.") for k in changed) == moves
    assert any(k.startswith("decoder.") for k in changed)


def test_the_first_layers_stay_as_they_are_and_the_others_learn() -> None:
    torch.manual_seed(0)
    model = build_model("unet", decoder_channels=[8, 8, 8, 8])
    before = {k: v.clone() for k, v in model.state_dict().items() if v.is_floating_point()}
    set_stage(model, TUNED, frozen_layers=3)
    optimiser = make_optimiser(model, TUNED, weight_decay=0.1)
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    optimiser.step()
    changed = {k for k, v in model.state_dict().items() if k in before and not torch.equal(v, before[k])}
    layers = {int(k.split(".")[2]) for k in changed if k.startswith("encoder.layers.")}
    assert layers == set(range(3, 18))
    set_stage(model, TUNED)
    assert all(p.requires_grad for p in model.parameters())


def test_a_model_learns_one_batch_by_heart() -> None:
    torch.manual_seed(0)
    rendered = [render(seed, (64, 64)) for seed in range(4)]
    images = torch.from_numpy(np.stack([image for image, _ in rendered]))
    masks = torch.from_numpy(np.stack([mask for _, mask in rendered]) > 0).float()[:, None]
    model, loss = build_model("unet", decoder_channels=[8, 8, 8, 8]), mix({"bce": 1, "iou": 1})
    set_stage(model, TUNED)
    optimiser = make_optimiser(model, Stage("fast", 1, decoder_lr=1e-2, encoder_lr=3e-3), weight_decay=0.01)
    losses = []
    for _ in range(40):
        value = loss(model(normalise(images, IMAGENET_MEAN, IMAGENET_STD)), masks)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        losses.append(value.item())
    assert losses[-1] < 0.6 * losses[0]


def test_it_learns_as_plain_adamw_does_and_goes_on_from_where_that_one_was() -> None:
    def model_and_gradients(steps: int) -> tuple[SegmentationModel, list[dict[str, torch.Tensor]]]:
        torch.manual_seed(0)
        model = build_model("unet", decoder_channels=[8, 8, 8, 8]).to(memory_format=torch.channels_last)
        set_stage(model, TUNED)
        return model, [{n: torch.randn_like(p) for n, p in model.named_parameters()} for _ in range(steps)]

    def learn(model: SegmentationModel, optimiser: torch.optim.AdamW, gradients: list) -> None:
        for step in gradients:
            for name, parameter in model.named_parameters():
                parameter.grad = step[name]
            optimiser.step()

    plain, gradients = model_and_gradients(6)
    groups = [dict(group) for group in make_optimiser(plain, TUNED, weight_decay=0.1).param_groups]
    loop = torch.optim.AdamW([{k: g[k] for k in ("params", "lr", "base_lr", "weight_decay")} for g in groups])
    assert not loop.param_groups[0]["fused"]
    learn(plain, loop, gradients[:3])
    halfway, state = {n: v.clone() for n, v in plain.state_dict().items()}, deepcopy(loop.state_dict())
    learn(plain, loop, gradients[3:])

    ours, _ = model_and_gradients(0)
    learn(ours, make_optimiser(ours, TUNED, weight_decay=0.1), gradients)
    resumed, _ = model_and_gradients(0)
    resumed.load_state_dict(halfway)
    optimiser = make_optimiser(resumed, TUNED, weight_decay=0.1)
    restore(optimiser, state)
    learn(resumed, optimiser, gradients[3:])
    for name, parameter in plain.named_parameters():
        for other in (ours, resumed):
            torch.testing.assert_close(other.get_parameter(name), parameter, rtol=1e-5, atol=1e-6)


def test_rates_and_decay_by_group() -> None:
    model = build_model("unet", decoder_channels=[8, 8, 8, 8])
    groups = make_optimiser(model, TUNED, weight_decay=0.1).param_groups
    assert {(g["lr"], g["weight_decay"]) for g in groups} == {(0.01, 0.1), (0.01, 0), (0.1, 0.1), (0.1, 0)}
    assert all(p.ndim <= 1 for g in groups if g["weight_decay"] == 0 for p in g["params"])
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    assert {g["lr"] for g in make_optimiser(model, FROZEN, weight_decay=0.1).param_groups} == {0.1}


@pytest.mark.parametrize(
    ("schedule", "progress", "expected"),
    [
        ("cosine", 0.0, 0.0),
        ("cosine", 1.0, 0.5),
        ("cosine", 2.0, 1.0),
        ("cosine", 6.0, 0.5),
        ("cosine", 10.0, 0.0),
        ("constant", 1.0, 0.5),
        ("constant", 10.0, 1.0),
    ],
)
def test_warm_up_and_schedule(schedule: str, progress: float, expected: float) -> None:
    stage = Stage("s", epochs=10, decoder_lr=1, warmup_epochs=2, schedule=schedule)
    assert learning_rate_factor(stage, progress) == pytest.approx(expected)


def test_no_warm_up_starts_at_the_full_rate() -> None:
    stage = Stage("s", epochs=4, decoder_lr=1, warmup_epochs=0, schedule="constant")
    assert learning_rate_factor(stage, 0.0) == 1.0


def test_the_average_follows_weights_and_statistics() -> None:
    layer = torch.nn.BatchNorm1d(1)
    average = make_average(layer, decay=0.5)
    average.update_parameters(layer)  # the first update copies
    with torch.no_grad():
        layer.weight.fill_(3)
        layer.running_mean.fill_(8)
        layer.num_batches_tracked.fill_(7)
    average.update_parameters(layer)
    # n = 1: decay (1 + 1) / (10 + 1), so 9 / 11 of the way from 1 to 3 and from 0 to 8.
    assert average.module.weight.item() == pytest.approx(1 + 2 * 9 / 11)
    assert average.module.running_mean.item() == pytest.approx(8 * 9 / 11)
    assert int(average.module.num_batches_tracked) == 7
    for _ in range(20):
        average.update_parameters(layer)
    before = average.module.weight.item()
    with torch.no_grad():
        layer.weight.fill_(before + 1)
    average.update_parameters(layer)
    assert average.module.weight.item() == pytest.approx(before + 0.5)
