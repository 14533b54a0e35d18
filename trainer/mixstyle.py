"""MixStyle (Zhou et al. 2021, arXiv:2104.02008): what an image looks like is mixed with another's inside the encoder.

The mean and the deviation of each channel of an early feature map hold colour, contrast and texture, which differ from
camera to camera, and little of where the lesion is. Mixed within a batch, they are styles that no training image has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LAYERS = (2, 3, 6)
"""Of the encoder, whose feature maps are mixed: at 1/4, 1/4 and 1/8 of the input. Further down a map's statistics tell
lesions apart (section 3.3 of the paper)."""
CONCENTRATION = 0.3
"""Both parameters of the Beta distribution of an image's share in its own style; mostly near 0 or 1."""
_EPSILON = 1e-5


@contextmanager
def mixed_styles(layers: nn.Sequential, probability: float, seed: int) -> Iterator[None]:
    """Within it, the maps that leave `LAYERS` of an encoder are mixed wherever gradients are recorded.

    Args:
        layers: of the encoder.
        probability: in [0, 1], that a batch is mixed, for each of the layers on its own; 0 for never.
        seed: of the epoch, so that a resumed run draws what it would have drawn.
    """
    rng = np.random.default_rng([seed, *LAYERS])

    def hook(module: nn.Module, inputs: Any, features: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or rng.random() >= probability:
            return features
        return mix_styles(features, rng)

    handles = [layers[i].register_forward_hook(hook) for i in LAYERS] if probability else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def mix_styles(features: Tensor, rng: np.random.Generator) -> Tensor:
    """Each image's map with the channels' means and standard deviations of a mixture of its own and another image's.

    Args:
        features: float N x C x H x W, of any precision; the statistics are taken in float32.
        rng: draws the partners and the shares.

    Returns:
        The same shape and type. No gradient flows through the statistics.
    """
    count = len(features)
    with torch.no_grad():
        wide = features.float()
        mean = wide.mean((2, 3), keepdim=True)
        deviation = (wide.var((2, 3), keepdim=True) + _EPSILON).sqrt()
        partner = torch.from_numpy(rng.permutation(count)).to(features.device, non_blocking=True)
        shares = rng.beta(CONCENTRATION, CONCENTRATION, count).astype(np.float32)
        own = torch.from_numpy(shares).to(features.device, non_blocking=True).view(count, 1, 1, 1)
        scale = (deviation * own + deviation[partner] * (1 - own)) / deviation
        shift = mean * own + mean[partner] * (1 - own) - mean * scale
    return features * scale.to(features.dtype) + shift.to(features.dtype)
