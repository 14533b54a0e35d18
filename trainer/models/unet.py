"""U-Net on MobileNetV2 (Ronneberger et al. 2015, arXiv:1505.04597; the report's first architecture)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from isicrt.trainer.models.blocks import convolutions, enlarge, join
from isicrt.trainer.models.encoder import SKIP_CHANNELS, Features


class LightUNetDecoder(nn.Module):
    """For each width: double bilinearly, concatenate the skip, two separable convolutions.

    Four widths end at half resolution. Three end at a quarter: the last block works on four times as many pixels as the
    one before it, and an outline is smooth between them.
    """

    def __init__(self, top_channels: int, decoder_channels: Sequence[int]) -> None:
        super().__init__()
        inputs = [top_channels, *decoder_channels]
        self.blocks = nn.ModuleList(
            convolutions(2, below + skip, width, separable=True)
            for below, skip, width in zip(inputs, SKIP_CHANNELS, decoder_channels, strict=False)
        )
        self.out_channels = decoder_channels[-1]

    def forward(self, features: Features) -> Tensor:
        """N x out_channels x H/2 x W/2, or H/4 x W/4."""
        x = features.top
        skips = (features.sixteenth, features.eighth, features.quarter, features.half)
        for block, skip in zip(self.blocks, skips, strict=False):
            x = block(join(enlarge(x, 2), skip))
        return x


class ReportUNetDecoder(nn.Module):
    """The report's: three convolutions with ReLU and no batch norm, transposed convolution, concatenate the skip.

    Its published code makes the third convolution stride 2 and applies the transposed one twice, which throws
    resolution away and invents it again; here the stride is 1 and it is applied once. The weights are the same in
    number and shape.
    """

    def __init__(self, top_channels: int, decoder_channels: Sequence[int]) -> None:
        super().__init__()
        inputs = [top_channels, *(w + s for w, s in zip(decoder_channels, SKIP_CHANNELS, strict=True))]
        self.blocks = nn.ModuleList(
            nn.Sequential(convolutions(3, below, width, norm=False), nn.ConvTranspose2d(width, width, 2, stride=2))
            for below, width in zip(inputs, decoder_channels, strict=False)
        )
        self.out_channels = inputs[-1]

    def forward(self, features: Features) -> Tensor:
        """N x out_channels x H/2 x W/2."""
        x = features.top
        skips = (features.sixteenth, features.eighth, features.quarter, features.half)
        for block, skip in zip(self.blocks, skips, strict=True):
            x = torch.cat([block(x), skip], dim=1)
        return x
