"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381), torchvision's layers, as an encoder with four skips."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from isicrt.engine.errors import MissingDependencyError, ModelError


class Features(NamedTuple):
    """What the encoder sees of an N x 3 x H x W image."""

    half: Tensor
    """N x 16 x H/2 x W/2"""
    quarter: Tensor
    """N x 24 x H/4 x W/4"""
    eighth: Tensor
    """N x 32 x H/8 x W/8"""
    sixteenth: Tensor
    """N x 96 x H/16 x W/16"""
    top: Tensor
    """N x `top_channels` x H/32 x W/32"""


SKIP_CHANNELS = (96, 32, 24, 16)
"""Of the skips, from the deepest (1/16) to the shallowest (1/2)."""
_TAPS = (1, 3, 6, 13)


class StridedDepthwiseConvolution(nn.Conv2d):
    """A depthwise convolution of stride 2 that computes in float32 on a CPU, whatever autocast says.

    oneDNN's bfloat16 gradient of its input is 3 to 80 times slower than the float32 one (torch 2.14, AVX-512 BF16):
    four of these layers took 40 % of a training step.
    """

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H/2 x W/2."""
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


class MobileNetV2Encoder(nn.Module):
    """The convolutional part of MobileNetV2.

    Args:
        top_channels: 320 stops at the last inverted residual; 1280 keeps the 1x1 convolution behind it, which the
            report's models use and which holds a fifth of the weights.
        pretrained: None for random weights, ``"imagenet"`` for torchvision's download, or a state dict file in
            torchvision's layout (loaded with ``weights_only=True``).

    Raises:
        ModelError: the file cannot be read or does not hold a MobileNetV2.
    """

    def __init__(self, *, top_channels: int = 320, pretrained: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        try:
            from torchvision.models import MobileNet_V2_Weights, mobilenet_v2
        except ImportError as error:
            raise MissingDependencyError("torchvision", "train", str(error)) from error
        if top_channels not in (320, 1280):
            raise ModelError(f"MobileNetV2 has 320 or 1280 top channels, not {top_channels}")
        if pretrained == "imagenet":
            try:
                network = mobilenet_v2(weights=MobileNet_V2_Weights.IMAGENET1K_V1)
            except OSError as error:
                raise ModelError(
                    f"cannot download torchvision's ImageNet weights: {error}. Download the file elsewhere and name it "
                    "with ISICRT_ENCODER_WEIGHTS."
                ) from error
        else:
            network = mobilenet_v2(weights=None)
            if pretrained is not None:
                _load(network, Path(pretrained))
        self.top_channels = top_channels
        self.layers: nn.Sequential = network.features[: 19 if top_channels == 1280 else 18]
        for layer in self.layers.modules():
            if isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.stride != (1, 1):
                layer.__class__ = StridedDepthwiseConvolution  # torchvision has no argument for the kind of layer

    def forward(self, images: Tensor) -> Features:
        """Features of float32 N x 3 x H x W, ImageNet-normalised; H and W multiples of 32."""
        skips = []
        x = images
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in _TAPS:
                skips.append(x)
        half, quarter, eighth, sixteenth = skips
        return Features(half, quarter, eighth, sixteenth, x)


def _load(network: nn.Module, path: Path) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state, strict=True)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file of encoder weights") from None
    except Exception as error:  # torch.load raises whatever the unpickler does
        raise ModelError(
            f"{path}: not a state dict of torchvision's mobilenet_v2: {str(error) or type(error).__name__}"
        ) from error
