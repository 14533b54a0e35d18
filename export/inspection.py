"""What precision a network really has, read from TensorRT's own definition of it.

In a strongly typed network the builder may not change a type, so the types of the parsed layers are those of the
engine. An engine itself can only be opened where there is a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from isicrt.engine.errors import BuildError
from isicrt.engine.tensorrt_api import TensorRt
from isicrt.export import enlargement

_KINDS = {
    "CONVOLUTION": ("convolution", "IConvolutionLayer"),
    "DECONVOLUTION": ("convolution", "IDeconvolutionLayer"),
    "MATRIX_MULTIPLY": ("matrix product", None),
}


@dataclass(frozen=True)
class Layer:
    """A layer that does arithmetic worth the name."""

    name: str
    kind: str
    """``convolution`` (transposed ones too) or ``matrix product``."""
    types: frozenset[str]
    """Of its inputs, weights and outputs, as TensorRT calls them: ``FLOAT``, ``HALF``, ..."""

    @property
    def is_half(self) -> bool:
        """Whether everything about it is HALF."""
        return self.types == {"HALF"}


def inspect_network(trt: TensorRt, network: Any) -> list[Layer]:
    """The convolutions and matrix products of an ``INetworkDefinition``, in its order, without those that enlarge."""
    layers = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type.name not in _KINDS or layer.name.startswith(enlargement.PREFIX):
            continue
        kind, class_name = _KINDS[layer.type.name]
        inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
        types = {tensor.dtype.name for tensor in inputs if tensor is not None}
        types |= {layer.get_output(i).dtype.name for i in range(layer.num_outputs)}
        if class_name is not None:
            # get_layer gives an ILayer; this is how TensorRT's own samples reach the members of its class.
            layer.__class__ = getattr(trt.module, class_name)
            kernel = layer.kernel
            if kernel.size:  # else the weights come in as a tensor, which is among the inputs
                types.add({"float16": "HALF", "float32": "FLOAT"}.get(str(kernel.dtype), str(kernel.dtype)))
        layers.append(Layer(layer.name, kind, frozenset(types)))
    return layers


def half_share(layers: list[Layer]) -> str:
    """How many layers are half, for people: ``68 of 68 convolutions``."""
    parts = []
    for kind in ("convolution", "matrix product"):
        of_kind = [layer for layer in layers if layer.kind == kind]
        if of_kind:
            parts.append(f"{sum(layer.is_half for layer in of_kind)} of {len(of_kind)} {kind}s")
    return ", ".join(parts) or "0 of 0 convolutions"


def require_half(layers: list[Layer]) -> None:
    """Raise BuildError unless there are layers and every one is half."""
    full = [layer for layer in layers if not layer.is_half]
    if not layers or full:
        example = f", '{full[0].name}' is {'/'.join(sorted(full[0].types))}" if full else ""
        raise BuildError(
            f"--fp16 was asked for, but {half_share(layers)} are HALF in the engine{example}. No plan was written. "
            "If the ONNX file was made elsewhere, build from the checkpoint; else this is a bug in isicrt."
        )


def refuse_half(layers: list[Layer]) -> None:
    """Raise BuildError if anything about a layer is half: what is called fp32 computes in float32."""
    for layer in layers:
        if "HALF" in layer.types:
            raise BuildError(
                f"--fp32 was asked for, but {half_share(layers)} are HALF in the engine, '{layer.name}' is "
                f"{'/'.join(sorted(layer.types))}. No plan was written. The ONNX file's card says fp32, which it is "
                "not: build from the checkpoint."
            )
