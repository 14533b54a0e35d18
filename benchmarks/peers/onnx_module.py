"""An ONNX file as a torch module, for the peers that run torch: the same weights, and batch norms folded already.

Only the operators that isicrt's networks are made of. The result is a `torch.fx.GraphModule`: straight calls of torch's
functions one after the other, which run eagerly and can be compiled.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from isicrt.engine.errors import ModelError

if TYPE_CHECKING:
    import onnx
    import torch


def load_module(path: Path) -> torch.fx.GraphModule:
    """Read an ONNX file of one input and one output.

    Raises:
        ModelError: an operator, or a form of one, that no network of isicrt has.
    """
    import onnx
    import torch

    graph = onnx.load(path).graph
    root, traced = torch.nn.Module(), torch.fx.Graph()
    values: dict[str, Any] = {"": None}
    constants = {i.name: torch.from_numpy(onnx.numpy_helper.to_array(i).copy()) for i in graph.initializer}
    for n, (name, tensor) in enumerate(constants.items()):
        root.register_buffer(f"constant_{n}", tensor)
        values[name] = traced.get_attr(f"constant_{n}")
    values[graph.input[0].name] = traced.placeholder("images")
    for node in graph.node:
        function, arguments, options = _call(node, values, constants, path)
        values[node.output[0]] = traced.call_function(function, arguments, options)
    traced.output(values[graph.output[0].name])
    traced.eliminate_dead_code()
    return torch.fx.GraphModule(root, traced).eval()


def _call(
    node: onnx.NodeProto, values: dict[str, Any], constants: dict[str, torch.Tensor], path: Path
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Function, arguments and keyword arguments for one node."""
    import onnx
    import torch
    from torch.nn import functional

    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    inputs = [values[name] for name in node.input]

    def constant(n: int) -> list[Any]:
        found: list[Any] = constants[node.input[n]].flatten().tolist()
        return found

    def pads() -> list[int]:
        low, high = given["pads"][:2], given["pads"][2:]
        if low != high:
            raise ModelError(f"{path}: {node.op_type} '{node.name}' has uneven padding")
        return list(low)

    plain: dict[str, Any] = {
        "Add": torch.add,
        "Sub": torch.sub,
        "Mul": torch.mul,
        "Div": torch.div,
        "MatMul": torch.matmul,
        "Pow": torch.pow,
        "Sqrt": torch.sqrt,
        "Relu": functional.relu,
        "Sigmoid": torch.sigmoid,
        "Round": torch.round,
    }
    match node.op_type:
        case kind if kind in plain:
            return plain[kind], tuple(inputs), {}
        case "Conv":
            options = {"stride": list(given.get("strides", [1, 1])), "padding": pads() if "pads" in given else [0]}
            return functional.conv2d, tuple(inputs), options | _groups(given)
        case "ConvTranspose":
            options = {"stride": list(given.get("strides", [1, 1])), "padding": pads() if "pads" in given else [0]}
            return functional.conv_transpose2d, tuple(inputs), options | _groups(given)
        case "MaxPool":
            return functional.max_pool2d, (inputs[0], list(given["kernel_shape"]), list(given["strides"])), {}
        case "Clip":
            return torch.clamp, (inputs[0], constant(1)[0], constant(2)[0]), {}
        case "Concat":
            return torch.cat, (inputs, given["axis"]), {}
        case "Transpose":
            return torch.permute, (inputs[0], list(given["perm"])), {}
        case "ReduceMean" if given.get("keepdims", 1):
            return torch.mean, (inputs[0], [int(axis) for axis in constant(1)], True), {}
        case "Squeeze":
            return torch.squeeze, (inputs[0], [int(axis) for axis in constant(1)]), {}
        case "Cast":
            kinds = {onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.UINT8: torch.uint8}
            return torch.Tensor.to, (inputs[0], kinds[given["to"]]), {}
        case "Resize" if given["mode"] == b"linear" and len(inputs) == 3:
            return functional.interpolate, (inputs[0], None, constant(2)[2:], "bilinear", False), {}
    raise ModelError(f"{path}: operator {node.op_type} '{node.name}' is in no network of isicrt")


def _groups(given: dict[str, Any]) -> dict[str, Any]:
    return {"groups": given.get("group", 1), "dilation": list(given.get("dilations", [1, 1]))}
