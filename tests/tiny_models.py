"""Tiny ONNX models with a card, made of literal weights: what a test segments with when accuracy is not the point."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from isicrt.engine.card import METADATA_KEY, ModelCard


def darkness_card(size: tuple[int, int] = (64, 64), **changes: object) -> ModelCard:
    """The card of `write_darkness_model`."""
    card = ModelCard(name="darkness", architecture="test", input_height=size[0], input_width=size[1])
    return card.replace(**changes)


def plan_card(**builder: object) -> ModelCard:
    """The card of a plan of `write_darkness_model`, built by TensorRT for RTX 1.7.1."""
    known = {"flavour": "tensorrt-rtx", "version": "1.7.1", "source": "best.pt", "profile": [1, 8, 16]}
    return darkness_card(builder=known | builder)


def write_darkness_model(path: Path, size: tuple[int, int] = (64, 64), **changes: object) -> ModelCard:
    """Write an ONNX whose lesion probability is 1 - green / 255, which finds the lesions that `render` draws.

    uint8 N x H x W x 3 in, uint8 N x H x W out, symbolic batch.
    """
    card = darkness_card(size, **changes)
    h, w = card.input_size
    weights = np.array([0, 1, 0], np.float32).reshape(3, 1)
    nodes = [
        helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "weights"], ["green"]),
        helper.make_node("Squeeze", ["green", "axis"], ["g"]),
        helper.make_node("Sub", ["full", "g"], ["p"]),
        helper.make_node("Cast", ["p"], ["probability"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "darkness",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", h, w, 3])],
        [helper.make_tensor_value_info("probability", TensorProto.UINT8, ["batch", h, w])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array([3], np.int64), "axis"),
            numpy_helper.from_array(np.array(255, np.float32), "full"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: card.to_json()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return card
