"""Int8: what is quantised, what stays float, what the card says, and that a loss keeps the file from being written."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper
from PIL import Image

from isicrt.engine import shipped
from isicrt.engine.errors import BuildError, DataError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.onnx_file import read_onnx_card
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.export import quantisation
from isicrt.export.calibration import read_samples
from isicrt.export.half import to_half
from isicrt.export.onnx_graph import set_card
from isicrt.export.parity import OnnxLevels, Sample
from isicrt.export.quantisation import METHODS, main, quantise, quantise_file
from tests.export.tiny_network import tiny_card
from tests.tiny_models import write_darkness_model


@pytest.fixture(scope="module")
def int8(tiny_onnx: onnx.ModelProto, pixels: UInt8Array) -> onnx.ModelProto:
    return quantise(tiny_onnx, list(pixels))


@pytest.fixture
def tiny_file(tiny_onnx: onnx.ModelProto, tmp_path: Path) -> Path:
    """`tiny_onnx` with its card, as a file."""
    model = onnx.ModelProto()
    model.CopyFrom(tiny_onnx)
    set_card(model, tiny_card(scores={"somewhere": {"jaccard": 0.5}}, training={"epochs": 3}))
    path = tmp_path / "tiny.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _weights(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """By convolution: the ONNX type of the weights that it reads, and the number of their scales."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    sources = {node.output[0]: node for node in model.graph.node}
    found = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            name = node.input[1]
            if name in stored:
                found[node.name] = (stored[name].data_type, 0)
            else:
                weight, scale = sources[name].input[:2]
                found[node.name] = (stored[weight].data_type, numpy_helper.to_array(stored[scale]).size)
    return found


def test_all_but_the_head_has_int8_weights_with_a_scale_for_each_channel(int8: onnx.ModelProto) -> None:
    weights = list(_weights(int8).values())
    kinds = onnx.TensorProto
    assert weights[-1] == (kinds.FLOAT, 0), "the head"
    # 8 channels each; the gate has one.
    assert sorted(weights[:-1]) == [(kinds.INT8, 1)] + [(kinds.INT8, 8)] * 4


def test_both_ends_are_as_they_were(int8: onnx.ModelProto, tiny_onnx: onnx.ModelProto) -> None:
    assert list(int8.graph.input) == list(tiny_onnx.graph.input)
    assert list(int8.graph.output) == list(tiny_onnx.graph.output)
    kinds = [node.op_type for node in int8.graph.node]
    assert kinds.index("QuantizeLinear") > kinds.index("Transpose"), "the normalisation is float"
    after = kinds[len(kinds) - kinds[::-1].index("DequantizeLinear") :]
    assert "Conv" in after
    assert "Sigmoid" in after


def test_the_original_is_left_alone_and_the_result_is_the_same_each_time(
    tiny_onnx: onnx.ModelProto, pixels: UInt8Array, int8: onnx.ModelProto
) -> None:
    before = tiny_onnx.SerializeToString(deterministic=True)
    again = quantise(tiny_onnx, list(pixels))
    assert tiny_onnx.SerializeToString(deterministic=True) == before
    assert again.SerializeToString(deterministic=True) == int8.SerializeToString(deterministic=True)


@pytest.mark.parametrize("method", METHODS)
def test_it_computes_nearly_the_same(method: str, tiny_onnx: onnx.ModelProto, pixels: UInt8Array) -> None:
    found, exact = OnnxLevels(quantise(tiny_onnx, list(pixels), method))(pixels), OnnxLevels(tiny_onnx)(pixels)
    assert 0 < np.abs(found - exact).mean() < 4


def test_nothing_is_printed(tiny_onnx: onnx.ModelProto, pixels: UInt8Array, capfd: pytest.CaptureFixture[str]) -> None:
    quantise(tiny_onnx, list(pixels), "percentile")
    assert capfd.readouterr() == ("", "")


def test_the_card_says_what_was_done_and_what_it_cost(tiny_file: Path, samples: list[Sample], tmp_path: Path) -> None:
    result = quantise_file(tiny_file, [s.pixels for s in samples[:2]], samples[2:], source="a test")
    path = tmp_path / "int8.onnx"
    path.write_bytes(result.onnx)
    with OnnxRuntime(path) as runtime:
        card = runtime.card
        assert runtime.infer(np.stack([s.pixels for s in samples])).shape == (5, 64, 96)
    assert card == result.card
    assert (card.name, card.precision) == ("tiny-int8", "int8")
    assert card.training == {"epochs": 3}
    assert list(card.scores) == ["somewhere, before the conversion to int8"]
    assert card.parity["images"] == 3
    assert card.parity["calibration"]["images"] == 2
    assert card.parity["mask_jaccard"] == result.mask_jaccard
    assert 0.8 < result.mask_jaccard <= 1
    assert result.parity.jaccard_change == pytest.approx(card.parity["jaccard_change"])
    assert (result.quantised, result.anchors) == (5, 6)


def test_what_cannot_be_quantised(
    tiny_onnx: onnx.ModelProto, tiny_file: Path, samples: list[Sample], tmp_path: Path
) -> None:
    with pytest.raises(BuildError, match="no image to calibrate on"):
        quantise(tiny_onnx, [])
    dark = tmp_path / "dark.onnx"
    write_darkness_model(dark)
    with pytest.raises(BuildError, match="no convolution before its last one"):
        quantise(onnx.load(dark), [samples[0].pixels])
    half = to_half(tiny_onnx)
    set_card(half, tiny_card(precision="fp16"))
    tiny_file.write_bytes(half.SerializeToString())
    with pytest.raises(BuildError, match=r"tiny\.onnx: is fp16.*float32"):
        quantise_file(tiny_file, [samples[0].pixels], samples)


