from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from isicrt.engine.card import ModelCard
from isicrt.engine.errors import BuildError
from isicrt.engine.geometry import UInt8Array
from isicrt.export import onnx_graph
from isicrt.export.onnx_export import Deployed, export_onnx
from isicrt.export.parity import OnnxLevels
from isicrt.export.trials import check_batches
from tests.export.tiny_network import tiny_card, tiny_network


def _shape(value: onnx.ValueInfoProto) -> tuple[int, list[str | int]]:
    kind = value.type.tensor_type
    return kind.elem_type, [dim.dim_param or dim.dim_value for dim in kind.shape.dim]


def test_takes_uint8_pixels_and_gives_uint8_probabilities_of_any_batch(tiny_onnx: onnx.ModelProto) -> None:
    uint8 = onnx.TensorProto.UINT8
    assert [(i.name, *_shape(i)) for i in tiny_onnx.graph.input] == [("image", uint8, ["batch", 64, 96, 3])]
    assert [(o.name, *_shape(o)) for o in tiny_onnx.graph.output] == [("probability", uint8, ["batch", 64, 96])]


def test_batch_norms_are_folded_and_pixels_are_cast_before_they_are_moved(tiny_onnx: onnx.ModelProto) -> None:
    operations = [node.op_type for node in tiny_onnx.graph.node]
    assert "BatchNormalization" not in operations
    # TensorRT moves no uint8 data: its parser rejects a Transpose of it.
    assert operations[0] == "Cast"


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_equals_torch(tiny_onnx: onnx.ModelProto, deployed: Deployed, pixels: UInt8Array, batch: int) -> None:
    with torch.no_grad():
        expected = deployed.levels(torch.from_numpy(pixels[:batch])).numpy()
        rounded = deployed(torch.from_numpy(pixels[:batch])).numpy()
    assert np.ptp(expected) > 100  # a flat picture would agree with anything
    np.testing.assert_allclose(OnnxLevels(tiny_onnx)(pixels[:batch]), expected, atol=0.01)
    session = onnxruntime.InferenceSession(tiny_onnx.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": pixels[:batch]})
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - rounded).max() <= 1


def test_the_mean_and_standard_deviation_are_the_cards(pixels: UInt8Array) -> None:
    class Red(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :1]

    card = tiny_card(mean=(0.25, 0.0, 0.0), std=(0.5, 1.0, 1.0))
    red = pixels[:2, ..., 0] / 255
    expected = 255 / (1 + np.exp(-(red - 0.25) / 0.5))
    found = OnnxLevels(export_onnx(Deployed(Red(), card).eval(), card))(pixels[:2])
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_same_model_gives_the_same_bytes_without_paths_of_this_machine(tiny_onnx: onnx.ModelProto) -> None:
    again = export_onnx(Deployed(tiny_network(), tiny_card()).eval(), tiny_card())
    first = tiny_onnx.SerializeToString(deterministic=True)
    assert first == again.SerializeToString(deterministic=True)
    assert b"tiny_network.py" not in first
    assert str(Path(__file__).parent).encode() not in first


def test_what_torch_cannot_trace_is_a_build_error_and_silent(capfd: pytest.CaptureFixture[str]) -> None:
    class Data(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :1] if float(x.sum()) > 0 else x[:, 1:2]

    before = logging.root.manager.disable
    with pytest.raises(BuildError, match="cannot export 'tiny' to ONNX"):
        export_onnx(Deployed(Data(), tiny_card()).eval(), tiny_card())
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == before


def test_a_batch_that_is_baked_in_is_a_build_error() -> None:
    class Baked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :1].reshape(2, 1, 64, 96)

    with pytest.raises(BuildError, match="batch"):
        export_onnx(Deployed(Baked(), tiny_card()).eval(), tiny_card())


def test_training_mode_is_refused() -> None:
    with pytest.raises(BuildError, match="training mode"):
        export_onnx(Deployed(tiny_network(), tiny_card()), tiny_card())


def test_a_file_with_a_fixed_batch_is_refused(tiny_onnx: onnx.ModelProto) -> None:
    fixed = onnx.ModelProto()
    fixed.CopyFrom(tiny_onnx)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    with pytest.raises(BuildError, match="'image' has a fixed batch of 4"):
        onnx_graph.check_batch_is_symbolic(fixed)


def test_the_card_replaces_the_one_that_was_there_and_nothing_else(tiny_onnx: onnx.ModelProto) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(tiny_onnx)
    onnx.helper.set_model_props(model, {"isicrt.card": "old", "note": "kept"})
    onnx_graph.set_card(model, tiny_card())
    found = {p.key: p.value for p in model.metadata_props}
    assert found.pop("note") == "kept"
    assert ModelCard.from_json(found.pop("isicrt.card")) == tiny_card()
    assert not found


def _write(model: onnx.ModelProto, path: Path) -> Path:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx_graph.set_card(copy, tiny_card())
    path.write_bytes(copy.SerializeToString())
    return path


def test_check_batches_passes_a_good_file(tiny_onnx: onnx.ModelProto, tmp_path: Path) -> None:
    check_batches(_write(tiny_onnx, tmp_path / "good.onnx"), (1, 3, 7))


def test_check_batches_finds_a_graph_that_mixes_images(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :1] - x[:, :1].mean(dim=0, keepdim=True)

    model = export_onnx(Deployed(Mixed(), tiny_card()).eval(), tiny_card())
    with pytest.raises(BuildError, match="mixes the images of a batch of 3"):
        check_batches(_write(model, tmp_path / "mixed.onnx"), (1, 3))
