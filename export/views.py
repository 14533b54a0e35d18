"""An ONNX file that looks at each image from several sides and gives the mean of what it sees.

    python -m isicrt.export.views model.onnx model-x4.onnx --views 4

A lesion has no upper side, so a network that sees it turned should find the same outline. It does not quite, and the
mean over several views is steadier than any of them (test-time augmentation). Here that is a property of the file and
not of the program that runs it: input and output are as before, and everything takes it as any other model.

    pixels -> float -> K turned views, one after the other along the batch -> network, once for all of them
           -> each view turned back -> mean of the probabilities -> rounded to uint8

The weights are there once, the arithmetic K times. Views are turned after the cast to float, because TensorRT does
nothing else with uint8; and the mean is taken before rounding.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from isicrt._command import ModuleCommand, NamedPath
from isicrt._version import __version__
from isicrt.engine.card import ModelCard
from isicrt.engine.errors import BuildError, MissingDependencyError
from isicrt.engine.geometry import UInt8Array, resize_image
from isicrt.engine.masks import replace_file
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.runtime import Runtime

try:
    import onnx
except ImportError as error:
    raise MissingDependencyError("onnx", "train", str(error)) from error

from onnx import NodeProto, TensorProto, helper, numpy_helper

from isicrt.export.onnx_graph import (
    before_rounding,
    check_batch_is_symbolic,
    copy_node,
    drop_unused,
    open_model,
    set_card,
)
from isicrt.export.output_file import check_output
from isicrt.export.trials import check_batches

_PREFIX = "views."
_MAX_ASTRAY = 1e-3
"""Share of the pixels that may be more than a level off the mean that numpy finds: int8 rounds at every layer."""


@dataclass(frozen=True)
class View:
    """Rows and columns exchanged, or not; then the order of the rows turned round, or not; then that of the columns."""

    exchanged: bool
    upside_down: bool
    mirrored: bool

    @property
    def reversed_axes(self) -> tuple[int, ...]:
        """Of rows and columns, 0 and 1, those whose order is turned round."""
        return tuple(axis for axis, reverse in enumerate((self.upside_down, self.mirrored)) if reverse)

    def see(self, images: UInt8Array) -> UInt8Array:
        """N x H x W x 3 as this view sees them."""
        exchanged = images.swapaxes(1, 2) if self.exchanged else images
        return np.ascontiguousarray(self._reversed(exchanged))

    def undo(self, result: UInt8Array) -> UInt8Array:
        """N x H x W of such images, turned back."""
        straight = self._reversed(result)
        return straight.swapaxes(1, 2) if self.exchanged else straight

    def _reversed(self, array: UInt8Array) -> UInt8Array:
        result: UInt8Array = np.flip(array, tuple(1 + axis for axis in self.reversed_axes))
        return result


_TURNS = (
    View(False, False, False),  # as it is
    View(False, True, True),  # by 180 degrees
    View(True, True, False),  # by 90
    View(True, False, True),  # by 270
)
_MIRRORED = (View(False, False, True), View(False, True, False), View(True, False, False), View(True, True, True))

VIEWS = {2: _TURNS[:2], 4: _TURNS, 8: _TURNS + _MIRRORED}
"""By their number: as it is and turned by 180 degrees; the four turns; the turns and their mirror images."""


def views_card(card: ModelCard, views: int) -> ModelCard:
    """The card of such a file. Scores and parity are marked as those of one view.

    Args:
        card: of the original.
        views: a key of `VIEWS`.

    Raises:
        BuildError: the original averages views already, of all images or of some; or its input is not square and would
            have to be turned by 90 degrees.
    """
    if card.views > 1:
        raise BuildError(f"'{card.name}' averages {card.views} views already. Give the file that it was made of.")
    if card.second_look:
        raise BuildError(
            f"'{card.name}' takes a second look where it is in doubt. Make a file of it that looks once, and give "
            "that: python -m isicrt.export.second_look MODEL ONCE.onnx --below 0"
        )
    if card.input_height != card.input_width and any(view.exchanged for view in VIEWS[views]):
        raise BuildError(
            f"'{card.name}' takes {card.input_height} x {card.input_width} px. Turned by 90 degrees an image fits a "
            "square input alone: use --views 2"
        )
    return card.replace(
        name=f"{card.name}-x{views}",
        network=dict(card.network) | {"views": views},
        scores={f"{data_set}, of one view": value for data_set, value in card.scores.items()},
        parity={"one_view": dict(card.parity)} if card.parity else {},
        versions=dict(card.versions) | {"isicrt": __version__, "onnx": onnx.__version__},
    )


def average_views(model: onnx.ModelProto, views: int) -> onnx.ModelProto:
    """A graph with the same input and output that computes the mean over `views` views. The original is left alone.

    Args:
        model: of ours: uint8 N x H x W x 3, cast to float, to uint8 N x H x W, rounded at its very end; float32, half
            or with quantised weights. Square for other than 2 views. Metadata are carried over as they are.
        views: a key of `VIEWS`.

    Raises:
        BuildError: a graph that begins or ends otherwise, or whose batch is fixed.
    """
    check_batch_is_symbolic(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.value_info[:]  # the batch inside is another one
    nodes = list(graph.node)
    cast = _first_cast(nodes, graph.input[0].name)
    output = graph.output[0].name
    levels, tail = before_rounding(nodes, output)
    if not tail:
        raise BuildError(f"views: the graph does not end with a Cast to '{output}', as those of isicrt do")
    height, width = (dim.dim_value for dim in graph.output[0].type.tensor_type.shape.dim[1:3])
    parts = _Parts(graph, height, width)
    front = parts.take(cast.output[0], VIEWS[views])
    body = [node for node in nodes if node is not cast and node not in tail]
    for node in body:
        node.input[:] = [f"{_PREFIX}batch" if name == cast.output[0] else name for name in node.input]
    back = parts.average(levels, VIEWS[views], output)
    kept = [copy_node(node) for node in (cast, *front, *body, *back)]
    del graph.node[:]
    graph.node.extend(kept)
    drop_unused(graph)
    try:
        onnx.checker.check_model(result, full_check=True)
    except Exception as error:  # ValidationError, InferenceError
        raise BuildError(f"views: the graph around '{graph.name}' is not valid: {error}") from error
    return result


class _Parts:
    """Makes the nodes in front of a network and behind it, and their constants in `graph`."""

    def __init__(self, graph: onnx.GraphProto, height: int, width: int) -> None:
        self._graph = graph
        self._sides = (height, width)

    def take(self, image: str, views: tuple[View, ...]) -> list[NodeProto]:
        """float N x H x W x 3 to ``views.batch``, of K times N: all images of the first view, then of the second."""
        nodes, names = [], []
        exchanged = f"{_PREFIX}exchanged"
        if any(view.exchanged for view in views):
            nodes.append(_node("Transpose", [image], exchanged, perm=[0, 2, 1, 3]))
        for index, view in enumerate(views):
            name = exchanged if view.exchanged else image
            if axes := view.reversed_axes:
                reverse = self._slice(f"turn{index}", {1 + axis: self._backwards(axis) for axis in axes})
                nodes.append(_node("Slice", [name, *reverse], name := f"{_PREFIX}view{index}"))
            names.append(name)
        nodes.append(_node("Concat", names, f"{_PREFIX}batch", axis=0))
        return nodes

    def average(self, levels: str, views: tuple[View, ...], output: str) -> list[NodeProto]:
        """float K times N x H x W, as the network gives it, to the rounded mean."""
        by_view = self._constant("by_view", np.array([len(views), -1, *self._sides], np.int64))
        nodes = [_node("Reshape", [levels, by_view], f"{_PREFIX}levels")]
        straight: list[str] = []
        turned: list[str] = []
        for index, view in enumerate(views):
            # One node takes a view out and turns it round.
            steps = {0: (index, index + 1, 1)} | {2 + axis: self._backwards(axis) for axis in view.reversed_axes}
            name = f"{_PREFIX}back{index}"
            nodes.append(_node("Slice", [f"{_PREFIX}levels", *self._slice(f"back{index}", steps)], name))
            (turned if view.exchanged else straight).append(name)
        if turned:
            nodes.append(_node("Sum", turned, f"{_PREFIX}turned"))
            nodes.append(_node("Transpose", [f"{_PREFIX}turned"], name := f"{_PREFIX}turned_back", perm=[0, 1, 3, 2]))
            straight.append(name)
        share = self._constant("share", np.array(1 / len(views), np.float32))
        first = self._constant("first_axis", np.array([0], np.int64))
        return [
            *nodes,
            _node("Sum", straight, f"{_PREFIX}sum"),
            _node("Mul", [f"{_PREFIX}sum", share], f"{_PREFIX}mean"),
            _node("Squeeze", [f"{_PREFIX}mean", first], f"{_PREFIX}image"),
            _node("Round", [f"{_PREFIX}image"], f"{_PREFIX}rounded"),
            _node("Cast", [f"{_PREFIX}rounded"], output, to=TensorProto.UINT8),
        ]

    def _backwards(self, axis: int) -> tuple[int, int, int]:
        """Start, end and step of a whole side from its last item to its first."""
        return -1, -self._sides[axis] - 1, -1

    def _slice(self, name: str, steps: dict[int, tuple[int, int, int]]) -> list[str]:
        """The constants of a Slice, from start, end and step by axis."""
        start, end, step = zip(*steps.values(), strict=True)
        values = {"starts": start, "ends": end, "axes": tuple(steps), "steps": step}
        return [self._constant(f"{name}.{what}", np.array(value, np.int64)) for what, value in values.items()]

    def _constant(self, name: str, value: np.ndarray) -> str:
        self._graph.initializer.append(numpy_helper.from_array(value, f"{_PREFIX}{name}"))
        return f"{_PREFIX}{name}"


def _node(kind: str, inputs: list[str], output: str, **settings: Any) -> NodeProto:
    return helper.make_node(kind, inputs, [output], name=f"{_PREFIX}{kind} {output}", **settings)


def _first_cast(nodes: list[NodeProto], image: str) -> NodeProto:
    """What makes floats of the pixels, and is all that reads them."""
    readers = [node for node in nodes if image in node.input]
    kinds = [a.i for node in readers for a in node.attribute if node.op_type == "Cast" and a.name == "to"]
    if len(readers) == 1 and kinds == [TensorProto.FLOAT]:
        return readers[0]
    raise BuildError(f"views: the graph does not begin with one Cast of '{image}' to float, as those of isicrt do")


def average_file(path: Path, views: int) -> tuple[ModelCard, bytes]:
    """The file of a model that averages views, run and compared with the original on images of random colours.

    Args:
        path: an ONNX file with a card.
        views: a key of `VIEWS`.

    Returns:
        Its card and its bytes.

    Raises:
        ModelError: not such a file.
        BuildError: see `views_card` and `average_views`; or the result does not compute the mean.
    """
    with open_model(path) as (one_view, content), tempfile.TemporaryDirectory(prefix="isicrt-views-") as folder:
        try:
            card = views_card(one_view.card, views)
            graph = average_views(onnx.load_from_string(content), views)
        except BuildError as error:
            raise BuildError(f"{path}: {error}") from error
        set_card(graph, card)
        data = graph.SerializeToString(deterministic=True)
        candidate = Path(folder) / "views.onnx"
        candidate.write_bytes(data)
        check_batches(candidate, (1, 3))
        with OnnxRuntime(candidate) as several:
            _check_mean(one_view, several, VIEWS[views])
    return card, data


def _check_mean(one_view: Runtime, several: Runtime, views: tuple[View, ...]) -> None:
    """Raise BuildError unless one gives the mean of what the other finds in turned images."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)
    images = np.stack([resize_image(image, one_view.card.input_size) for image in coarse])
    mean = np.mean([view.undo(one_view.infer(view.see(images))) for view in views], axis=0)
    astray = float((np.abs(several.infer(images) - mean) > 1).mean())
    if astray > _MAX_ASTRAY:
        raise BuildError(f"views: {astray:.2%} of the pixels are not the mean of the views. This is a bug in isicrt.")


@click.command(cls=ModuleCommand)
@click.argument("model", type=NamedPath(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=NamedPath(dir_okay=False, path_type=Path))
@click.option(
    "--views",
    type=click.Choice([str(number) for number in VIEWS]),
    required=True,
    help="2: as it is and turned by 180 degrees; 4: the turns by 90; 8: the turns and their mirror images.",
)
def main(model: Path, out: Path, views: str) -> None:
    """Write MODEL, an .onnx with a card, as OUT, an .onnx that gives the mean over several views of each image."""
    check_output(out, model)
    card, data = average_file(model, int(views))
    replace_file(out, data)
    click.echo(f"Wrote {out}  {card.name}: {views} views, {views} times the arithmetic, {len(data) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