@pytest.mark.parametrize(("calibrate", "compare"), [(1, 100), (4, 3), (11, 5)])
def test_images_calibrate_or_compare_and_never_both(rendered_pairs: Path, calibrate: int, compare: int) -> None:
    images, masks = rendered_pairs / "images", rendered_pairs / "masks"
    calibration, samples, source = read_samples([images], [masks], (64, 96), calibrate=calibrate, compare=compare)
    assert (len(calibration), len(samples)) == (calibrate, min(compare, 12 - calibrate))
    assert not {p.tobytes() for p in calibration} & {s.pixels.tobytes() for s in samples}
    assert all(s.truth is not None for s in samples)
    assert source.startswith(f"{len(samples)} of 12 images of ")


def test_test_images_and_their_twins_neither_calibrate_nor_compare(rendered_pairs: Path, tmp_path: Path) -> None:
    images = tmp_path / "train" / "images"
    shutil.copytree(rendered_pairs / "images", images)
    # Twins of test images ISIC_0011292 and ISIC_0000222, and a test image itself, which ISIC 2017 trains on.
    others = {2: "ISIC_0000416", 5: "isic_0014846_small", 7: "ISIC_0000012"}
    for n, name in others.items():
        (images / f"ISIC_{n:07d}.jpg").rename(images / f"{name}.jpg")
    calibration, samples, source = read_samples([images], [], (64, 96), calibrate=5, compare=100)
    assert len(calibration) == 5
    assert [s.name for s in samples if Path(s.name).stem in others.values()] == []
    assert source.startswith("4 of 9 images of ")
    assert "(3 test images of ISIC 2016 or twins of such left out)" in source
    with pytest.raises(DataError, match=r"9 images \(3 test images .* left out\) are too few to calibrate on 9"):
        read_samples([images], [], (64, 96), calibrate=9, compare=1)


def test_too_few_images(rendered_pairs: Path) -> None:
    with pytest.raises(DataError, match="12 images are too few to calibrate on 12"):
        read_samples([rendered_pairs / "images"], [], (64, 96), calibrate=12, compare=1)


def test_ground_truth_neither_calibrates_nor_compares(rendered_pairs: Path) -> None:
    with pytest.raises(DataError, match="12 of the 24 images have the name of a ground truth"):
        read_samples([rendered_pairs], [], (64, 96), calibrate=2, compare=2)


def test_masks_that_belong_to_nothing(rendered_pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no ground truth for any image, such as ISIC_"):
        read_samples([rendered_pairs / "images"], [tmp_path], (64, 96), calibrate=2, compare=2)


def test_a_mask_that_does_not_fit_its_image(rendered_pairs: Path, tmp_path: Path) -> None:
    for n in range(12):
        Image.new("L", (90, 119), 255).save(tmp_path / f"ISIC_{n:07d}_Segmentation.png")
    with pytest.raises(DataError, match=r"_Segmentation\.png: is 90 x 119, its image "):
        read_samples([rendered_pairs / "images"], [tmp_path], (64, 96), calibrate=2, compare=2)


def call(model: Path, data: Path, out: Path, *options: str) -> Result:
    images = ["--images", str(data / "images"), "--masks", str(data / "masks")]
    few = ["--calibration-images", "4", "--parity-images", "4"]
    return CliRunner().invoke(main, [str(model), *images, "--out", str(out), *few, *options])


def test_command(tiny_file: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    done = call(tiny_file, rendered_pairs, tmp_path / "out.onnx", "--max-loss", "1")
    assert done.exit_code == 0, done.output
    assert "int8: 5 of 6 convolutions" in done.output
    with OnnxRuntime(tmp_path / "out.onnx") as runtime:
        assert runtime.card.precision == "int8"


def test_the_model_is_written_before_anything_is_printed(
    tiny_file: Path, rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(quantisation, "_print", closed)
    assert call(tiny_file, rendered_pairs, tmp_path / "out.onnx", "--max-loss", "1").exit_code == 1
    assert (tmp_path / "out.onnx").exists()


def test_a_loss_above_the_limit_writes_nothing(
    tiny_file: Path, rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # From lesion everywhere, which overlaps a little with every truth, to lesion nowhere.
    tiny_file.write_bytes(_constant(onnx.load(tiny_file), 10).SerializeToString())
    monkeypatch.setattr(quantisation, "quantise", lambda model, images, method, rounding: _constant(model, -10))
    done = call(tiny_file, rendered_pairs, tmp_path / "out.onnx")
    assert done.exit_code == 1, done.output
    assert "the Jaccard index falls by" in done.output
    assert not (tmp_path / "out.onnx").exists()


def _constant(model: onnx.ModelProto, logit: float) -> onnx.ModelProto:
    """The model with a head that gives one logit everywhere."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    head = [node for node in changed.graph.node if node.op_type == "Conv"][-1]
    for tensor in changed.graph.initializer:
        if tensor.name in head.input[1:]:
            level = logit if len(tensor.dims) == 1 else 0
            tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, level, np.float32), tensor.name))
    return changed


def test_the_shipped_model_on_real_images(real_data: Path, tmp_path: Path) -> None:
    if not shipped.names():
        pytest.skip("no model ships yet")
    home = real_data / "isic2016" / "train"
    exact = shipped.resolve(shipped.FLOAT)
    size = read_onnx_card(exact).input_size
    calibration, samples, source = read_samples([home / "images"], [home / "masks"], size, calibrate=16, compare=16)
    result = quantise_file(exact, calibration, samples, source=source)
    assert result.quantised == result.anchors - 1
    assert len(result.onnx) < exact.stat().st_size / 3
    assert result.mask_jaccard > 0.96, "0.9 with the nearest integers for weights"
    assert result.parity.jaccard_change is not None
    assert abs(result.parity.jaccard_change) < 0.01
