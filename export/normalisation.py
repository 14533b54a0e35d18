"""The normalisation of pixels in an int8 graph, as one operation."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from isicrt.export.onnx_graph import drop_unused


def fuse_normalisation(model: onnx.ModelProto) -> bool:
    """Make one BatchNormalization of the multiplication and the addition in front of the first convolution, in place.

    They compute the same. ONNX Runtime moves every transposition of an int8 graph to its ends, past
    arithmetic but not past a batch norm; and where three numbers are repeated along the last dimension, arithmetic is
    many times slower.

    Args:
        model: NCHW; is changed where it has a Mul and an Add by constants of C x 1 x 1, one after the other.

    Returns:
        Whether it was changed.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for index, (scale, shift) in enumerate(zip(graph.node, list(graph.node)[1:], strict=False)):
        if scale.op_type == "Conv":
            return False
        factors, summands = (_per_channel(node, constants) for node in (scale, shift))
        data = [name for name in scale.input if name not in constants]
        fits = scale.op_type == "Mul" and shift.op_type == "Add" and scale.output[0] in shift.input
        if not fits or factors is None or summands is None or len(factors) != len(summands) or len(data) != 1:
            continue
        values = (factors, summands, np.zeros_like(factors), np.ones_like(factors))
        names = [f"normalisation.{what}" for what in ("scale", "bias", "mean", "variance")]
        graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in zip(names, values, strict=True))
        norm = onnx.helper.make_node(
            "BatchNormalization", [data[0], *names], list(shift.output), name=scale.name, epsilon=0.0
        )
        del graph.node[index : index + 2]
        graph.node.insert(index, norm)
        drop_unused(graph)
        return True
    return False


def _per_channel(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> np.ndarray | None:
    """The one constant of a node, if it has a number for each channel of N x C x H x W."""
    found = [constants[name] for name in node.input if name in constants]
    if len(found) != 1 or list(found[0].dims[1:]) != [1, 1] or found[0].data_type != onnx.TensorProto.FLOAT:
        return None
    values: np.ndarray = numpy_helper.to_array(found[0]).reshape(-1)
    return values
