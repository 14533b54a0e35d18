"""Networks of every architecture and width without training, for what does not depend on weights: export and builds.

    python -m isicrt.export.untrained FOLDER --layout report

Only their scores mean nothing.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from torch import nn
from torch.nn import functional as F

from isicrt._command import ModuleCommand, NamedPath
from isicrt.engine.card import ModelCard
from isicrt.export.onnx_export import Deployed
from isicrt.trainer.checkpoint import save
from isicrt.trainer.models import ARCHITECTURES, LAYOUTS, build_model, normalise

_BATCH = 8


def make_untrained(
    architecture: str, layout: str = "light", size: int = 128, standardise: float = 0.0
) -> tuple[Deployed, ModelCard]:
    """Random weights, the same in each call, and batch norms that have seen one batch: else the signal dies on its way
    down.

    Args:
        architecture: see `build_model`.
        layout: see there.
        size: side of the input in pixels.
        standardise: see `build_model`.

    Returns:
        The network in eval mode with its normalisation and its sigmoid, and its card.
    """
    card = ModelCard(
        name=f"{architecture}-{layout}-untrained",
        architecture=architecture,
        network={"layout": layout, "standardise": standardise},
        input_height=size,
        input_width=size,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        network = build_model(architecture, pretrained=None, **card.network)
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        # Blobs, not noise: a network averages noise away, and its last norms would have nothing to go by.
        images = F.interpolate(torch.rand(_BATCH, 3, 6, 6), size=(size, size), mode="bicubic").clamp(0, 1) * 255
        pixels = normalise(images.permute(0, 2, 3, 1).to(torch.uint8), card.mean, card.std)
        network(pixels)
        for norm in norms:
            norm.momentum = 0.1
            assert norm.running_var is not None
            norm.running_var.clamp_(min=0.003)  # dead channels would amplify nothing but the rounding
        # Logits of standard deviation 2 around -3. Around 0, rounding would turn too many pixels for the parity gate.
        logits = network.eval()(pixels)
        scale = 2 / logits.std()
        network.head.weight.mul_(scale)
        assert network.head.bias is not None
        network.head.bias.sub_(logits.mean()).mul_(scale).sub_(3)
    return Deployed(network, card).eval(), card


@click.command(cls=ModuleCommand)
@click.argument("folder", type=NamedPath(file_okay=False, path_type=Path))
@click.option("--layout", type=click.Choice(LAYOUTS), default="report", show_default=True)
@click.option("--size", type=click.IntRange(32), default=128, show_default=True, help="Side of the input in pixels.")
def main(folder: Path, layout: str, size: int) -> None:
    """Write a checkpoint of each architecture into FOLDER: ARCHITECTURE-LAYOUT-untrained.pt."""
    folder.mkdir(parents=True, exist_ok=True)
    for architecture in ARCHITECTURES:
        deployed, card = make_untrained(architecture, layout, size)
        path = folder / f"{card.name}.pt"
        save(path, card=card, weights=deployed.network.state_dict())
        parameters = sum(p.numel() for p in deployed.network.parameters())
        click.echo(f"{path}: {parameters / 1e6:.2f} M parameters, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
