"""FP16 in the graph. TensorRT 11 has no precision flag: an engine is as precise as the ONNX that it is built from.

What lies on a path from a convolution to a convolution becomes half, weights and activations alike. What comes before
(the normalisation of the pixels) and after (the upsampling of the logits, sigmoid, rounding) stays float32, and so do
the types of input and output.

This is done on the graph and not by exporting half weights, so that a shipped ONNX and a checkpoint take one road.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from isicrt.engine.errors import BuildError
from isicrt.export.enlargement import is_enlargement
from isicrt.export.onnx_graph import copy_node

_ANCHORS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

# Inputs that ONNX defines as float32 whatever the type of the data (roi is unused here and may stay as it is).
_ALWAYS_FLOAT = {"Resize": (1, 2), "Upsample": (1,)}


def is_anchor(node: NodeProto) -> bool:
    """Whether the precision of a model is about a node's arithmetic: a convolution or a matrix product."""
    return node.op_type in _ANCHORS and not is_enlargement(node)


def around_anchors(nodes: Sequence[NodeProto]) -> tuple[set[int], set[int]]:
    """Indices of the anchors and of what follows one; and indices of what leads to one, a further one where it is an
    anchor itself."""
    # ONNX sorts nodes topologically, so that one sweep each way finds what anchors reach and what reaches them.
    after: set[str] = set()
    before: set[str] = set()
    reached, leading = set(), set()
    for index, node in enumerate(nodes):
        if is_anchor(node) or after.intersection(node.input):
            reached.add(index)
            after.update(node.output)
    for index, node in reversed(list(enumerate(nodes))):
        if before.intersection(node.output):
            leading.add(index)
        if index in leading or is_anchor(node):
            before.update(node.input)
    return reached, leading


@dataclass(frozen=True)
class HalfRegion:
    """Which nodes become half, and where float32 tensors meet them."""

    nodes: frozenset[int]
    """Indices into the graph's nodes."""
    made: frozenset[str]
    """Float tensors that these nodes produce."""
    taken: frozenset[str]
    """Float tensors from outside that they consume; initialisers are not among them."""
    weights: frozenset[str]
    """Float initialisers that they consume."""
    shared_weights: frozenset[str]
    """Those of `weights` that something outside consumes too."""


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose network is FP16, see above.

    Args:
        model: float32, without subgraphs.

    Raises:
        BuildError: there is nothing to convert; a weight is too large for half (65504); or the graph uses an operation
            that the conversion does not understand.
    """
    model = _copy(model)
    graph = model.graph
    region = find_region(model)
    renamed = _convert_weights(model, region, lambda array: array.astype(np.float16))
    down = {name: f"{name}.half" for name in region.taken}
    up = {name: f"{name}.float" for name in region.made}
    for index, node in enumerate(graph.node):
        inside = index in region.nodes
        for position, name in enumerate(node.input):
            half = inside and position not in _kept_inputs(node)
            node.input[position] = (down | renamed).get(name, name) if half else up.get(name, name)
        for attribute in node.attribute if inside else ():
            _attribute_to_half(node, attribute)
    casts = {name: _cast(name, half, TensorProto.FLOAT16) for name, half in down.items()}
    read = {name for node in graph.node for name in node.input}
    casts |= {name: _cast(name, full, TensorProto.FLOAT) for name, full in up.items() if full in read}
    _replace_nodes(model, _with_casts(model, graph.node, casts))
    return _checked(model)


def round_through_half(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """A float32 copy that computes what the half graph computes, on a runtime that has no half arithmetic.

    ONNX Runtime's CPU kernels run half graphs in float32 and drop the rounding between them. Here every weight and
    every tensor of the half region goes to half and back, so that rounding and overflow happen; the sums inside one
    operation are float32, as in a tensor core with float32 accumulation.

    Returns:
        The model; and the name of an added output, float32 of one number for each node of `anchors` in their order:
        the largest absolute value that it produced, infinity where half overflowed.
    """
    model = _copy(model)
    graph = model.graph
    region = find_region(model)
    renamed = _convert_weights(model, region, lambda array: array.astype(np.float16).astype(np.float32))
    down = {name: f"{name}.rounded" for name in region.taken}
    rounding = {name: _round_trip(name, rounded) for name, rounded in down.items()}
    peaks = [node.output[0] for node in graph.node if is_anchor(node)]
    for index in region.nodes:
        node = graph.node[index]
        for position, name in enumerate(node.input):
            if position not in _kept_inputs(node):
                node.input[position] = (down | renamed).get(name, name)
        for position, name in enumerate(node.output):
            if name in region.made:
                node.output[position] = f"{name}.exact"
                rounding[f"{name}.exact"] = _round_trip(f"{name}.exact", name)
    nodes = _with_casts(model, graph.node, rounding)
    for name in peaks:
        nodes.append(helper.make_node("Abs", [name], [f"{name}.abs"]))
        nodes.append(helper.make_node("ReduceMax", [f"{name}.abs"], [f"{name}.peak"], keepdims=0))
        nodes.append(helper.make_node("Unsqueeze", [f"{name}.peak", "isicrt.first_axis"], [f"{name}.peak1"]))
    nodes.append(helper.make_node("Concat", [f"{name}.peak1" for name in peaks], ["isicrt.peaks"], axis=0))
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "isicrt.first_axis"))
    _replace_nodes(model, nodes)
    graph.output.append(helper.make_tensor_value_info("isicrt.peaks", TensorProto.FLOAT, [len(peaks)]))
    return _checked(model), "isicrt.peaks"


def anchors(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions and matrix products, in the order of the graph."""
    return [node.name or node.output[0] for node in model.graph.node if is_anchor(node)]


