"""A plain U-Net as an ONNX file: the peer that the accuracy-speed table measures against.

    python -m isicrt.benchmarks.plain_unet plain.onnx --gmac 4 --size 192

Ronneberger et al. 2015 (arXiv:1505.04597): at each of five levels two 3 x 3 convolutions with ReLU, 2 x 2 max-pooling
down, 2 x 2 transposed convolution up, concatenation. Padded, as everybody builds it now, so that the output is as large
as the input. No separable convolution, no pretrained encoder. The weights are random: it can be timed and not trusted.

Random weights give noise, and a mask of thousands of specks costs whoever cleans and compresses it milliseconds that no
trained network costs. So the last convolution's output is scaled down and a constant map is added to the logits: every
mask is one ellipse in the middle, as large as a usual lesion and smoother than one. All layers stay and are computed,
for what they find still moves the probabilities near its border; the map costs one addition a pixel.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import numpy.typing as npt

from isicrt._command import ModuleCommand, Number
from isicrt.benchmarks.macs import count_macs, count_parameters
from isicrt.benchmarks.result_file import check_places
from isicrt.engine.card import METADATA_KEY, ModelCard
from isicrt.engine.errors import MissingDependencyError, SettingsError
from isicrt.engine.input_names import MODEL
from isicrt.engine.masks import replace_file
from isicrt.engine.shipped import lies_with_them

if TYPE_CHECKING:
    import onnx

LEVELS = 5
STRIDE = 2 ** (LEVELS - 1)
"""The input's sides are multiples of this."""
_HEAD_GAIN = 0.01
"""Of the last convolution's weights: what reaches the logits has a standard deviation of 0.02 to 0.06, which is less
than they fall within a pixel at the ellipse's border (0.16 at 192 px), so that no speck comes off it."""
_PEAK = 8.0
"""Logit in the middle of the ellipse; 0 at its border, where the threshold is."""
_AXES = (0.5, 0.62)
"""Height and width of the ellipse as parts of the image's: 24 % of its area."""
_CHANNELS = 8
"""Widths are multiples of this: vector kernels pad to it, and an awkward width would flatter what is compared."""


def plain_widths(gmac: float, size: int) -> tuple[int, ...]:
    """Channels of the five levels, each about twice the one above, for the number nearest to a wanted cost.

    Args:
        gmac: billions of multiply-accumulate operations for one image.
        size: side of the square input, pixels.

    Raises:
        SettingsError: the size is no multiple of 16, or the cost is out of reach (width 8 to 512 at the top).
    """
    if size < STRIDE or size % STRIDE:
        raise SettingsError(f"size {size}: a plain U-Net of {LEVELS} levels needs a multiple of {STRIDE}")
    tops = np.arange(_CHANNELS, 512, 0.25)
    candidates = sorted(
        {tuple(_CHANNELS * max(1, round(top * 2**k / _CHANNELS)) for k in range(LEVELS)) for top in tops}
    )
    costs = np.array([widths_macs(widths, size) / 1e9 for widths in candidates])
    best = int(np.argmin(np.abs(costs - gmac)))
    if not 0.9 * costs[0] <= gmac <= 1.1 * costs[-1]:
        raise SettingsError(f"{gmac:g} GMAC at {size} px: choose from {costs[0]:.2g} to {costs[-1]:.3g}")
    return candidates[best]


def widths_macs(widths: tuple[int, ...], size: int) -> int:
    """Multiply-accumulate operations for one image; what `count_macs` finds in the graph of these widths."""
    areas = [(size >> level) ** 2 for level in range(len(widths))]
    total = areas[0] * widths[0]  # the 1 x 1 head
    for level, (width, area) in enumerate(zip(widths, areas, strict=True)):
        total += area * 9 * width * ((widths[level - 1] if level else 3) + width)
        if level + 1 < len(widths):  # a pixel of the level below becomes four; the concatenation is twice as wide
            total += areas[level + 1] * 4 * widths[level + 1] * width + area * 9 * width * 3 * width
    return total


def ellipse_logits(size: int) -> npt.NDArray[np.float32]:
    """The constant map that is added to the logits: float32 1 x 1 x size x size, above 0 in one centred ellipse.

    It falls in a straight line from the middle, `_PEAK` for each radius.
    """
    steps = (np.arange(size) + 0.5) / size - 0.5
    radii = np.hypot(steps[:, None] / (_AXES[0] / 2), steps[None, :] / (_AXES[1] / 2))
    return (_PEAK * (1 - radii)).astype(np.float32)[None, None]


