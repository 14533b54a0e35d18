"""Int8: a float32 ONNX file calibrated on images, and what the rounding costs on other images.

    python -m isicrt.export.quantisation model.onnx --images train/images --masks train/masks --out int8.onnx

Static quantisation of ONNX Runtime in the QDQ form (Jacob et al. 2018, arXiv:1712.05877): weights int8 with a scale for
each channel, without which MobileNetV2's depthwise convolutions do not survive; activations uint8 with a scale for each
tensor. The normalisation before the first convolution and the head (last convolution, sigmoid) stay float32.
Batch norms are folded already, by the export; a ReLU becomes the end of its convolution's range. `export.rounding`
chooses the integers of the weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from isicrt._command import ModuleCommand, NamedPath, Number
from isicrt._version import __version__
from isicrt.engine.card import ModelCard
from isicrt.engine.errors import BuildError, MissingDependencyError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.masks import replace_file, restore_mask
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.runtime import Runtime
from isicrt.engine.silent_imports import import_onnxruntime

try:
    import onnx
except ImportError as error:
    raise MissingDependencyError("onnx", "train", str(error)) from error

from isicrt.export.calibration import read_samples
from isicrt.export.half import around_anchors, is_anchor
from isicrt.export.normalisation import fuse_normalisation
from isicrt.export.onnx_graph import open_model, set_card, strip
from isicrt.export.output_file import check_output
from isicrt.export.parity import Compute, Levels, Parity, Sample, measure_parity
from isicrt.export.rounding import round_weights

METHODS = ("minmax", "percentile", "entropy")
"""A tensor's range is all of what calibration saw, 99.999 % of it, or what loses least information."""
ROUNDINGS = ("gptq", "nearest")
"""Weights: see `isicrt.export.rounding`; or the nearest integers."""
_OPERATIONS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "Clip", "Add", "Mul", "Concat", "Resize", "MaxPool")
_BATCH = 8


@dataclass(frozen=True)
class Quantised:
    """An int8 model and what it costs."""

    card: ModelCard
    onnx: bytes
    parity: Parity
    """Against the float32 file, on images that did not calibrate."""
    mask_jaccard: float
    """Mean Jaccard index between the finished masks of the two, at the network's size."""
    quantised: int
    """Convolutions and matrix products in int8."""
    anchors: int
    """Convolutions and matrix products in all."""


def quantise(
    model: onnx.ModelProto, images: Sequence[UInt8Array], method: str = "minmax", rounding: str = "gptq"
) -> onnx.ModelProto:
    """The int8 version of a graph. The original is left alone; metadata are not carried over.

    Args:
        model: of ours, float32.
        images: calibrate; uint8, h x w x 3, at the model's input size.
        method: one of `METHODS`.
        rounding: one of `ROUNDINGS`.

    Raises:
        BuildError: no images, or a graph without an inner convolution or that ONNX Runtime cannot quantise.
    """
    if not images:
        raise BuildError("int8: there is no image to calibrate on")
    source = _named(model)
    fuse_normalisation(source)
    inner = _inner_nodes(source)
    if not any(is_anchor(node) for node in inner):
        raise BuildError("int8: the graph has no convolution before its last one, there is nothing to quantise")
    quantization = import_onnxruntime("quantization")

    chosen = {
        "minmax": quantization.CalibrationMethod.MinMax,
        "percentile": quantization.CalibrationMethod.Percentile,
        "entropy": quantization.CalibrationMethod.Entropy,
    }[method]
    with tempfile.TemporaryDirectory(prefix="isicrt-int8-") as folder:
        before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        before.write_bytes(source.SerializeToString())
        try:
            with _quiet():
                quantization.quantize_static(
                    str(before),
                    str(after),
                    _batches(source.graph.input[0].name, images),
                    quant_format=quantization.QuantFormat.QDQ,
                    calibrate_method=chosen,
                    per_channel=True,
                    activation_type=quantization.QuantType.QUInt8,
                    weight_type=quantization.QuantType.QInt8,
                    op_types_to_quantize=list(_OPERATIONS),
                    nodes_to_quantize=[node.name for node in inner],
                    # One batch after the other: all activations of all images would not fit into memory.
                    extra_options={"CalibStridedMinMax": 1},
                )
        except Exception as error:  # ONNX Runtime's have no common root
            raise BuildError(f"int8: ONNX Runtime cannot quantise this graph: {error}") from error
        result = onnx.load(str(after))
    if rounding == "gptq":
        round_weights(result, source, images)
    strip(result)
    del result.metadata_props[:]
    return result


