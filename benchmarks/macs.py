"""Arithmetic and weights of an ONNX graph, counted from its shapes: what a network costs before anybody times it."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from isicrt.engine.errors import MissingDependencyError, ModelError

if TYPE_CHECKING:
    import onnx

_INTERPOLATION = "enlargement."
"""What the names of such matrices begin with: `isicrt.export.enlargement`."""
_COUNTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def load_graph(path: Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        ModelError: it is not one.
        MissingDependencyError: `onnx` is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError("onnx", "train", str(error)) from error
    try:
        return onnx.load(str(path))
    except Exception as error:  # protobuf's and the file system's
        raise ModelError(f"{path}: not an ONNX file: {error}") from error


def count_macs(model: onnx.ModelProto, batch: int = 1) -> int:
    """Multiply-accumulate operations of one call: convolutions (transposed ones too) and matrix products.

    What is element-wise is not counted, as in the tables of papers; nor are biases. Zero padding counts as pixels do.

    Args:
        model: one input, its first dimension the batch, symbolic or not; float, half or with quantised weights.
        batch: images in the call.

    Raises:
        ModelError: a shape that follows neither from the file nor from the batch.
    """
    shapes = _shapes(model, batch)
    return sum(_node_macs(node, shapes) for node in model.graph.node if node.op_type in _COUNTED)


def count_parameters(model: onnx.ModelProto) -> int:
    """Weights and biases of the convolutions and matrix products; in an exported file batch norms are among them.

    Matrices that interpolate are no weights.
    """
    shapes = _shapes(model, 1)
    stored = {tensor.name for tensor in model.graph.initializer if not tensor.name.startswith(_INTERPOLATION)}
    for node in model.graph.node:
        # Quantised weights reach their convolution through this.
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            stored.add(node.output[0])
    used = {name for node in model.graph.node if node.op_type in _COUNTED for name in node.input if name in stored}
    return sum(prod(shapes[name]) for name in used)


def _shapes(model: onnx.ModelProto, batch: int) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape that can be known with this batch."""
    import onnx

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]  # these would keep the batch symbolic
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    for output in fixed.graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    found = {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            found[value.name] = tuple(dim.dim_value for dim in dims)
    return found


def _node_macs(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    names = (node.input[0], node.input[1], node.output[0])
    if unknown := [name for name in names if name not in shapes]:
        raise ModelError(f"node '{node.name or node.output[0]}' ({node.op_type}): the shape of '{unknown[0]}' is open")
    data, weight, result = (shapes[name] for name in names)
    if node.op_type == "Conv":  # weight: out x in/groups x k x k, once for each pixel and channel that comes out
        return prod(result) * prod(weight[1:])
    if node.op_type == "ConvTranspose":  # weight: in x out/groups x k x k, once for each that goes in
        return prod(data) * prod(weight[1:])
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return prod(result) * data[0 if transposed else -1]
