"""What the three decoders are made of. Tensors are float32 N x C x H x W."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DepthwiseConvolution(nn.Conv2d):
    """A depthwise 3x3 convolution that keeps the size.

    An atrous one computes in float32 on a CPU, whatever autocast says: oneDNN's bfloat16 gradients of dilated depthwise
    convolutions are not always finite (seen with torch 2.14 at 32 channels of 32 x 32 pixels).
    """

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        if self.dilation == (1, 1) or x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


def convolution(
    in_channels: int, out_channels: int, *, separable: bool = False, norm: bool = True, dilation: int = 1
) -> nn.Sequential:
    """A 3x3 convolution, batch norm and ReLU that keeps the size.

    Args:
        separable: a depthwise 3x3 and a pointwise 1x1 in place of the full one (Howard et al. 2017,
            arXiv:1704.04861): 8 to 9 times fewer multiplications.
        norm: False for a bias in place of the batch norm, as in the report's U-Net.
        dilation: distance of the taps in pixels; above 1 the convolution is atrous.
    """
    layers: list[nn.Module] = []
    if separable:
        layers.append(DepthwiseConvolution(in_channels, dilation))
        layers.append(nn.Conv2d(in_channels, out_channels, 1, bias=not norm))
    else:
        layers.append(nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=not norm))
    if norm:
        layers.append(nn.BatchNorm2d(out_channels))
    layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def convolutions(
    count: int,
    in_channels: int,
    out_channels: int,
    *,
    separable: bool = False,
    norm: bool = True,
    first_dilation: int = 1,
) -> nn.Sequential:
    """`count` convolutions in a row; the first changes the number of channels and may be atrous."""
    first = convolution(in_channels, out_channels, separable=separable, norm=norm, dilation=first_dilation)
    rest = [convolution(out_channels, out_channels, separable=separable, norm=norm) for _ in range(count - 1)]
    return nn.Sequential(first, *rest)


class AttentionGate(nn.Module):
    """The report's gate: x * sigmoid(batch norm(1x1 convolution(x))), one weight a pixel.

    It has no gating signal from the decoder, unlike the gate of Oktay et al. 2018 (arXiv:1804.03999).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(nn.Conv2d(channels, 1, 1, bias=False), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """The same shape, each pixel scaled by a weight in (0, 1)."""
        gated: Tensor = x * self.weigh(x)
        return gated


class AtrousContext(nn.Sequential):
    """Atrous convolutions of dilation 1 and then 2 on the encoder's top features, as in the report."""

    def __init__(self, channels: int, *, separable: bool) -> None:
        super().__init__(*(convolution(channels, channels, separable=separable, dilation=rate) for rate in (1, 2)))


def enlarge(x: Tensor, times: int) -> Tensor:
    """So many times the height and the width, bilinearly, with half-pixel centres."""
    larger = F.interpolate(x, scale_factor=float(times), mode="bilinear", align_corners=False)
    if larger.requires_grad and larger.device.type == "cpu":
        # Behind `join` its gradient is a window of a larger one, and torch 2.14 goes back through such a window seven
        # to fifteen times as slowly as through a copy of it.
        larger.register_hook(_whole)  # type: ignore[no-untyped-call]
    return larger


def _whole(gradient: Tensor) -> Tensor:
    """The same values without gaps between them, in the order of dimensions that they have."""
    channels_last = gradient.stride(1) == 1
    return gradient.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def join(x: Tensor, skip: Tensor) -> Tensor:
    """Decoder features and the skip of the same scale, concatenated by channel."""
    return torch.cat([x, skip], dim=1)
