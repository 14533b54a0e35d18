"""SegNet-style decoder with attention gates, and with atrous convolutions (the report's second and third architecture).

"SegNet" is the report's word. Badrinarayanan et al. 2015 (arXiv:1511.00561) upsample with the indices of the
encoder's max-pooling; MobileNetV2 has strides and no pooling, so there are no indices, and TensorRT could not parse
max-unpooling either. Like the report, this one upsamples with transposed convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from isicrt.trainer.models.blocks import AtrousContext, AttentionGate, convolutions, join
from isicrt.trainer.models.encoder import SKIP_CHANNELS, Features


class SegNetDecoder(nn.Module):
    """Four times: concatenate the gated features, transposed convolution, ReLU, three convolutions.

    Args:
        top_channels: of the encoder's last features; they are gated and concatenated with themselves.
        decoder_channels: widths of the four blocks.
        light: separable convolutions, and the transposed convolution narrows to the block's width; the report's keep
            the width there and are full convolutions.
        atrous: pass the top features through `AtrousContext`, and dilate the first convolution of each block by 2.
    """

    def __init__(self, top_channels: int, decoder_channels: Sequence[int], *, light: bool, atrous: bool) -> None:
        super().__init__()
        gated = (top_channels, *SKIP_CHANNELS[:3])
        self.context = AtrousContext(top_channels, separable=light) if atrous else nn.Identity()
        self.gates = nn.ModuleList(AttentionGate(channels) for channels in gated)
        self.blocks = nn.ModuleList()
        below = top_channels
        for skip, width in zip(gated, decoder_channels, strict=True):
            joined = below + skip
            between = width if light else joined
            self.blocks.append(
                nn.Sequential(
                    nn.ConvTranspose2d(joined, between, 2, stride=2),
                    nn.ReLU(inplace=True),
                    convolutions(3, between, width, separable=light, first_dilation=2 if atrous else 1),
                )
            )
            below = width
        self.out_channels = below

    def forward(self, features: Features) -> Tensor:
        """N x out_channels x H/2 x W/2."""
        skips = (features.top, features.sixteenth, features.eighth, features.quarter)
        gated = [gate(skip) for gate, skip in zip(self.gates, skips, strict=True)]
        x = self.context(gated[0])
        for block, skip in zip(self.blocks, gated, strict=True):
            x = block(join(x, skip))
        result: Tensor = x
        return result
