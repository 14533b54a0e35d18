"""Styles are mixed within a batch and content stays; nothing is mixed when nothing is learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from isicrt.trainer.mixstyle import LAYERS, mix_styles, mixed_styles
from isicrt.trainer.models import build_model


def features() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.5, 1.0, 3.0, 8.0]).view(4, 1, 1, 1)
    return (torch.randn(4, 6, 12, 10, generator=generator) + 2) * scale


def test_each_image_gets_statistics_between_its_own_and_its_partners() -> None:
    before, rng = features(), np.random.default_rng(2)
    partner = np.random.default_rng(2).permutation(4)
    after = mix_styles(before, rng)
    for statistic in (lambda x: x.mean((2, 3)), lambda x: x.std((2, 3))):
        own, other, mixed = statistic(before), statistic(before)[partner], statistic(after)
        # One share for all channels of an image, the same for means and deviations.
        low, high = torch.minimum(own, other), torch.maximum(own, other)
        assert torch.all((mixed > low - 1e-3) & (mixed < high + 1e-3))
    assert not torch.allclose(before, after, atol=0.1)


def test_the_content_stays() -> None:
    before, after = features(), mix_styles(features(), np.random.default_rng(2))

    def standardised(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True)

    torch.testing.assert_close(standardised(before), standardised(after), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_the_type_stays_and_gradients_are_scaled_alone(kind: torch.dtype) -> None:
    before = features().to(kind).requires_grad_()
    after = mix_styles(before, np.random.default_rng(2))
    assert after.dtype == kind
    after.float().sum().backward()
    assert before.grad is not None
    # No gradient through the statistics: one factor for each image and channel.
    assert torch.all(before.grad.float().flatten(2).std(2) < 1e-6)


def test_a_network_mixes_where_it_learns_and_only_within_the_block() -> None:
    torch.manual_seed(0)
    model = build_model("unet", decoder_channels=[8, 8, 8, 8]).train()
    images = torch.randn(4, 3, 64, 64) * torch.tensor([0.3, 1.0, 2.0, 4.0]).view(4, 1, 1, 1)
    plain = model(images).detach()
    with mixed_styles(model.encoder.layers, 1.0, seed=3):
        mixed = model(images).detach()
        with torch.no_grad():
            torch.testing.assert_close(model(images), plain)
    with mixed_styles(model.encoder.layers, 1.0, seed=3):
        again = model(images).detach()
    assert not torch.allclose(mixed, plain, atol=1e-3)
    torch.testing.assert_close(again, mixed)
    torch.testing.assert_close(model(images).detach(), plain)
    assert not any(model.encoder.layers[i]._forward_hooks for i in LAYERS)


def test_a_probability_of_nought_mixes_nothing() -> None:
    model = build_model("unet", decoder_channels=[8, 8, 8, 8]).eval()
    images = torch.randn(2, 3, 64, 64)
    with mixed_styles(model.encoder.layers, 0.0, seed=3):
        torch.testing.assert_close(model(images), model(images))
