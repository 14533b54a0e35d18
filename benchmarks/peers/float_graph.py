"""An isicrt ONNX with the input and the output that other packages expect: float32, channels first."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_float_graph(
    model: Path,
    path: Path,
    *,
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    std: tuple[float, float, float] = (1.0, 1.0, 1.0),
    offset: float = 0.0,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write `model` with a few operators before and behind it.

    Args:
        model: uint8 N x H x W x 3 to uint8 N x H x W.
        path: the new file. Its input is float32 N x 3 x H x W, RGB in [0, 1] less `mean` and over `std`; its output
            float32 N x 1 x H x W, the probability in [0, 1] less `offset`.
        mean, std: of the caller's normalisation, which is undone.
        offset: 0.5 where the caller takes the output for logits and cuts at 0.
        metadata: to add.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = onnx.load(model)
    inner, image, probability = graph.graph, graph.graph.input[0], graph.graph.output[0]
    batch, height, width = (d.dim_param or d.dim_value for d in probability.type.tensor_type.shape.dim)

    def constant(name: str, values: object, kind: type = np.float32) -> str:
        inner.initializer.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    before = [
        helper.make_node("Mul", ["input", constant("outer.std", np.reshape(std, (1, 3, 1, 1)) * 255)], ["outer.0"]),
        helper.make_node("Add", ["outer.0", constant("outer.mean", np.reshape(mean, (1, 3, 1, 1)) * 255)], ["outer.1"]),
        helper.make_node("Transpose", ["outer.1"], ["outer.2"], perm=[0, 2, 3, 1]),
        helper.make_node("Round", ["outer.2"], ["outer.3"]),
        helper.make_node("Cast", ["outer.3"], [image.name], to=TensorProto.UINT8),
    ]
    after = [
        helper.make_node("Cast", [probability.name], ["outer.4"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["outer.4", constant("outer.255", 255)], ["outer.5"]),
        helper.make_node("Sub", ["outer.5", constant("outer.offset", offset)], ["outer.6"]),
        helper.make_node("Unsqueeze", ["outer.6", constant("outer.axis", [1], np.int64)], ["output"]),
    ]
    nodes = [*before, *inner.node, *after]
    del inner.node[:], inner.input[:], inner.output[:]
    inner.node.extend(nodes)
    inner.input.append(helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, height, width]))
    inner.output.append(helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, 1, height, width]))
    if metadata:
        helper.set_model_props(graph, metadata)
    onnx.save(graph, path)