def quantise_file(
    path: Path,
    calibration: Sequence[UInt8Array],
    held_out: Sequence[Sample],
    *,
    method: str = "minmax",
    rounding: str = "gptq",
    source: str = "",
) -> Quantised:
    """Quantise a file of `isicrt build-engine` and compare the two on images that did not calibrate.

    Args:
        path: float32, with a card.
        calibration: uint8, h x w x 3, at the model's input size.
        held_out: at least one.
        method: one of `METHODS`.
        rounding: one of `ROUNDINGS`.
        source: of all these images, for people.

    Raises:
        ModelError: not such a file.
        BuildError: the file is not float32; see `quantise`; or the result does not run.
    """
    with open_model(path) as (runtime, content):
        card = runtime.card
        if card.precision != "fp32":
            raise BuildError(f"{path}: is {card.precision}. Int8 is made from the float32 file (build-engine --fp32).")
        graph = quantise(onnx.load_from_string(content), calibration, method, rounding)
        versions = dict(card.versions) | {"isicrt": __version__, "onnx": onnx.__version__}
        # The scores are another file's: this one has not been scored.
        scores = {f"{data_set}, before the conversion to int8": value for data_set, value in card.scores.items()}
        card = card.replace(name=f"{card.name}-int8", precision="int8", versions=versions, scores=scores, parity={})
        set_card(graph, card)
        with tempfile.TemporaryDirectory(prefix="isicrt-int8-") as folder:
            candidate_path = Path(folder) / "int8.onnx"
            candidate_path.write_bytes(graph.SerializeToString(deterministic=True))
            with OnnxRuntime(candidate_path) as candidate:
                pair = ("the fp32 ONNX file", _levels(runtime)), ("the int8 ONNX file", _levels(candidate))
                parity = measure_parity(*pair, held_out, card, source=source)
                mask_jaccard = _mask_jaccard(*pair, held_out, card)
    calibrated = {"method": method, "rounding": rounding, "images": len(calibration), "onnxruntime": _runtime_version()}
    card = card.replace(parity=parity.to_dict() | {"mask_jaccard": mask_jaccard, "calibration": calibrated})
    set_card(graph, card)
    counts = _counts(graph)
    return Quantised(card, graph.SerializeToString(deterministic=True), parity, mask_jaccard, *counts)


def _runtime_version() -> str:
    return str(import_onnxruntime().__version__)


def _levels(runtime: Runtime) -> Compute:
    """What users get of a file: its output, rounded."""

    def levels(images: UInt8Array) -> Levels:
        return runtime.infer(images).astype(np.float32)

    return levels


def _mask_jaccard(
    reference: tuple[str, Compute], candidate: tuple[str, Compute], samples: Sequence[Sample], card: ModelCard
) -> float:
    """Mean Jaccard index between the masks of both: `measure_parity` with the reference's masks for truth."""
    rules = {"threshold": card.threshold, **card.clean_up}
    taught = []
    for sample in samples:
        probability = np.rint(reference[1](sample.pixels[None])[0]).astype(np.uint8)
        taught.append(dataclasses.replace(sample, truth=restore_mask(probability, card.input_size, **rules)))
    found = measure_parity(reference, candidate, taught, card, source="").jaccard_candidate
    assert found is not None
    return found


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose nodes have names of their own, by which they are chosen."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for index, node in enumerate(copy.graph.node):
        node.name = f"{index} {node.op_type}"
    return copy


