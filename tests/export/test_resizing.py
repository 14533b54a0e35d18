"""The same weights at another input size: what the card says, and that the file computes what torch does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from isicrt.engine.card import ModelCard
from isicrt.engine.errors import BuildError, SettingsError
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.export.onnx_export import Deployed
from isicrt.export.resizing import main, resize_model, resized_card
from isicrt.trainer.checkpoint import load_model, save
from isicrt.trainer.models import build_model
from tests.tiny_models import write_darkness_model

CARD = ModelCard(
    name="small",
    architecture="unet",
    input_height=64,
    input_width=64,
    network={"decoder_channels": [8, 8, 8, 8]},
    training={"epochs": 3},
    scores={"validation": {"jaccard": 0.5}},
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small U-Net of random weights for 64 x 64 px."""
    path = tmp_path_factory.mktemp("run") / "best.pt"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save(path, card=CARD, weights=build_model("unet", **CARD.network).state_dict())
    return path


def test_the_card_keeps_the_size_that_it_learned_at() -> None:
    card = resized_card(CARD, (96, 96))
    assert (card.input_size, card.name) == ((96, 96), "small-96")
    assert card.training == {"input_size": [64, 64], "epochs": 3}
    assert list(card.scores) == ["validation, at 64 x 64 px"]
    assert resized_card(card, (128, 96)).training["input_size"] == [64, 64]
    assert resized_card(CARD, (64, 64)) == CARD


@pytest.mark.parametrize("size", [(100, 96), (96, 100), (0, 96), (-32, 32), (8224, 32)])
def test_sizes_that_the_network_cannot_take(size: tuple[int, int]) -> None:
    with pytest.raises(SettingsError, match="multiples of 32, up to 8192"):
        resized_card(CARD, size)


def test_the_file_computes_what_torch_does_at_that_size(checkpoint: Path, tmp_path: Path) -> None:
    built = resize_model(checkpoint, (96, 128), tmp_path / "out.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]
    assert built.onnx == tmp_path / "out.onnx"
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 128, 3), dtype=np.uint8)
    network, card = load_model(checkpoint)
    with OnnxRuntime(built.onnx) as runtime, torch.inference_mode():
        assert runtime.card == built.card
        assert runtime.card.input_size == (96, 128)
        expected = Deployed(network, card).eval()(torch.from_numpy(images)).numpy()
        assert np.abs(runtime.infer(images).astype(int) - expected).max() <= 1


def test_command(checkpoint: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    arguments = [str(checkpoint), "--size", "96", "--out", str(tmp_path / "a.onnx")]
    done = CliRunner().invoke(main, [*arguments, "--images", str(rendered_pairs / "images")])
    assert done.exit_code == 0, done.output
    assert "12 of 12 images of" in done.output
    with OnnxRuntime(tmp_path / "a.onnx") as runtime:
        assert runtime.card.name == "small-96"
        assert runtime.card.parity["disagreement_mean"] < 0.005


def test_command_compares_on_no_ground_truth(checkpoint: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    arguments = [str(checkpoint), "--size", "96", "--out", str(tmp_path / "a.onnx"), "--images", str(rendered_pairs)]
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, "12 of the 24 images have the name of a ground truth" in done.output) == (1, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("size", "code"), [("100", 2), ("0", 2), ("big", 2)])
def test_command_with_a_wrong_size(checkpoint: Path, tmp_path: Path, size: str, code: int) -> None:
    done = CliRunner().invoke(main, [str(checkpoint), "--size", size, "--out", str(tmp_path / "a.onnx")])
    assert (done.exit_code, list(tmp_path.iterdir())) == (code, [])


@pytest.mark.parametrize("option", ["--images", "--out"])
def test_command_with_an_empty_path(checkpoint: Path, tmp_path: Path, option: str) -> None:
    paths = {"--out": str(tmp_path / "a.onnx"), "--images": "x.jpg", option: ""}
    done = CliRunner().invoke(
        main, [str(checkpoint), "--size", "96", *(word for pair in paths.items() for word in pair)]
    )
    assert done.exit_code == 2, done.output
    assert f"Invalid value for '{option}': it is empty; the current folder is ." in done.stderr


def test_an_onnx_file_is_no_checkpoint(tmp_path: Path) -> None:
    write_darkness_model(tmp_path / "dark.onnx")
    with pytest.raises(BuildError, match="give the checkpoint"):
        resize_model(tmp_path / "dark.onnx", (96, 96), tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
