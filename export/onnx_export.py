"""A torch module into an ONNX graph that takes uint8 pixels and gives uint8 probabilities."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from torch import Tensor, nn

from isicrt.engine.card import ModelCard
from isicrt.engine.errors import BuildError
from isicrt.export.enlargement import enlarge_by_products
from isicrt.export.onnx_graph import BATCH, INPUT, OUTPUT, check_batch_is_symbolic, strip
from isicrt.trainer.models import normalise

MAX_BATCH = 4096
"""Upper end of the symbolic batch. A profile chooses within it."""


class Deployed(nn.Module):
    """A network with its normalisation and its sigmoid: what the ONNX file computes.

    Args:
        network: normalised float32 N x 3 x H x W to logits N x 1 x H x W; in eval mode.
        card: gives mean and standard deviation.
    """

    def __init__(self, network: nn.Module, card: ModelCard) -> None:
        super().__init__()
        self.network = network
        self.mean, self.std = card.mean, card.std

    def levels(self, images: Tensor) -> Tensor:
        """uint8 N x H x W x 3 to probability times 255, float32 N x H x W, not yet rounded."""
        logits = self.network(normalise(images, self.mean, self.std))
        return torch.sigmoid(logits).squeeze(1) * 255

    def forward(self, images: Tensor) -> Tensor:
        """uint8 N x H x W x 3 to uint8 N x H x W."""
        return torch.round(self.levels(images)).to(torch.uint8)


def export_onnx(deployed: Deployed, card: ModelCard) -> onnx.ModelProto:
    """Trace a network into one float32 graph with a symbolic batch; batch norms are folded into convolutions.

    The last doubling is two matrix products (`isicrt.export.enlargement`).

    Args:
        deployed: in eval mode, on the CPU.
        card: gives the input size.

    Raises:
        BuildError: torch cannot trace it, or the batch came out fixed.
    """
    if deployed.training:
        raise BuildError("the network is in training mode: its batch norms would normalise by the batch")
    # A batch of 1 would be baked in by older versions of torch.
    example = torch.zeros(2, card.input_height, card.input_width, 3, dtype=torch.uint8)
    batch = torch.export.Dim(BATCH, min=1, max=MAX_BATCH)
    try:
        with torch.inference_mode(False), torch.no_grad(), _quiet():
            program = torch.onnx.export(
                deployed,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: batch},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                external_data=False,
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # torch.export raises whatever the traced code and its own passes do
        reason = str(error).strip().split("\n\n")[0]
        raise BuildError(f"torch {torch.__version__} cannot export '{card.name}' to ONNX: {reason}") from error
    if program is None:
        raise BuildError(f"torch {torch.__version__} exported nothing for '{card.name}'")
    model = program.model_proto
    enlarge_by_products(model)
    strip(model)
    model.graph.name = card.architecture
    check_batch_is_symbolic(model)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's reports, warnings and log lines. What it raises still comes through."""
    before = logging.root.manager.disable
    chatter = io.StringIO()
    try:
        logging.disable(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stdout(chatter), contextlib.redirect_stderr(chatter):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