def _inner_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The first convolution and what follows it, up to the last convolution and without it.

    A node before every convolution belongs to the normalisation, one that leads to no further convolution to the head.
    """
    reached, leading = around_anchors(model.graph.node)
    return [model.graph.node[index] for index in sorted(reached & leading)]


def _counts(model: onnx.ModelProto) -> tuple[int, int]:
    """Anchors with quantised data and weights, and all anchors."""
    dequantised = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    found = [dequantised.issuperset(node.input[:2]) for node in model.graph.node if is_anchor(node)]
    return sum(found), len(found)


def _batches(name: str, images: Sequence[UInt8Array]) -> Any:
    """The calibration images as ONNX Runtime reads them, `_BATCH` at a time."""
    CalibrationDataReader: Any = import_onnxruntime("quantization").CalibrationDataReader

    stacked = [np.stack(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def __len__(self) -> int:
            return len(stacked)

        def set_range(self, start_index: int, end_index: int) -> None:
            self._left = iter(stacked[start_index:end_index])

        def get_next(self) -> dict[str, UInt8Array] | None:
            batch = next(self._left, None)
            return None if batch is None else {name: batch}

    return Batches()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantiser's prints, log lines and warnings. What it raises still comes through."""
    before = logging.root.manager.disable
    try:
        logging.disable(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@click.command(cls=ModuleCommand)
@click.argument("model", type=NamedPath(exists=True, dir_okay=False, path_type=Path))
@click.option("--images", multiple=True, required=True, type=NamedPath(path_type=Path), help="May be given again.")
@click.option("--masks", multiple=True, type=NamedPath(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=NamedPath(dir_okay=False, path_type=Path))
@click.option("--method", type=click.Choice(METHODS), default=METHODS[0], show_default=True)
@click.option("--rounding", type=click.Choice(ROUNDINGS), default=ROUNDINGS[0], show_default=True, help="Of weights.")
@click.option("--calibration-images", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--parity-images", type=click.IntRange(min=1), default=256, show_default=True, help="Compare on so many.")
@click.option(
    "--max-loss",
    type=Number(0, 1),
    default=0.005,
    show_default=True,
    help="Write nothing if the mean Jaccard index against --masks falls by more.",
)
def main(
    model: Path,
    images: tuple[Path, ...],
    masks: tuple[Path, ...],
    out: Path,
    method: str,
    rounding: str,
    calibration_images: int,
    parity_images: int,
    max_loss: float,
) -> None:
    """Quantise MODEL, a float32 .onnx with a card, to int8; give it training images, never test images."""
    check_output(out, model)
    with OnnxRuntime(model) as runtime:
        size = runtime.card.input_size
    calibration, samples, source = read_samples(
        images, masks, size, calibrate=calibration_images, compare=parity_images
    )
    result = quantise_file(model, calibration, samples, method=method, rounding=rounding, source=source)
    change = result.parity.jaccard_change
    if change is not None and -change > max_loss:
        _print(result, model)
        raise BuildError(
            f"int8: the Jaccard index falls by {-change:.4f} (limit {max_loss:g}). Nothing was written. Try "
            "another --method or more --calibration-images, or raise --max-loss."
        )
    replace_file(out, result.onnx)
    _print(result, model)
    click.echo(f"Wrote {out}  {out.stat().st_size / 1e6:.2f} MB (float32: {model.stat().st_size / 1e6:.2f} MB)")


def _print(result: Quantised, model: Path) -> None:
    parity = result.parity
    click.echo(f"int8: {result.quantised} of {result.anchors} convolutions")
    click.echo(
        f"On {parity.source}:\n  masks of fp32 and int8: mean Jaccard index {result.mask_jaccard:.4f} between them, "
        f"{parity.disagreement_mean:.3%} of the pixels differ (worst image {parity.disagreement_max:.2%})"
    )
    if parity.jaccard_change is not None:
        click.echo(
            f"  against the truth: {parity.jaccard_reference:.4f} -> {parity.jaccard_candidate:.4f} "
            f"({parity.jaccard_change:+.4f}; {parity.images_with_truth} images)"
        )
    click.echo("How much faster it is here: python -m isicrt.benchmarks.tradeoff, or isicrt bench")


if __name__ == "__main__":
    main()