def find_region(model: onnx.ModelProto) -> HalfRegion:
    """What becomes half. Raises BuildError if there is nothing, or if the graph has subgraphs."""
    graph = model.graph
    for node in graph.node:
        if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute):
            raise BuildError(f"FP16: node '{node.name}' ({node.op_type}) has a subgraph, which is not supported")
    reached, leading = around_anchors(graph.node)
    nodes = {index for index in reached if index in leading or is_anchor(graph.node[index])}
    if not nodes:
        raise BuildError("FP16: the graph has neither a convolution nor a matrix product, there is nothing to convert")
    floats = _float_tensors(model)
    initialisers = {tensor.name for tensor in graph.initializer}
    made = {name for index in nodes for name in graph.node[index].output} & floats
    inner = {name for i in nodes for name in _free_inputs(graph.node[i])} & floats
    outer = {n for i, node in enumerate(graph.node) for n in (_kept_names(node) if i in nodes else node.input)}
    return HalfRegion(
        frozenset(nodes),
        frozenset(made),
        frozenset(inner - made - initialisers),
        frozenset(inner & initialisers),
        frozenset(inner & initialisers & outer),
    )


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of all float32 tensors in the graph."""
    try:
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    except Exception as error:  # onnx raises its own InferenceError and others
        raise BuildError(f"FP16: the types in the graph cannot be inferred: {error}") from error
    values = (*graph.value_info, *graph.input, *graph.output)
    floats = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    return floats | {t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT}


def _kept_inputs(node: NodeProto) -> tuple[int, ...]:
    return _ALWAYS_FLOAT.get(node.op_type, ())


def _kept_names(node: NodeProto) -> list[str]:
    return [name for i, name in enumerate(node.input) if i in _kept_inputs(node)]


def _free_inputs(node: NodeProto) -> list[str]:
    return [name for i, name in enumerate(node.input) if i not in _kept_inputs(node)]


Convert = Callable[[npt.NDArray[np.generic]], npt.NDArray[np.generic]]


def _convert_weights(model: onnx.ModelProto, region: HalfRegion, convert: Convert) -> dict[str, str]:
    """Convert the region's weights in place; those that others need too are copied. Returns the copies' names."""
    renamed = {}
    for tensor in list(model.graph.initializer):
        if tensor.name not in region.weights:
            continue
        array = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            converted = convert(array)
        if not np.isfinite(converted).all():
            raise BuildError(
                f"FP16: weights '{tensor.name}' reach {np.abs(array).max():g}, half ends at 65504. Build with --fp32"
            )
        name = tensor.name
        if name in region.shared_weights:
            renamed[name] = name = f"{name}.half"
            tensor = model.graph.initializer.add()
        tensor.CopyFrom(numpy_helper.from_array(converted, name))
    return renamed


def _attribute_to_half(node: NodeProto, attribute: AttributeProto) -> None:
    if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
        attribute.i = TensorProto.FLOAT16
    elif attribute.type == AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
        attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float16)))


def _cast(source: str, target: str, kind: int) -> list[NodeProto]:
    return [helper.make_node("Cast", [source], [target], name=f"cast {target}", to=kind)]


def _round_trip(source: str, target: str) -> list[NodeProto]:
    middle = f"{target}.as_half"
    return _cast(source, middle, TensorProto.FLOAT16) + _cast(middle, target, TensorProto.FLOAT)


def _with_casts(
    model: onnx.ModelProto, nodes: Iterable[NodeProto], casts: dict[str, list[NodeProto]]
) -> list[NodeProto]:
    """`nodes` with those of `casts` put in right after the tensor that they read is there."""
    result = [cast for value in model.graph.input for cast in casts.get(value.name, [])]
    for node in nodes:
        result.append(node)
        result += [cast for name in node.output for cast in casts.get(name, [])]
    return result


def _replace_nodes(model: onnx.ModelProto, nodes: list[NodeProto]) -> None:
    kept = [copy_node(node) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    return copy


def _checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, if ONNX finds its types to fit each other."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # ValidationError, InferenceError
        raise BuildError(f"FP16: the converted graph is not valid: {error}. Build with --fp32") from error
    return model
