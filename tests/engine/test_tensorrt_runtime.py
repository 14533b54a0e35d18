"""What of the execution path can be tested without a GPU: its refusals. The `gpu` tests run the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from isicrt.engine import runtime as runtime_module
from isicrt.engine.cuda_driver import Gpu, find_gpu
from isicrt.engine.errors import ModelError, NoGpuError, OtherGpuError, SettingsError
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.plan import write_plan
from isicrt.engine.tensorrt_api import TensorRt
from isicrt.engine.tensorrt_runtime import TensorRtRuntime, check_gpu, check_version
from isicrt.engine.tensorrt_slot import GraphCounts
from tests.engine.gpu_plan import MODULES, open_plan
from tests.engine.host_tensorrt import HostTensorRt
from tests.tiny_models import darkness_card

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", "13.0")
BUILDER = {
    "flavour": "tensorrt",
    "version": "11.3.0.99",
    "source": "runs/a/best.pt",
    "profile": [1, 32, 32],
    "gpu": "NVIDIA A100-SXM4-40GB",
    "compute_capability": "8.0",
}
REBUILD = "isicrt build-engine runs/a/best.pt --fp16 --batch-size 1,32,32 --target tensorrt"

without_gpu = pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU here")


def test_find_gpu_gives_one_or_none() -> None:
    gpu = find_gpu()
    assert gpu is None or (gpu.name and gpu.compute_capability.count(".") == 1)
    assert find_gpu(10_000) is None


@without_gpu
def test_without_a_gpu_the_error_points_to_the_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "model.plan"
    write_plan(path, darkness_card(builder=BUILDER), b"plan")
    with pytest.raises(NoGpuError) as error:
        TensorRtRuntime(path)
    assert str(error.value) == (
        f"{path}: no NVIDIA GPU number 0 with a working driver here, and a plan runs on nothing else. "
        "Use the ONNX file that it was built of, which runs everywhere"
    )
    with pytest.raises(ModelError, match="no NVIDIA GPU"):
        runtime_module.open_runtime(path)


def test_a_damaged_plan_is_refused_first(tmp_path: Path) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(b"a bare engine")
    with pytest.raises(ModelError, match="not a plan made by"):
        runtime_module.open_runtime(path)


def test_another_version_names_both_and_the_rebuild() -> None:
    card = darkness_card(precision="fp16", builder=BUILDER)
    with pytest.raises(ModelError) as error:
        check_version(Path("a.plan"), card, TensorRt("tensorrt", None, "11.4.0.106"))
    assert all(part in str(error.value) for part in ("a.plan", "TensorRT 11.3.0.99", "TensorRT 11.4.0.106", REBUILD))
    check_version(Path("a.plan"), card, TensorRt("tensorrt", None, "11.3.0.99"))


def test_another_gpu_names_both_and_the_rebuild() -> None:
    card = darkness_card(precision="fp16", builder=BUILDER)
    with pytest.raises(ModelError) as error:
        check_gpu(Path("a.plan"), card, H100)
    assert all(part in str(error.value) for part in ("A100", "8.0", "H100", "9.0", REBUILD))
    check_gpu(Path("a.plan"), darkness_card(builder=BUILDER | {"compute_capability": "9.0", "gpu": H100.name}), H100)


H200 = Gpu("NVIDIA H200", "9.0", "13.0")


def test_another_model_of_the_same_compute_capability_is_another_gpu() -> None:
    builder = BUILDER | {"compute_capability": "9.0", "gpu": H100.name}
    card = darkness_card(precision="fp16", builder=builder)
    with pytest.raises(ModelError) as error:
        check_gpu(Path("a.plan"), card, H200)
    for part in ("a.plan: built for NVIDIA H100 80GB HBM3", "this GPU is NVIDIA H200", "--hardware-compatibility"):
        assert part in str(error.value)
    assert f" with: {REBUILD} --out " in str(error.value)
    for fine in (
        {"hardware_compatibility": "same-compute-capability"},
        {"hardware_compatibility": "ampere-plus"},
        {"gpu": "H200"},  # drivers before 470 leave NVIDIA's name out
        {"gpu": None},
    ):
        check_gpu(Path("a.plan"), card.replace(builder=builder | fine), H200)


@pytest.mark.parametrize(
    ("level", "capability", "runs"),
    [
        ("ampere-plus", "9.0", True),
        ("ampere-plus", "8.6", True),
        ("ampere-plus", "7.5", False),
        ("same-compute-capability", "8.0", True),
        ("same-compute-capability", "9.0", False),
        ("none", "8.0", False),
        ("none", "8.6", False),
    ],
)
def test_hardware_compatibility_says_which_gpus_a_plan_runs_on(level: str, capability: str, runs: bool) -> None:
    card = darkness_card(builder=BUILDER | {"hardware_compatibility": level})
    gpu = Gpu("another", capability, "13.0")
    if runs:
        check_gpu(Path("a.plan"), card, gpu)
    else:
        with pytest.raises(ModelError, match=r"A100.*compute capability 8\.0.*another"):
            check_gpu(Path("a.plan"), card, gpu)


def test_below_ampere_a_plan_is_not_built_for_ampere_again() -> None:
    options = ["--hardware-compatibility", "ampere-plus", "--opt-level", "5"]
    card = darkness_card(builder=BUILDER | {"hardware_compatibility": "ampere-plus", "options": options})
    with pytest.raises(OtherGpuError, match=r"--target tensorrt --opt-level 5 --out") as error:
        check_gpu(Path("a.plan"), card, Gpu("Tesla T4", "7.5", "13.0"))
    assert str(error.value).startswith("a.plan: built for Ampere and newer GPUs, 8.0 and up, on ")


@pytest.mark.parametrize("depth", [0, 9])
def test_batches_in_flight_are_bounded(tmp_path: Path, depth: int) -> None:
    with pytest.raises(SettingsError, match="expected 1 to 8"):
        TensorRtRuntime(tmp_path / "a.plan", depth=depth)


def test_a_plan_of_tensorrt_for_rtx_is_not_tied_to_a_gpu() -> None:
    builder = BUILDER | {"flavour": "tensorrt-rtx", "gpu": None, "compute_capability": None}
    check_gpu(Path("a.plan"), darkness_card(builder=builder), H100)


def _check_against_onnx(plan: TensorRtRuntime, onnx: OnnxRuntime) -> None:
    """Alone, several in flight, by graphs and without; then closed."""
    images = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    assert plan.max_batch == 8
    for count in (8, 3, 1, 8):  # 1 is below the profile's smallest batch
        difference = plan.infer(images[:count]).astype(int) - onnx.infer(images[:count])
        assert np.abs(difference).max() <= 1
    # Several in flight, each in its own slot, collected out of order: full ones from the second time on as a graph.
    for _ in range(3):
        batches = [np.roll(images, n, axis=0) for n in range(plan.depth)]
        tickets = [plan.submit(batch) for batch in batches]
        for n in reversed(range(plan.depth)):
            difference = plan.collect(tickets[n]).astype(int) - onnx.infer(batches[n])
            assert np.abs(difference).max() <= 1
    graphs = [slot.graphs for slot in plan.slots]
    # TensorRT for RTX records its own.
    wanted = GraphCounts(recorded=1) if plan.card.builder["flavour"] == "tensorrt" else None
    assert graphs == [wanted] * plan.depth
    timing = plan.time(images)
    assert min(timing.upload, timing.network, timing.download) > 0
    with pytest.raises(ModelError, match="batches of at most 8"):
        plan.infer(np.zeros((9, 64, 64, 3), np.uint8))
    plan.close()
    with pytest.raises(ModelError, match="closed"):
        plan.infer(images)


@pytest.mark.gpu
@pytest.mark.parametrize("flavour", MODULES)
def test_a_plan_runs_and_equals_onnx_runtime(flavour: str, darkness_onnx: Path, tmp_path: Path) -> None:
    with open_plan(darkness_onnx, flavour, tmp_path) as plan, OnnxRuntime(darkness_onnx) as onnx:
        _check_against_onnx(plan, onnx)


@pytest.mark.parametrize("flavour", MODULES)
def test_what_is_asked_of_a_plan_on_a_gpu_is_what_the_stand_in_does(
    flavour: str, darkness_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = HostTensorRt(darkness_onnx)
    host.install(monkeypatch, tmp_path / "cache")
    if flavour == "tensorrt":
        host.be_plain(monkeypatch)
    path = host.write(tmp_path / "model.plan", darkness_onnx, flavour=flavour, gpu="host", compute_capability="8.9")
    with TensorRtRuntime(path) as plan, OnnxRuntime(darkness_onnx) as onnx:
        _check_against_onnx(plan, onnx)
    assert host.device.allocated == 0
