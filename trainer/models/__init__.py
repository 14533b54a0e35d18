"""The three architectures: one encoder, one head, a decoder each.

>>> model = build_model("unet")
>>> model(torch.zeros(2, 3, 64, 64)).shape
torch.Size([2, 1, 64, 64])
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from isicrt.engine.errors import ModelError
from isicrt.trainer.models.blocks import enlarge
from isicrt.trainer.models.encoder import Features, MobileNetV2Encoder
from isicrt.trainer.models.segnet import SegNetDecoder
from isicrt.trainer.models.unet import LightUNetDecoder, ReportUNetDecoder

__all__ = ["ARCHITECTURES", "LAYOUTS", "SegmentationModel", "build_model", "normalise", "standardised"]

ARCHITECTURES = ("unet", "segnet-attention", "segnet-attention-atrous")
LAYOUTS = ("light", "report")
STRIDE = 32
LEAST_DEVIATION = 0.1
"""Added to what `standardised` divides by; skin alone has more."""

DEFAULT_CHANNELS = {
    ("unet", "light"): (192, 96, 64, 32),
    ("unet", "report"): (320, 32, 24, 16),
    ("segnet-attention", "light"): (160, 96, 64, 32),
    ("segnet-attention", "report"): (1200, 640, 360, 16),
    ("segnet-attention-atrous", "light"): (160, 96, 64, 32),
    ("segnet-attention-atrous", "report"): (1200, 640, 360, 16),
}


class SegmentationModel(nn.Module):
    """Encoder, decoder and a 1x1 head whose logits are enlarged to the input's resolution.

    Args:
        encoder: see there.
        decoder: features of the encoder to N x `channels` x H/`stride` x W/`stride`.
        channels: of the decoder's output.
        stride: of the decoder's output.
        standardise: see `standardised`.
    """

    def __init__(
        self,
        encoder: MobileNetV2Encoder,
        decoder: nn.Module,
        channels: int,
        stride: int = 2,
        standardise: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.standardise = standardise
        self.stride = stride
        self.decoder = decoder
        self.head = nn.Conv2d(channels, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images.

        Args:
            images: float32 N x 3 x H x W, normalised; H and W multiples of 32.

        Returns:
            float32 N x 1 x H x W.

        Raises:
            ModelError: a side is not a multiple of 32.
        """
        if not torch.compiler.is_compiling() and any(side % STRIDE for side in images.shape[-2:]):
            h, w = images.shape[-2:]
            near = [max(STRIDE, round(side / STRIDE) * STRIDE) for side in (h, w)]
            raise ModelError(f"input of {h} x {w}: both sides must be multiples of {STRIDE}; try {near[0]} x {near[1]}")
        return self.decode(self.encode(images))

    def encode(self, images: Tensor) -> Features:
        """The encoder's features of `images`, which are as for `forward`."""
        features: Features = self.encoder(standardised(images, self.standardise) if self.standardise else images)
        return features

    def decode(self, features: Features) -> Tensor:
        """Logits, float32 N x 1 x H x W, from the encoder's features of the images."""
        return enlarge(self.head(self.decoder(features)), self.stride)


def build_model(
    architecture: str,
    *,
    pretrained: str | os.PathLike[str] | None = None,
    decoder_channels: Sequence[int] | None = None,
    layout: str = "light",
    standardise: float = 0.0,
) -> SegmentationModel:
    """Build one of `ARCHITECTURES`.

    Args:
        architecture: its name.
        pretrained: ImageNet weights of the encoder, see `MobileNetV2Encoder`.
        decoder_channels: widths of the four decoder blocks from 1/16 to 1/2; None for the layout's own. The light
            U-Net also takes three, and then ends at 1/4.
        layout: ``light`` (separable convolutions, 320 top channels) or ``report`` (the report's layers).
        standardise: share in [0, 1], see `standardised`.

    Raises:
        ModelError: an unknown name, not so many positive widths, or no such share.
    """
    for value, allowed, what in ((architecture, ARCHITECTURES, "architecture"), (layout, LAYOUTS, "layout")):
        if value not in allowed:
            raise ModelError(f"unknown {what} {value!r}: choose from {', '.join(allowed)}")
    if not isinstance(standardise, int | float) or not 0 <= standardise <= 1:
        raise ModelError(f"standardise {standardise!r}: a share in [0, 1] is needed")
    widths = tuple(decoder_channels or DEFAULT_CHANNELS[architecture, layout])
    light = layout == "light"
    counts = (3, 4) if light and architecture == "unet" else (4,)
    if len(widths) not in counts or not all(isinstance(w, int) and 0 < w <= 4096 for w in widths):
        needed = "three or four" if 3 in counts else "four"
        raise ModelError(f"decoder_channels: {needed} widths from 1 to 4096 are needed, not {list(widths)}")
    encoder = MobileNetV2Encoder(top_channels=320 if light else 1280, pretrained=pretrained)
    decoder: LightUNetDecoder | ReportUNetDecoder | SegNetDecoder
    if architecture == "unet":
        decoder = (LightUNetDecoder if light else ReportUNetDecoder)(encoder.top_channels, widths)
    else:
        decoder = SegNetDecoder(encoder.top_channels, widths, light=light, atrous=architecture.endswith("atrous"))
    return SegmentationModel(encoder, decoder, decoder.out_channels, 2 ** (5 - len(widths)), float(standardise))


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 N x H x W x 3 to float32 N x 3 x H x W: (x / 255 - mean) / std, per channel.

    The one place where pixels are normalised: training calls it, and export traces it into the graph.
    """
    # To copy numbers to a GPU waits for all that it was asked to do before: once is enough.
    constants = _constants_on_gpu if images.is_cuda else _constants
    scale, shift = constants(tuple(mean), tuple(std), images.device)
    # The permuted view of N x H x W x 3 is what torch calls channels_last: no copy is made. It comes before the
    # arithmetic because ONNX Runtime is ten times slower where it has to repeat three numbers along the last dimension,
    # and after the cast because TensorRT for RTX takes no other order with uint8.
    return images.float().permute(0, 3, 1, 2) * scale + shift


def _constants(mean: Sequence[float], std: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    scale = torch.tensor([1 / (255 * s) for s in std], device=device).view(3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device).view(3, 1, 1)
    return scale, shift


@functools.cache
def _constants_on_gpu(mean: Sequence[float], std: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        return _constants(mean, std, device)


def standardised(images: Tensor, share: float) -> Tensor:
    """Each image's channels less their own mean, over their own standard deviation: what the light and the camera make
    of all pixels alike is gone before the network sees them.

    Args:
        images: float32 N x 3 x H x W, normalised.
        share: 1 for all of it; 0 for the images as they are; between, for what lies between.

    Returns:
        float32 N x 3 x H x W.
    """
    mean = images.mean((2, 3), keepdim=True)
    deviation = ((images - mean) ** 2).mean((2, 3), keepdim=True).sqrt()
    # A picture of next to nothing is not made into noise.
    return (images - share * mean) / (1 - share + share * (deviation + LEAST_DEVIATION))
