"""What isicrt asks of an ONNX graph: its card, a symbolic batch, and the numbers before they are rounded; and what
those who change one share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import NodeProto

from isicrt.engine.card import METADATA_KEY, ModelCard
from isicrt.engine.cpu_runtime import CpuRuntime
from isicrt.engine.errors import BuildError
from isicrt.engine.onnx_file import read_onnx_file
from isicrt.engine.onnx_runtime import OnnxRuntime

INPUT, OUTPUT, BATCH = "image", "probability", "batch"
"""Names in the graphs that `onnx_export` makes."""


@contextmanager
def open_model(path: Path) -> Iterator[tuple[CpuRuntime, bytes]]:
    """A file on ONNX Runtime, which checks its card and its signature; and the file itself, as it runs there.

    Raises:
        ModelError: not a file of ours, or another one lies there a moment later.
    """
    _, content = read_onnx_file(path)
    with OnnxRuntime(path, digest=hashlib.sha256(content).hexdigest()) as runtime:
        yield runtime, content


def set_card(model: onnx.ModelProto, card: ModelCard) -> None:
    """Put a card into a model's metadata, in place of the one that is there."""
    kept = {p.key: p.value for p in model.metadata_props if p.key != METADATA_KEY}
    onnx.helper.set_model_props(model, kept | {METADATA_KEY: card.to_json()})


def strip(model: onnx.ModelProto) -> None:
    """Remove what an exporter leaves behind: stack traces with the paths of its machine, and inferred shapes.

    What stays depends on the weights and the architecture alone, so the same model gives the same bytes.
    """
    graph = model.graph
    model.doc_string = graph.doc_string = ""
    del graph.value_info[:]
    for item in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        item.doc_string = ""
        del item.metadata_props[:]


def check_batch_is_symbolic(model: onnx.ModelProto) -> None:
    """Raise BuildError unless the first dimension of input and output is a name and not a number."""
    for value in (*model.graph.input, *model.graph.output):
        dim = value.type.tensor_type.shape.dim[0]
        if not dim.dim_param:
            raise BuildError(
                f"'{value.name}' has a fixed batch of {dim.dim_value}: export the model again with a symbolic batch"
            )


def before_rounding(nodes: Iterable[NodeProto], output: str) -> tuple[str, list[NodeProto]]:
    """The float tensor behind a uint8 output, and the nodes that round it, the last one first."""
    producers = {name: node for node in nodes for name in node.output}
    name, tail = output, []
    while name in producers and producers[name].op_type in ("Cast", "Round"):
        tail.append(producers[name])
        name = producers[name].input[0]
    return name, tail


def copy_node(node: NodeProto) -> NodeProto:
    """A node that may stand in another graph, or stay when its own is emptied."""
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove the initialisers that no node reads."""
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def expose_levels(model: onnx.ModelProto) -> str:
    """Add the float tensor behind the uint8 output, N x H x W in 0..255 before it is rounded, as a second output.

    Returns:
        Its name.
    """
    name, _ = before_rounding(model.graph.node, model.graph.output[0].name)
    levels = model.graph.output.add()
    levels.CopyFrom(model.graph.output[0])
    levels.name = name
    levels.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return name
