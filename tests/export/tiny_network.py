"""A small network with every kind of operation that the three architectures use: a test exports it in seconds."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isicrt.engine.card import ModelCard


class TinyNetwork(nn.Module):
    """Strided, depthwise, dilated and transposed convolutions, batch norm, ReLU6, a gate, a skip and an upsampling."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.deep = nn.Sequential(
            nn.Conv2d(8, 8, 3, stride=2, padding=2, dilation=2, groups=8),
            nn.Conv2d(8, 8, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
        )
        self.gate = nn.Conv2d(8, 1, 1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.head = nn.Conv2d(16, 1, 1)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        deep = self.deep(skip) * self.gain
        deep = deep * torch.sigmoid(self.gate(deep))
        joined = torch.cat([self.up(deep), skip], dim=1)
        return F.interpolate(self.head(joined), scale_factor=2.0, mode="bilinear", align_corners=False)


def tiny_network(gain: float = 1.0) -> TinyNetwork:
    """Always the same weights; logits from about -6 to 6; in eval mode. A gain of 6e4 overflows half in the middle."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = TinyNetwork(gain)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
                nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
                nn.init.uniform_(module.bias, -0.5, 0.5)
        with torch.no_grad():
            network.head.weight.mul_(8)
    return network.eval()


def tiny_card(**changes: object) -> ModelCard:
    """Of `tiny_network`, for 64 x 96 px."""
    return ModelCard(name="tiny", architecture="tiny", input_height=64, input_width=96).replace(**changes)
