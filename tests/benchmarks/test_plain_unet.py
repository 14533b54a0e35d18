"""The peer is what it says it is: a plain U-Net of the wanted cost that runs like any model of ours."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner

from isicrt.benchmarks.macs import count_macs
from isicrt.benchmarks.plain_unet import ellipse_logits, main, plain_unet, plain_widths, widths_macs
from isicrt.engine import shipped
from isicrt.engine.errors import SettingsError
from isicrt.engine.runtime import open_runtime


@pytest.fixture(scope="module")
def small() -> onnx.ModelProto:
    return plain_unet(0.05, 64)


@pytest.mark.parametrize(("gmac", "size"), [(4, 128), (4, 192), (4, 224), (4, 256), (4, 320), (8, 192)])
def test_the_cost_is_near_what_was_wanted(gmac: float, size: int) -> None:
    widths = plain_widths(gmac, size)
    assert widths_macs(widths, size) / 1e9 == pytest.approx(gmac, rel=0.05)
    assert all(width % 8 == 0 for width in widths)
    assert all(1.5 <= below / above <= 2.5 for above, below in itertools.pairwise(widths))


def test_the_formula_is_what_is_counted_in_the_graph(small: onnx.ModelProto) -> None:
    assert count_macs(small) == widths_macs(plain_widths(0.05, 64), 64)


def test_it_is_plain(small: onnx.ModelProto) -> None:
    kinds = Counter(node.op_type for node in small.graph.node)
    assert (kinds["MaxPool"], kinds["ConvTranspose"], kinds["Concat"]) == (4, 4, 4)
    assert (kinds["Conv"], kinds["Relu"]) == (19, 18)
    attributes = [a.name for node in small.graph.node if node.op_type == "Conv" for a in node.attribute]
    assert "group" not in attributes


def test_the_seed_decides_the_weights(small: onnx.ModelProto) -> None:
    assert plain_unet(0.05, 64).SerializeToString(deterministic=True) == small.SerializeToString(deterministic=True)
    assert plain_unet(0.05, 64, seed=1).SerializeToString(deterministic=True) != small.SerializeToString(
        deterministic=True
    )


def test_it_runs_and_says_that_it_is_untrained(tmp_path: Path) -> None:
    path = tmp_path / "plain.onnx"
    done = CliRunner().invoke(main, [str(path), "--gmac", "0.05", "--size", "64"])
    assert (done.exit_code, "GMAC at 64 px" in done.output) == (0, True), done.output
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    with open_runtime(path, threads=1) as runtime:
        found = runtime.infer(images)
        assert found.shape == (3, 64, 64)
        assert "not trained" in runtime.card.training["note"]
        assert "constant ellipse" in runtime.card.training["note"]
        assert runtime.card.network["macs"] == widths_macs(tuple(runtime.card.network["widths"]), 64)


@pytest.mark.parametrize(
    ("out", "message"), [("shipped/unet.onnx", "lies among the models that ship"), ("a.jpg", "that is an image's name")]
)
def test_it_replaces_no_model_that_ships_and_no_image(
    out: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path.resolve() / "shipped")
    file = tmp_path / out
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"kept")
    done = CliRunner().invoke(main, [str(file), "--gmac", "0.05", "--size", "64"])
    assert (done.exit_code, message in done.output) == (2, True), done.output
    assert file.read_bytes() == b"kept"


@pytest.fixture(scope="module")
def large() -> onnx.ModelProto:
    return plain_unet(0.5, 192)


@pytest.mark.parametrize("seed", range(3))
def test_a_mask_is_one_smooth_ellipse(seed: int, rendered_pairs: Path) -> None:
    runs = onnxruntime.InferenceSession(plain_unet(0.5, 192, seed=seed).SerializeToString())
    files = sorted((rendered_pairs / "images").iterdir())[:4]
    images = [cv2.resize(cv2.imread(str(file)), (192, 192)) for file in files]
    # The network's output is largest on noise: no photograph comes near it.
    images.append(np.random.default_rng(0).integers(0, 256, (192, 192, 3), dtype=np.uint8))
    for image in images:
        (found,) = runs.run(None, {"image": image[None]})
        mask = (cv2.resize(found[0], (768, 576)) > 127.5).astype(np.uint8)
        contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        assert len(contours) == 1, "no speck, no hole"
        assert 0.2 < mask.mean() < 0.3
        hull = cv2.contourArea(cv2.convexHull(contours[0]))
        assert cv2.contourArea(contours[0]) > 0.98 * hull, "no ragged border"


def test_what_the_convolutions_find_reaches_the_probabilities(large: onnx.ModelProto) -> None:
    without = onnx.ModelProto()
    without.CopyFrom(large)
    first = next(node for node in without.graph.node if node.op_type == "Conv")
    (weights,) = [tensor for tensor in without.graph.initializer if tensor.name == first.input[1]]
    zeros = np.zeros_like(onnx.numpy_helper.to_array(weights))
    weights.CopyFrom(onnx.numpy_helper.from_array(zeros, weights.name))
    image = np.random.default_rng(0).integers(0, 256, (1, 192, 192, 3), dtype=np.uint8)
    with_first, without_first = (
        onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"image": image})[0].astype(int)
        for model in (large, without)
    )
    expected = np.round(255 / (1 + np.exp(-ellipse_logits(192)[0].astype(float))))
    np.testing.assert_array_equal(without_first, expected, "all that is left is the map")
    assert np.abs(with_first - without_first).max() >= 2


def test_onnx_runtime_computes_every_convolution(small: onnx.ModelProto, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    # Beyond this level a graph cannot be written down portably; the next one changes the layout and no more.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(small.SerializeToString(), options)
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert kinds["FusedConv"] + kinds["Conv"] == 19
    assert (kinds["ConvTranspose"], kinds["Concat"], kinds["MaxPool"]) == (4, 4, 4)
    assert kinds["Add"] == 1, "the map is no bias of a channel"


def test_openvino_computes_every_convolution(small: onnx.ModelProto, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    path = tmp_path / "plain.onnx"
    path.write_bytes(small.SerializeToString())
    core = openvino.Core()
    network = core.read_model(path)
    network.reshape([1, 64, 64, 3])
    compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    layers = Counter(layer.get_rt_info()["layerType"].astype(str) for layer in compiled.get_runtime_model().get_ops())
    assert (layers["Convolution"], layers["Deconvolution"]) == (19, 4)
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    found = compiled(image)[0].astype(int)
    (expected,) = onnxruntime.InferenceSession(small.SerializeToString()).run(None, {"image": image})
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize(
    ("gmac", "size", "message"),
    [(4, 100, "multiple of 16"), (4, 0, "multiple of 16"), (0.01, 192, "choose from 0.43"), (1e6, 64, "choose from")],
)
def test_what_cannot_be_built(gmac: float, size: int, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plain_widths(gmac, size)


def test_a_wish_that_cannot_be_met_is_an_error_and_no_file(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [str(tmp_path / "x.onnx"), "--size", "100"])
    assert (done.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "multiple of 16" in done.output