def plain_unet(gmac: float = 4.0, size: int = 192, *, seed: int = 0) -> onnx.ModelProto:
    """An untrained plain U-Net with a model card, uint8 N x size x size x 3 to uint8 N x size x size.

    Its probabilities are those of `ellipse_logits`, moved a little by what the network computes from the image.

    Args:
        gmac: wanted cost of one image; the exact one is in the card.
        size: side of the input, pixels; a multiple of 16.
        seed: of the weights.

    Raises:
        SettingsError: see `plain_widths`.
        MissingDependencyError: `onnx` is not installed.
    """
    widths = plain_widths(gmac, size)
    builder = _Builder(seed)
    pixels = builder.add("Transpose", [builder.add("Cast", ["image"], to=1)], perm=[0, 3, 1, 2])
    x = builder.add("Mul", [builder.add("Sub", [pixels, builder.keep(127.5)]), builder.keep(1 / 58.0)])
    skips: list[str] = []
    below = 3
    for width in widths:
        if skips:
            x = builder.add("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
        x = builder.pair(x, below, width)
        skips.append(x)
        below = width
    for skip, width in zip(reversed(skips[:-1]), reversed(widths[:-1]), strict=True):
        weights = builder.weights((below, width, 2, 2), below)
        up = builder.add("ConvTranspose", [x, *weights], kernel_shape=[2, 2], strides=[2, 2])
        x = builder.pair(builder.add("Concat", [skip, up], axis=1), 2 * width, width)
        below = width
    noise = builder.add("Conv", [x, *builder.weights((1, below, 1, 1), below, gain=_HEAD_GAIN)], kernel_shape=[1, 1])
    # A map and no scalar: a runtime folds what is one number a channel into the convolution's bias, and this it cannot.
    logits = builder.add("Add", [noise, builder.keep(ellipse_logits(size))])
    probability = builder.add("Squeeze", [builder.add("Sigmoid", [logits]), builder.keep(np.array([1]))])
    levels = builder.add("Round", [builder.add("Mul", [probability, builder.keep(255.0)])])
    builder.add("Cast", [levels], "probability", to=2)
    return builder.finish(gmac, size, widths, seed)


class _Builder:
    """Collects nodes and weights."""

    def __init__(self, seed: int) -> None:
        try:
            import onnx
        except ImportError as error:
            raise MissingDependencyError("onnx", "train", str(error)) from error
        self._onnx = onnx
        self._rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._stored: list[onnx.TensorProto] = []

    def keep(self, value: float | npt.NDArray[Any]) -> str:
        """Store a constant; floats as float32. Returns its name."""
        array = np.float32(value) if isinstance(value, float) else value
        name = f"constant_{len(self._stored)}"
        self._stored.append(self._onnx.numpy_helper.from_array(np.asarray(array), name))
        return name

    def weights(self, shape: tuple[int, ...], fan_in: int, *, gain: float = 1.0) -> tuple[str, str]:
        """Normal weights of variance 2 / fan-in (He et al. 2015), which neither die out nor grow, and zero biases.

        Args:
            shape: out x in x k x k; in x out x 2 x 2 where k is 2, which only transposed convolutions have.
            fan_in: inputs of one output.
            gain: by which the weights are multiplied.
        """
        outputs = shape[1] if shape[2:] == (2, 2) else shape[0]
        kernel = self._rng.standard_normal(shape, np.float32) * np.float32(gain * np.sqrt(2 / fan_in))
        return self.keep(kernel), self.keep(np.zeros(outputs, np.float32))

    def pair(self, x: str, below: int, width: int) -> str:
        """Two 3 x 3 convolutions with ReLU."""
        for channels in (below, width):
            weights = self.weights((width, channels, 3, 3), 9 * channels)
            x = self.add("Conv", [x, *weights], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
            x = self.add("Relu", [x])
        return x

    def add(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        """Append a node. Returns the name of its output."""
        name = f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(
            self._onnx.helper.make_node(kind, inputs, [output or name], name=f"node_{name}", **attributes)
        )
        return output or name

    def finish(self, gmac: float, size: int, widths: tuple[int, ...], seed: int) -> onnx.ModelProto:
        """The checked model with its card."""
        helper, kinds = self._onnx.helper, self._onnx.TensorProto
        graph = helper.make_graph(
            self._nodes,
            "plain-unet",
            [helper.make_tensor_value_info("image", kinds.UINT8, ["batch", size, size, 3])],
            [helper.make_tensor_value_info("probability", kinds.UINT8, ["batch", size, size])],
            self._stored,
        )
        model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        self._onnx.checker.check_model(model, full_check=True)
        card = ModelCard(
            name=f"plain-unet-{gmac:g}g",
            architecture="plain U-Net",
            input_height=size,
            input_width=size,
            mean=(0.5, 0.5, 0.5),
            std=(58 / 255, 58 / 255, 58 / 255),
            network={"widths": list(widths), "macs": count_macs(model), "parameters": count_parameters(model)},
            training={
                "note": "not trained: random weights, made to be timed. The logits are a constant ellipse, which every "
                "mask shows, plus the network's output scaled down",
                "seed": seed,
                "head_gain": _HEAD_GAIN,
            },
            versions={"onnx": self._onnx.__version__},
        )
        helper.set_model_props(model, {METADATA_KEY: card.to_json()})
        return model


@click.command(cls=ModuleCommand)
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--gmac", type=Number(min=0, min_open=True), default=4.0, show_default=True)
@click.option("--size", type=int, default=192, show_default=True, help="Side of the input, pixels.")
def main(out: Path, gmac: float, size: int) -> None:
    """Write an untrained plain U-Net of about so many GMAC to OUT, for `isicrt bench`."""
    check_places(out, but=MODEL)
    if lies_with_them(out):
        raise SettingsError(f"{out}: lies among the models that ship. Choose a folder of your own")
    model = plain_unet(gmac, size)
    replace_file(out, model.SerializeToString(deterministic=True))
    widths = ", ".join(map(str, plain_widths(gmac, size)))
    click.echo(
        f"{out}: {count_macs(model) / 1e9:.3f} GMAC at {size} px, {count_parameters(model) / 1e6:.2f} M parameters, "
        f"widths {widths}"
    )


if __name__ == "__main__":
    main()
