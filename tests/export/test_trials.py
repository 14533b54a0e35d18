"""What a build does with a plan that its machine cannot run, on a stand-in for TensorRT for RTX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isicrt.engine.errors import BuildError
from isicrt.engine.onnx_file import read_onnx_card
from isicrt.export import trials
from isicrt.export.parity import OnnxLevels, Parity, Sample
from isicrt.export.trials import plan_parity
from tests.engine.host_tensorrt import VERSION, HostTensorRt
from tests.engine.stand_ins import OnnxContext


@pytest.fixture
def host(darkness_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostTensorRt:
    host = HostTensorRt(darkness_onnx)
    host.install(monkeypatch, tmp_path / "cache")
    return host


def _try(onnx_file: Path, out: Path, flavour: str = "tensorrt-rtx") -> tuple[Parity | None, str]:
    import onnx

    builder = {"flavour": flavour, "version": VERSION, "source": "best.pt", "profile": [1, 4, 8]}
    builder |= {"gpu": "host", "compute_capability": "8.9"}
    card = read_onnx_card(onnx_file).replace(builder=builder)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    reference = ("the ONNX file", OnnxLevels(onnx.load(onnx_file)))
    return plan_parity(card, b"plan", reference, [Sample("noise", pixels)], "noise", out)


def _broken(host: HostTensorRt, how: str) -> None:
    make: Any = host._context

    def context(config: Any = None) -> OnnxContext:
        made: OnnxContext = make(config)
        setattr(made, how, True)
        return made

    host._context = context  # type: ignore[method-assign]


def test_a_plan_that_runs_is_compared(host: HostTensorRt, darkness_onnx: Path, tmp_path: Path) -> None:
    parity, note = _try(darkness_onnx, tmp_path)
    assert parity is not None
    assert (parity.candidate, parity.disagreement_max, note) == ("the plan on tensorrt-rtx-fp32", 0.0, "")
    assert host.device.allocated == 0


@pytest.mark.parametrize("how", ["refuses", "fails"])
def test_a_plan_for_other_gpus_that_loads_and_does_not_run_is_kept(
    host: HostTensorRt, darkness_onnx: Path, tmp_path: Path, how: str
) -> None:
    _broken(host, how)
    parity, note = _try(darkness_onnx, tmp_path)
    assert parity is None
    assert note.startswith("The plan was built but does not run on this GPU: ")
    assert "could not" in note
    assert host.device.allocated == 0


def test_a_plan_for_other_gpus_that_does_not_load_is_kept(
    host: HostTensorRt, darkness_onnx: Path, tmp_path: Path
) -> None:
    host.loads = False
    parity, note = _try(darkness_onnx, tmp_path)
    assert parity is None
    assert "does not load on this GPU" in note


def test_a_plan_for_this_gpu_has_to_load_and_to_run(host: HostTensorRt, darkness_onnx: Path, tmp_path: Path) -> None:
    # The flavour decides; the stand-in behaves as that of RTX.
    _broken(host, "refuses")
    with pytest.raises(BuildError, match=r"the plan was built but does not run: .*could not run a batch of 1"):
        _try(darkness_onnx, tmp_path, "tensorrt")
    host.loads = False
    with pytest.raises(BuildError, match=r"the plan was built but does not load: .*cannot load it"):
        _try(darkness_onnx, tmp_path, "tensorrt")


def test_an_error_that_is_not_the_plans_is_not_taken_for_it(
    host: HostTensorRt, darkness_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("the reference")

    monkeypatch.setattr(OnnxLevels, "__call__", fail)
    with pytest.raises(ZeroDivisionError, match="the reference"):
        _try(darkness_onnx, tmp_path)
    assert host.device.allocated == 0


def test_a_folder_that_is_full_is_an_error_that_names_the_file(
    host: HostTensorRt, darkness_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trials, "write_plan", fail)
    with pytest.raises(BuildError, match=r"trial\.plan: cannot be written: No space left on device"):
        _try(darkness_onnx, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
