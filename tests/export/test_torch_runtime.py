"""A checkpoint on torch gives what its export gives on ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from isicrt.engine.card import ModelCard
from isicrt.engine.errors import ModelError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.runtime import Runtime
from isicrt.export.onnx_export import Deployed, export_onnx
from isicrt.export.onnx_graph import set_card
from isicrt.export.torch_runtime import TorchRuntime
from isicrt.trainer import checkpoint
from isicrt.trainer.models import build_model

NETWORK = {"layout": "light", "decoder_channels": [8, 8, 8, 8], "standardise": 0.5}
CARD = ModelCard(name="tiny", architecture="unet", input_height=64, input_width=64, network=NETWORK)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoints") / "best.pt"
    model = build_model("unet", **NETWORK)
    model.head.weight.data *= 600  # masks with all levels
    checkpoint.save(path, card=CARD, weights=model.state_dict())
    return path


@pytest.fixture(scope="module")
def images() -> UInt8Array:
    return np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)


def test_it_gives_what_onnx_runtime_gives(saved: Path, images: UInt8Array, device: str, tmp_path: Path) -> None:
    network, card = checkpoint.load_model(saved)
    graph = export_onnx(Deployed(network, card).eval(), card)
    set_card(graph, card)
    onnx.save(graph, tmp_path / "model.onnx")
    with OnnxRuntime(tmp_path / "model.onnx", threads=1) as expected, TorchRuntime(saved, device=device) as runtime:
        assert isinstance(runtime, Runtime)
        assert runtime.name == f"torch-{device}"
        assert runtime.card == card
        for count in (5, 1):
            ours, theirs = runtime.infer(images[:count]), expected.infer(images[:count])
            assert (ours.dtype, ours.shape) == (np.uint8, (count, 64, 64))
            assert np.ptp(theirs) > 30
            assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.filterwarnings("ignore:Please use the new API settings")
def test_torchs_switches_are_as_they_were(saved: Path, images: UInt8Array) -> None:
    switches: Any = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [switch.allow_tf32 for switch in switches]
    with TorchRuntime(saved, device="cpu") as runtime:
        runtime.infer(images)
    assert [switch.allow_tf32 for switch in switches] == before


def test_what_it_refuses(saved: Path, images: UInt8Array, tmp_path: Path) -> None:
    runtime = TorchRuntime(saved, device="cpu")
    with pytest.raises(ModelError, match="takes uint8 images of N x 64 x 64 x 3"):
        runtime.infer(images[:, :32])
    runtime.close()
    runtime.close()
    with pytest.raises(ModelError, match=r"best\.pt: the runtime is closed"):
        runtime.infer(images)
    with pytest.raises(ModelError, match="no such checkpoint"):
        TorchRuntime(tmp_path / "none.pt", device="cpu")
