"""Which integers stand for a layer's weights: not the nearest ones, but those whose errors cancel on real images.

GPTQ (Frantar et al. 2022, arXiv:2210.17323), which goes back to Hassibi and Stork 1993: weights are rounded one after
the other, and what one rounding did to the layer's output the weights that are still free make up for, as far as the
second moments of the layer's inputs allow.

MobileNetV2 needs it. The first depthwise convolution sees bright, even skin and takes differences of it with large
weights; where those do not cancel to zero any more, most of the network's int8 error comes from these 288 weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from isicrt.engine.geometry import UInt8Array
from isicrt.engine.silent_imports import import_onnxruntime

Array = npt.NDArray[Any]

MAX_INPUTS = 2048
"""Weights of one output channel. The second moments of more would take too long to invert; such layers, which are full
3x3 convolutions of many channels and have no large weights, keep the nearest integers."""
_DAMPING = 0.01
"""Share of the mean second moment that is added to each, as in GPTQ: directions that calibration never saw stay put."""
_BATCH = 2


@dataclass(frozen=True)
class _Layer:
    """One convolution, in the float graph and in the quantised one."""

    data: str
    """Name of its float input."""
    shape: tuple[int, ...]
    """Of its weights: outputs, inputs / groups, height, width."""
    weights: Array
    integers: onnx.TensorProto
    scales: Array
    groups: int
    pads: tuple[int, int, int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]


def round_weights(quantised: onnx.ModelProto, exact: onnx.ModelProto, images: Sequence[UInt8Array]) -> int:
    """Choose anew the int8 weights of a quantised graph. Its scales, and all else, stay.

    Args:
        quantised: QDQ form, weights int8 without a zero point; is changed.
        exact: the float32 graph that it was made from, its nodes under the same names.
        images: calibrate; uint8, h x w x 3, at the model's input size.

    Returns:
        The number of convolutions that were rounded. Other layers keep what they have.
    """
    layers = list(_layers(quantised, exact))
    if not layers:
        return 0
    moments: dict[int, Array] = {}
    for values in _activations(exact, sorted({layer.data for layer in layers}), images):
        for n, layer in enumerate(layers):
            moments[n] = moments.get(n, 0.0) + _second_moments(values[layer.data], layer)
    for n, layer in enumerate(layers):
        grouped = layer.weights.reshape(layer.groups, len(layer.weights) // layer.groups, -1)
        scales = layer.scales.reshape(*grouped.shape[:2], 1)
        integers = rounded(grouped, scales, moments.pop(n)).reshape(layer.shape)
        layer.integers.CopyFrom(numpy_helper.from_array(integers, layer.integers.name))
    return len(layers)


def rounded(weights: Array, scales: Array, moments: Array) -> npt.NDArray[np.int8]:
    """Integers q so that (q * scale - weight) x is small in the mean of the squares over inputs x.

    Args:
        weights: float, groups x outputs x K.
        scales: float, groups x outputs x 1, positive.
        moments: float64, groups x K x K: sums of x x^T.

    Returns:
        int8, the shape of `weights`, in -127..127.
    """
    size = weights.shape[-1]
    diagonal = np.arange(size)
    damped = moments.astype(np.float64)
    mean = damped[:, diagonal, diagonal].mean(axis=1)
    # Without any input there is nothing to make up for, and the nearest integers are right.
    damped[:, diagonal, diagonal] += np.where(mean > 0, _DAMPING * mean, 1.0)[:, None]
    # The inputs that matter most are rounded first, while all the others are free.
    order = np.argsort(-damped[:, diagonal, diagonal], axis=1)
    damped = np.take_along_axis(np.take_along_axis(damped, order[:, :, None], 1), order[:, None, :], 2)
    left = np.take_along_axis(weights.astype(np.float64), order[:, None, :], 2)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).swapaxes(1, 2)
    chosen = np.empty_like(left)
    for k in range(size):
        chosen[:, :, k] = np.clip(np.rint(left[:, :, k] / scales[:, :, 0]), -127, 127)
        error = (left[:, :, k] - chosen[:, :, k] * scales[:, :, 0]) / upper[:, k, k, None]
        left[:, :, k + 1 :] -= error[:, :, None] * upper[:, k, None, k + 1 :]
    result = np.empty_like(chosen)
    np.put_along_axis(result, np.broadcast_to(order[:, None, :], chosen.shape), chosen, 2)
    return result.astype(np.int8)


def _layers(quantised: onnx.ModelProto, exact: onnx.ModelProto) -> Iterator[_Layer]:
    stored = {tensor.name: tensor for tensor in exact.graph.initializer}
    integers = {tensor.name: tensor for tensor in quantised.graph.initializer}
    dequantised = {node.output[0]: node for node in quantised.graph.node if node.op_type == "DequantizeLinear"}
    converted = {node.name: node for node in quantised.graph.node if node.op_type == "Conv"}
    for node in exact.graph.node:
        if node.op_type != "Conv" or node.name not in converted or node.input[1] not in stored:
            continue
        source = dequantised.get(converted[node.name].input[1])
        if source is None or source.input[0] not in integers:  # stayed float
            continue
        weights = numpy_helper.to_array(stored[node.input[1]])
        attributes: dict[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        ours = attributes.get("auto_pad", b"NOTSET") == b"NOTSET" and weights.ndim == 4
        if not ours or weights[0].size > MAX_INPUTS:
            continue
        scales = np.atleast_1d(numpy_helper.to_array(integers[source.input[1]])).astype(np.float64)
        top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
        yield _Layer(
            data=node.input[0],
            shape=weights.shape,
            weights=weights,
            integers=integers[source.input[0]],
            scales=np.broadcast_to(scales, len(weights)),
            groups=attributes.get("group", 1),
            pads=(top, bottom, left, right),
            strides=tuple(attributes.get("strides", (1, 1))),
            dilations=tuple(attributes.get("dilations", (1, 1))),
        )


def _activations(
    model: onnx.ModelProto, names: Sequence[str], images: Sequence[UInt8Array]
) -> Iterator[dict[str, Array]]:
    """Values of tensors of a graph, a few images at a time: those of all of them would not fit into memory."""
    onnxruntime = import_onnxruntime()

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = model.graph.input[0].name
    for start in range(0, len(images), _BATCH):
        batch = np.stack(images[start : start + _BATCH])
        yield dict(zip(names, session.run(list(names), {name: batch}), strict=True))


def _second_moments(x: Array, layer: _Layer) -> Array:
    """Of what the taps of a convolution see: float64, groups x K x K, summed over images and pixels."""
    top, bottom, left, right = layer.pads
    window = [(side - 1) * step + 1 for side, step in zip(layer.shape[2:], layer.dilations, strict=True)]
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    views = np.lib.stride_tricks.sliding_window_view(padded, window, axis=(2, 3))
    views = views[:, :, :: layer.strides[0], :: layer.strides[1], :: layer.dilations[0], :: layer.dilations[1]]
    images, _, height, width = views.shape[:4]
    # images x groups x channels x y x x' x taps -> groups x (images, y, x') x (channels, taps)
    views = views.reshape(images, layer.groups, layer.shape[1], height, width, *layer.shape[2:])
    seen = views.transpose(1, 0, 3, 4, 2, 5, 6).reshape(layer.groups, -1, int(np.prod(layer.shape[1:])))
    moments: Array = (seen.swapaxes(1, 2) @ seen).astype(np.float64)
    return moments
