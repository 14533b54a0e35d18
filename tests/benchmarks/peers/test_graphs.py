"""The networks that the peers run compute what the ONNX file does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from isicrt.benchmarks.peers.dataloader import Images, _collate
from isicrt.benchmarks.peers.float_graph import write_float_graph
from isicrt.benchmarks.peers.harness import clean, read_card
from isicrt.benchmarks.peers.onnx_module import load_module
from isicrt.benchmarks.plain_unet import plain_unet
from isicrt.engine import shipped
from isicrt.engine.card import IMAGENET_MEAN, IMAGENET_STD
from isicrt.engine.errors import ModelError
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.runtime import Runtime
from tests.tiny_models import darkness_card, write_darkness_model

NOISE = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)


def test_a_shipped_model_as_a_torch_module() -> None:
    torch = pytest.importorskip("torch")
    model = shipped.resolve(shipped.FLOAT)
    with OnnxRuntime(model) as runtime:
        h, w = runtime.card.input_size
        images = np.random.default_rng(0).integers(0, 256, (2, h, w, 3), np.uint8)
        expected = runtime.infer(images)
    with torch.inference_mode():
        found = load_module(model)(torch.from_numpy(images)).numpy()
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_the_plain_unet_as_a_torch_module(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = tmp_path / "plain.onnx"
    onnx.save(plain_unet(0.05, 64), model)
    with OnnxRuntime(model) as runtime:
        expected = runtime.infer(NOISE)
    network = load_module(model)
    with torch.inference_mode():
        found = network(torch.from_numpy(NOISE)).numpy()
    calls = [getattr(node.target, "__name__", "") for node in network.graph.nodes if node.op == "call_function"]
    assert (calls.count("conv2d"), calls.count("conv_transpose2d")) == (19, 4)
    assert (found[0] != found[1]).any(), "what the convolutions find is seen"
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_an_operator_that_is_in_no_network(darkness_onnx: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model = onnx.load(str(darkness_onnx))
    model.graph.node[3].op_type = "Max"
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ModelError, match=r"other\.onnx: operator Max"):
        load_module(tmp_path / "other.onnx")


@pytest.mark.parametrize(
    ("mean", "std", "offset"),
    [((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0.5), (IMAGENET_MEAN, IMAGENET_STD, 0.0)],
)
def test_a_float_graph_undoes_the_callers_normalisation(
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    offset: float,
    darkness_onnx: Path,
    tmp_path: Path,
) -> None:
    import onnxruntime

    path = tmp_path / "float.onnx"
    write_float_graph(darkness_onnx, path, mean=mean, std=std, offset=offset, metadata={"task": "semantic"})
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = ((NOISE / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    (found,) = session.run(None, {"input": images})
    with OnnxRuntime(darkness_onnx) as runtime:
        assert isinstance(runtime, Runtime)
        expected = runtime.infer(NOISE) / 255 - offset
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-6)
    assert session.get_modelmeta().custom_metadata_map["task"] == "semantic"


def test_the_card_travels_with_the_file(tmp_path: Path) -> None:
    card = write_darkness_model(tmp_path / "m.onnx", threshold=0.4)
    assert read_card(tmp_path / "m.onnx") == card


def test_clean_keeps_the_largest_and_fills_it() -> None:
    mask = np.zeros((9, 9), bool)
    mask[1:6, 1:6] = True
    mask[3, 3] = False
    mask[8, 8] = True
    expected = np.zeros((9, 9), np.uint8)
    expected[1:6, 1:6] = 255
    np.testing.assert_array_equal(clean(mask, darkness_card()), expected)
    np.testing.assert_array_equal(clean(np.zeros((4, 4), bool), darkness_card()), np.zeros((4, 4), np.uint8))
    np.testing.assert_array_equal(clean(mask, darkness_card(keep_largest=False)), mask.view(np.uint8) * 255)


def test_what_the_dataloader_reads(rendered_pairs: Path) -> None:
    pytest.importorskip("torch")
    files = sorted((rendered_pairs / "images").iterdir())[:2]
    images = Images(files, darkness_card())
    pixels, sizes, names = _collate([images[n] for n in range(len(images))])
    assert tuple(pixels.shape) == (2, 64, 64, 3)
    assert sizes == [(90, 120), (128, 96)]
    assert names == [f.stem for f in files]
