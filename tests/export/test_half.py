from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from isicrt.engine.errors import BuildError
from isicrt.engine.geometry import UInt8Array
from isicrt.export.half import anchors, find_region, round_through_half, to_half
from isicrt.export.onnx_export import Deployed, export_onnx
from isicrt.export.parity import OnnxLevels
from isicrt.trainer.models import normalise
from tests.export.tiny_network import tiny_card, tiny_network


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return types | {t.name: t.data_type for t in graph.initializer}


def _graph(nodes: list[onnx.NodeProto], **weights: object) -> onnx.ModelProto:
    """float32 1 x 1 x 2 x 2 ``x`` to ``y``."""
    shape: list[str | int | None] = ["n", 1, 2, 2]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1, "h", "w"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


_ONE = np.ones((1, 1, 1, 1), np.float32)


def test_convolutions_and_what_lies_between_them_are_half_and_the_ends_are_not(tiny_onnx: onnx.ModelProto) -> None:
    half = to_half(tiny_onnx)
    types = _types(half)
    assert types["image"] == types["probability"] == TensorProto.UINT8
    convolutions = [node for node in half.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    assert len(convolutions) == 6
    for node in convolutions:
        assert {types[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT16}
    by_type = {node.op_type: {types[n] for n in node.output} for node in half.graph.node}
    assert by_type["Concat"] == by_type["Clip"] == by_type["Relu"] == {TensorProto.FLOAT16}
    assert by_type["MatMul"] == by_type["Round"] == {TensorProto.FLOAT}
    # One cast on the way in and one on the way out, beside the two of the float32 graph.
    assert sum(node.op_type == "Cast" for node in half.graph.node) == 4


def test_half_weights_take_half_the_space(tiny_onnx: onnx.ModelProto) -> None:
    def weight_bytes(model: onnx.ModelProto) -> int:
        return sum(
            numpy_helper.to_array(t).nbytes for t in model.graph.initializer if len(t.dims) == 4 and t.dims[0] > 1
        )

    assert weight_bytes(to_half(tiny_onnx)) * 2 == weight_bytes(tiny_onnx)


def test_the_original_is_left_alone(tiny_onnx: onnx.ModelProto) -> None:
    before = tiny_onnx.SerializeToString(deterministic=True)
    to_half(tiny_onnx)
    round_through_half(tiny_onnx)
    assert tiny_onnx.SerializeToString(deterministic=True) == before


def test_it_runs_on_onnx_runtime_and_is_close_to_float32(tiny_onnx: onnx.ModelProto, pixels: UInt8Array) -> None:
    found = OnnxLevels(to_half(tiny_onnx))(pixels)
    exact = OnnxLevels(tiny_onnx)(pixels)
    assert 0 < np.abs(found - exact).max() < 2


def test_the_rehearsal_rounds_as_torch_rounds_in_half(tiny_onnx: onnx.ModelProto, pixels: UInt8Array) -> None:
    card = tiny_card()
    with torch.no_grad():
        # torch upsamples in half too, where the graph goes back to float32: leave that step out of the comparison.
        network = tiny_network()
        # The graph's batch norms are folded, which gives other weights to round.
        layers: Any = [*network.down, *network.deep]
        network.down = nn.Sequential(fuse_conv_bn_eval(layers[0], layers[1]), layers[2])
        network.deep = nn.Sequential(layers[3], fuse_conv_bn_eval(layers[4], layers[5]), layers[6])
        network.half()
        x = normalise(torch.from_numpy(pixels), card.mean, card.std).half()
        skip = network.down(x)
        deep = network.deep(skip)
        deep = deep * torch.sigmoid(network.gate(deep))
        logits = network.head(torch.cat([network.up(deep), skip], dim=1)).float()
        logits = torch.nn.functional.interpolate(logits, scale_factor=2.0, mode="bilinear", align_corners=False)
        expected = torch.sigmoid(logits)[:, 0].numpy() * 255
    rehearsed = OnnxLevels(tiny_onnx, rehearse_half=True)(pixels)
    exact = OnnxLevels(tiny_onnx)(pixels)
    error, effect = np.abs(rehearsed - expected).mean(), np.abs(expected - exact).mean()
    assert error < effect / 3, "the rehearsal must be much closer to half arithmetic than float32 is"


def test_the_rehearsal_sees_an_overflow_and_names_the_convolution(pixels: UInt8Array) -> None:
    card = tiny_card()
    model = export_onnx(Deployed(tiny_network(gain=6e4), card).eval(), card)
    rehearsal = OnnxLevels(model, rehearse_half=True)
    rehearsal(pixels)
    assert rehearsal.largest_activation is not None
    value, name = rehearsal.largest_activation
    assert not np.isfinite(value)
    assert name in anchors(model)
    assert np.isfinite(OnnxLevels(model)(pixels)).all(), "in float32 nothing is wrong with it"


def test_the_largest_activation_is_the_largest_of_all_batches(tiny_onnx: onnx.ModelProto, pixels: UInt8Array) -> None:
    together, one_by_one = (OnnxLevels(tiny_onnx, rehearse_half=True) for _ in range(2))
    together(pixels)
    for index in range(len(pixels)):
        one_by_one(pixels[index : index + 1])
    assert together.largest_activation == one_by_one.largest_activation
    assert OnnxLevels(tiny_onnx).largest_activation is None


def test_a_weight_that_others_read_too_is_copied() -> None:
    model = _graph(
        [
            helper.make_node("Mul", ["x", "w"], ["before"]),
            helper.make_node("Conv", ["before", "w"], ["c"], name="c"),
            helper.make_node("Mul", ["c", "w"], ["y"]),
        ],
        w=_ONE * 3,
    )
    assert find_region(model).shared_weights == {"w"}
    types = _types(to_half(model))
    assert (types["w"], types["w.half"]) == (TensorProto.FLOAT, TensorProto.FLOAT16)
    assert types["y"] == TensorProto.FLOAT
    session = onnxruntime.InferenceSession(to_half(model).SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.full((1, 1, 2, 2), 2, np.float32)})
    assert (y == 54).all()


def test_scales_of_a_resize_between_convolutions_stay_float() -> None:
    model = _graph(
        [
            helper.make_node("Conv", ["x", "w"], ["a"]),
            helper.make_node("Resize", ["a", "", "scales"], ["b"], mode="linear"),
            helper.make_node("Conv", ["b", "w"], ["c"]),
            helper.make_node("Relu", ["c"], ["y"]),
        ],
        w=_ONE,
        scales=np.array([1, 1, 2, 2], np.float32),
    )
    types = _types(to_half(model))
    assert (types["b"], types["scales"]) == (TensorProto.FLOAT16, TensorProto.FLOAT)


def test_an_inner_cast_to_float_becomes_one_to_half() -> None:
    model = _graph(
        [
            helper.make_node("Conv", ["x", "w"], ["a"]),
            helper.make_node("Greater", ["a", "zero"], ["positive"]),
            helper.make_node("Cast", ["positive"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Conv", ["mask", "w"], ["c"]),
            helper.make_node("Relu", ["c"], ["y"]),
        ],
        w=_ONE,
        zero=np.float32(0),
    )
    assert _types(to_half(model))["mask"] == TensorProto.FLOAT16


@pytest.mark.parametrize(
    ("nodes", "weights", "message"),
    [
        ([helper.make_node("Relu", ["x"], ["y"])], {}, "neither a convolution nor a matrix product"),
        ([helper.make_node("Conv", ["x", "w"], ["y"])], {"w": _ONE * 1e5}, "weights 'w' reach 100000"),
        (
            [
                helper.make_node("Conv", ["x", "w"], ["a"]),
                helper.make_node(
                    "If",
                    ["yes"],
                    ["y"],
                    name="branch",
                    then_branch=helper.make_graph(
                        [helper.make_node("Relu", ["a"], ["t"])],
                        "then",
                        [],
                        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
                    ),
                    else_branch=helper.make_graph(
                        [helper.make_node("Neg", ["a"], ["e"])],
                        "else",
                        [],
                        [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)],
                    ),
                ),
            ],
            {"w": _ONE, "yes": np.array(True)},
            "'branch' \\(If\\) has a subgraph",
        ),
    ],
)
def test_what_cannot_be_converted_says_why(
    nodes: list[onnx.NodeProto], weights: dict[str, object], message: str
) -> None:
    with pytest.raises(BuildError, match=message):
        to_half(_graph(nodes, **weights))
