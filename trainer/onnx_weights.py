"""Weights of an ``.onnx`` file, back in the module that they were exported from, so that it can go on learning.

An export folds each batch norm into the convolution before it. Here it comes back as one that changes nothing; what
its inputs are like is measured anew on images (`measure_batch_norms`), without a change of what the network computes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isicrt.engine.card import ModelCard
from isicrt.engine.errors import MissingDependencyError, ModelError
from isicrt.engine.onnx_file import read_onnx_card
from isicrt.trainer.models import SegmentationModel, build_model

_PREFIX = "network."
"""Of the module's names in the graph that `isicrt.export` makes."""


def read_weights(path: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    """The card of a float32 or float16 file of isicrt, and a float32 state dict for `build_model`.

    Raises:
        ModelError: not such a file; or rounded to 8 bits, of several views, or without the names of a module's weights.
        MissingDependencyError: `onnx` is not installed.
    """
    card = read_onnx_card(path)
    if card.precision == "int8":
        raise ModelError(
            f"{path}: holds weights that are rounded to 8 bits, which learn no more. Start from the file that it was "
            "made of: of the models that ship, unet-light"
        )
    if card.views > 1:
        raise ModelError(
            f"{path}: averages {card.views} views of each image. Start from the file of one view that it was made of"
        )
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise MissingDependencyError("onnx", "train", str(error)) from error
    try:
        tensors = {
            tensor.name: torch.from_numpy(np.array(numpy_helper.to_array(tensor))).float()
            for tensor in onnx.load(path, load_external_data=False).graph.initializer
            if tensor.name.startswith(_PREFIX)
        }
        model = build_model(card.architecture, pretrained=None, **card.network)
        with torch.no_grad():
            _fill(model, tensors)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"{path}: its weights cannot be read back ({error}). Start from the checkpoint that it was exported from"
        ) from error
    return card, model.state_dict()


def _fill(model: SegmentationModel, tensors: dict[str, Tensor]) -> None:
    """Put a graph's tensors into the module.

    Raises:
        ValueError: one is missing or left over, or has another shape.
    """
    left = dict(tensors)

    def put(parameter: Any, name: str) -> None:
        if (found := left.pop(_PREFIX + name, None)) is None:
            raise ValueError(f"there is no {name}")
        if found.shape != parameter.shape:
            raise ValueError(f"{name} is of {tuple(found.shape)} and not of {tuple(parameter.shape)}")
        parameter.copy_(found)

    norms = dict(_norms(model))
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            continue
        put(module.weight, f"{name}.weight")
        if (norm := norms.pop(name, None)) is not None:
            norm.reset_running_stats()
            assert norm.running_var is not None
            norm.weight.copy_((norm.running_var + norm.eps).sqrt())
            put(norm.bias, f"{name}.weight_bias")
        elif module.bias is not None:
            put(module.bias, f"{name}.bias")
    if norms or left:
        raise ValueError(f"{next(iter(norms or left))} belongs nowhere")


def _norms(model: nn.Module) -> Iterator[tuple[str, nn.BatchNorm2d]]:
    """Batch norms by the name of the convolution that each follows."""
    for prefix, parent in model.named_modules():
        if isinstance(parent, nn.Sequential):
            children = list(parent.named_children())
            for (name, before), (_, module) in itertools.pairwise(children):
                if isinstance(module, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
                    yield f"{prefix}.{name}", module


@torch.no_grad()
def measure_batch_norms(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give each batch norm the mean and the variance of what comes to it, and the scale and shift that make up for it.

    In eval mode the model computes what it did before; in train mode nearly so, as after a training.

    Args:
        model: in any mode, in which it is left.
        batches: of its inputs, on its device; each pixel counts alike.
    """
    sums: dict[nn.BatchNorm2d, list[Any]] = {}

    def count(module: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].double()
        known = sums.setdefault(module, [0.0, 0.0, 0])
        known[0] = known[0] + values.sum((0, 2, 3))
        known[1] = known[1] + (values * values).sum((0, 2, 3))
        known[2] += values.numel() // values.shape[1]

    training = model.training
    hooks = [m.register_forward_pre_hook(count) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    try:
        model.eval()
        for batch in batches:
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    for norm, (total, squares, pixels) in sums.items():
        mean = total / pixels
        variance = (squares / pixels - mean * mean).clamp_min(0)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        before = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.double() - before * norm.running_mean.double()
        norm.weight.copy_(before * (variance + norm.eps).sqrt())
        norm.bias.copy_(shift + before * mean)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
