"""The last step of a network, which doubles a map of one channel, as two matrix products.

Runtimes on the CPU keep tensors in blocks of 8 or 16 channels, and enlarge a map of one channel as if it had 16: a
quarter of the time of an int8 network in OpenVINO, a tenth in ONNX Runtime. Bilinear interpolation is linear in rows
and in columns, so two products with constant matrices compute the same. For maps of many channels `Resize` is right.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, helper, numpy_helper

from isicrt.export.onnx_graph import drop_unused

PREFIX = "enlargement."
"""Of the matrices' names. They are no weights, and products with them stay float32 in FP16 and int8 graphs."""
_CENTRES = (b"half_pixel", b"pytorch_half_pixel")


def is_enlargement(node: NodeProto) -> bool:
    """Whether a node is one of such products."""
    return any(name.startswith(PREFIX) for name in node.input)


def interpolation(before: int, after: int) -> npt.NDArray[np.float32]:
    """The matrix that enlarges a column: bilinear, half-pixel centres, the ends repeated.

    Args:
        before: values.
        after: values, at least as many.

    Returns:
        float32, after x before; each row has one or two numbers other than 0, which sum to 1.
    """
    centres = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
    low = np.floor(centres).astype(np.int64)
    high, share = np.minimum(low + 1, before - 1), (centres - low).astype(np.float32)
    matrix, rows = np.zeros((after, before), np.float32), np.arange(after)
    np.add.at(matrix, (rows, low), 1 - share)
    np.add.at(matrix, (rows, high), share)
    return matrix


def enlarge_by_products(model: onnx.ModelProto) -> int:
    """Put two products in place of each bilinear `Resize` of a map of one channel, in place.

    Args:
        model: float32, NCHW; shapes but for the batch follow from the file.

    Returns:
        How many were replaced.
    """
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    sides = {value.name: _map_sides(value) for value in (*inferred.value_info, *inferred.input, *inferred.output)}
    replaced = 0
    for node in [node for node in graph.node if node.op_type == "Resize"]:
        before, after = sides.get(node.input[0]), sides.get(node.output[0])
        if (
            before is None
            or after is None
            or not _is_bilinear(node)
            or any(a < b for a, b in zip(after, before, strict=True))
        ):
            continue
        name = f"{PREFIX}{replaced}."
        rows, columns = (interpolation(b, a) for b, a in zip(before, after, strict=True))
        graph.initializer.append(numpy_helper.from_array(rows, f"{name}rows"))
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(columns.T), f"{name}columns"))
        wide = helper.make_node("MatMul", [node.input[0], f"{name}columns"], [f"{name}wide"], name=f"{name}wider")
        high = helper.make_node("MatMul", [f"{name}rows", f"{name}wide"], list(node.output), name=f"{name}higher")
        index = list(graph.node).index(node)
        del graph.node[index]
        graph.node.insert(index, wide)
        graph.node.insert(index + 1, high)
        replaced += 1
    if replaced:
        drop_unused(graph)
    return replaced


def enlarge_by_resize(model: onnx.ModelProto) -> int:
    """The way back, in place, for TensorRT: its builder has no float32 matrix products for compute capability 7.5, and
    on a GPU a map of one channel costs no more than it should.

    Args:
        model: of ours.

    Returns:
        How many pairs of products became a bilinear `Resize`. One whose sides do not grow by whole numbers stays.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    replaced = 0
    for high in [node for node in graph.node if node.name.startswith(PREFIX) and node.input[0] in constants]:
        (wide,) = (node for node in graph.node if high.input[1] in node.output)
        (after, before), (across, broad) = constants[high.input[0]].dims, constants[wide.input[1]].dims
        if after % before or broad % across:
            continue
        scales = numpy_helper.from_array(
            np.array([1, 1, after // before, broad // across], np.float32), f"{high.input[0]}.scales"
        )
        graph.initializer.append(scales)
        resize = helper.make_node(
            "Resize",
            [wide.input[0], "", scales.name],
            list(high.output),
            name=high.name,
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        )
        index = list(graph.node).index(high)
        del graph.node[index]
        graph.node.insert(index, resize)
        graph.node.remove(wide)
        for name in (high.input[0], wide.input[1]):
            graph.initializer.remove(constants[name])
        replaced += 1
    return replaced


def _map_sides(value: onnx.ValueInfoProto) -> tuple[int, int] | None:
    """Height and width of a float tensor of N x 1 x H x W; None of another."""
    dims = value.type.tensor_type.shape.dim
    if len(dims) != 4 or value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT or dims[1].dim_value != 1:
        return None
    height, width = dims[2].dim_value, dims[3].dim_value
    return (height, width) if height and width else None


def _is_bilinear(node: NodeProto) -> bool:
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return (
        given.get("mode") == b"linear"
        and given.get("coordinate_transformation_mode", _CENTRES[0]) in _CENTRES
        and not given.get("antialias", 0)
        and not given.get("exclude_outside", 0)
    )
