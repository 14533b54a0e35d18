"""Opening, running and closing a plan, on a stand-in for TensorRT for RTX: what fails, and what is given back then."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isicrt.cli.segment_report import describe_run
from isicrt.engine.cuda_driver import Gpu
from isicrt.engine.errors import ModelError, OtherGpuError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.gpu_chain import GpuChain
from isicrt.engine.gpu_decode import GpuDecoder
from isicrt.engine.journal import JOURNAL_NAME
from isicrt.engine.plan import read_plan, write_plan
from isicrt.engine.segmenter import Segmenter
from isicrt.engine.tensorrt_api import TensorRt
from isicrt.engine.tensorrt_runtime import TensorRtRuntime
from tests.engine.cpu_kernels import CpuKernels
from tests.engine.gpu_plan import open_made_for, skip_where_it_is_not_made_for
from tests.engine.host_tensorrt import INVALID, VERSION, HostTensorRt
from tests.engine.stand_ins import CudaError


def _noise(count: int) -> UInt8Array:
    return np.random.default_rng(count).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def _fail(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.fixture
def host(darkness_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostTensorRt:
    host = HostTensorRt(darkness_onnx)
    host.install(monkeypatch, tmp_path / "cache")
    return host


@pytest.fixture
def plan(host: HostTensorRt, darkness_onnx: Path, tmp_path: Path) -> Path:
    return host.write(tmp_path / "model.plan", darkness_onnx)


def test_a_plan_runs_and_gives_everything_back(host: HostTensorRt, plan: Path, tmp_path: Path) -> None:
    with TensorRtRuntime(plan) as runtime:
        assert (runtime.name, runtime.max_batch, runtime.depth) == ("tensorrt-rtx-fp32", 8, 3)
        for count in (8, 3, 1):
            np.testing.assert_array_equal(runtime.infer(_noise(count)), host.onnx.infer(_noise(count)))
    assert host.device.allocated == host.device.pushed == 0
    assert [path.read_bytes() for path in (tmp_path / "cache" / "isicrt").iterdir()] == [b"fresh"]
    with pytest.raises(ModelError, match="this runtime is closed"):
        runtime.infer(_noise(1))


def test_the_journal_has_the_hash_of_the_plan_that_was_loaded(
    plan: Path, rendered_pairs: Path, tmp_path: Path, host: HostTensorRt
) -> None:
    """Whatever lies at its path since: what is resumed later was made by this one."""
    loaded = hashlib.sha256(plan.read_bytes()).hexdigest()
    host.loading = lambda: write_plan(plan, read_plan(plan)[0], b"another plan")
    with Segmenter(plan, threads=1) as segmenter:
        assert describe_run(plan, segmenter.runtime, {})["model"]["sha256"] == loaded
        segmenter.segment_folder(rendered_pairs / "images", tmp_path / "masks", decode="cpu", processes=0)
    runs = [json.loads(line) for line in (tmp_path / "masks" / JOURNAL_NAME).read_text().splitlines()]
    assert [run["model"]["sha256"] for run in runs if "model" in run] == [loaded]


def test_who_decodes_on_the_gpu_has_the_slots_alone(
    host: HostTensorRt, plan: Path, kernels: CpuKernels, rendered_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed (extra gpu)")

    def open_chain() -> GpuChain:
        return GpuChain(runtime, decoder=GpuDecoder(GpuDecoder.CPU_ONLY, cpu_threads=1), kernels=kernels)

    files, expected = sorted((rendered_pairs / "images").iterdir())[:3], host.onnx.infer(_noise(2))
    with TensorRtRuntime(plan) as runtime:
        with open_chain() as chain:
            alone = chain.segment_files(files)
            calls: tuple[Callable[[], Any], ...] = (
                lambda: runtime.infer(_noise(2)),
                lambda: runtime.submit(_noise(2)),
                lambda: runtime.time(_noise(2)),
                open_chain,
            )
            for call in calls:
                with pytest.raises(ModelError, match="taken by a run that decodes images there"):
                    call()
            for mask, before in zip(chain.segment_files(files), alone, strict=True):
                np.testing.assert_array_equal(mask, before)
        ticket = runtime.submit(_noise(2))
        with pytest.raises(RuntimeError, match="collect the batches in flight first"):
            open_chain()
        np.testing.assert_array_equal(runtime.collect(ticket), expected)
        with monkeypatch.context() as patch:
            patch.setattr(GpuDecoder, "decode", lambda *_: [None])
            with pytest.raises(ModelError, match="decodes no JPEG"):
                open_chain()
        np.testing.assert_array_equal(runtime.infer(_noise(2)), expected)
    assert host.device.allocated == host.device.pushed == 0


def test_a_partial_batch_is_filled_up_so_that_few_shapes_are_compiled(host: HostTensorRt, plan: Path) -> None:
    """And by its size alone: what ran before does not choose the kernels."""
    with TensorRtRuntime(plan, depth=1) as runtime:
        for order in (range(1, 9), range(8, 0, -1)):
            for count in order:
                host.device.log.append(f"batch {count}")
                np.testing.assert_array_equal(runtime.infer(_noise(count)), host.onnx.infer(_noise(count)))
        shapes = {line for line in host.device.log if line.startswith("shape")}
        assert shapes == {"shape 1", "shape 2", "shape 4", "shape 8"}
        start = host.device.log.index("batch 5")
        assert host.device.log[start + 1] == "shape 8"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"starting": _fail(TypeError("nullptr"))}, r"could not start its runtime on host.* isicrt doctor says"),
        (
            {"starting": _fail(RuntimeError("bad cast"))},
            r"failed while it loaded it \(bad cast\).* isicrt build",
        ),
        ({"loading": _fail(TypeError("unfit"))}, r"failed while it loaded it \(unfit\).* isicrt build-engine best\.pt"),
        ({"loads": False}, r"TensorRT for RTX 1\.7\.1\.116 cannot load it.*isicrt build-engine best\.pt"),
        ({"invalid": 128}, r"calls it invalid on host \(no reason given\)\. Build it again"),
        ({"invalid": 1 + 32}, r"calls it invalid on host \(VERSION_MISMATCH, MALFORMED_ENGINE\)\. Build it again"),
        ({"deaf": {"dynamic_shapes_kernel_specialization_strategy"}}, "masks could change during a run"),
        ({"create_runtime_config": lambda: None}, "makes no runtime configuration for it"),
    ],
)
def test_what_tensorrt_refuses_or_drops_is_an_error_that_says_what_to_do(
    host: HostTensorRt, plan: Path, change: dict[str, Any], message: str
) -> None:
    for name, value in change.items():
        setattr(host, name, value)
    with pytest.raises(ModelError, match=message) as error:
        TensorRtRuntime(plan)
    assert str(error.value).startswith(f"{plan}: ")
    assert host.device.allocated == host.device.pushed == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"invalid": 4}, r"\(OLD_CUDA_DRIVER\)\. Update the NVIDIA driver: isicrt doctor says .* Use the ONNX file"),
        ({"invalid": 8 + 16}, r"\(OLD_CUDA_RUNTIME, INSUFFICIENT_GPU_MEMORY\)\. Update the NVIDIA driver: isicrt doc"),
        ({"invalid": 16}, r"\(INSUFFICIENT_GPU_MEMORY\)\. Free memory .* a smaller --batch-size\.$"),
        ({"invalid": 64}, r"\(CUDA_ERROR\)\. It says: no device\. CUDA's driver .* isicrt doctor .* ONNX file"),
        ({"_context": lambda config: None}, r"no memory for its execution context\. Free .* a smaller --batch-size\.$"),
    ],
)
def test_what_lies_with_the_machine_is_not_to_be_built_again(
    host: HostTensorRt, plan: Path, change: dict[str, Any], message: str
) -> None:
    if change == {"invalid": 64}:
        host.says = [("ERROR", "no device"), ("WARNING", "slow")]
    for name, value in change.items():
        setattr(host, name, value)
    with pytest.raises(ModelError, match=message) as error:
        TensorRtRuntime(plan)
    assert str(error.value).startswith(f"{plan}: TensorRT for RTX {VERSION} ")
    assert "build-engine" not in str(error.value)
    assert host.device.allocated == host.device.pushed == 0


def test_what_was_said_before_is_not_the_reason(host: HostTensorRt, plan: Path) -> None:
    """Of the first runtime, while the second is loaded; and of loading, while a batch is run."""
    host.says, host.invalid = [("ERROR", "no device")], 64
    with pytest.raises(ModelError, match="It says: no device"):
        TensorRtRuntime(plan)
    host.says = []
    with pytest.raises(ModelError) as error:
        TensorRtRuntime(plan)
    assert "It says" not in str(error.value)
    host.says, host.invalid = [("ERROR", "no cache")], 0
    with TensorRtRuntime(plan) as runtime:
        for context in host.contexts:
            context.refuses = True
        with pytest.raises(ModelError, match="could not run a batch of 8") as error:
            runtime.infer(_noise(8))
        assert "It says" not in str(error.value)


@pytest.mark.parametrize(
    "begin",
    [
        lambda runtime: runtime.infer(_noise(8)),
        lambda runtime: runtime.time(_noise(8)),
        lambda runtime: runtime.slots[1].start_network(8),  # as decoding on the GPU does
    ],
    ids=["infer", "time", "network"],
)
def test_what_was_said_of_an_earlier_batch_is_not_the_reason(
    host: HostTensorRt, plan: Path, begin: Callable[[TensorRtRuntime], Any]
) -> None:
    with TensorRtRuntime(plan) as runtime:
        begin(runtime)
        runtime._heard.logger.log("ERROR", "an old problem")
        for context in host.contexts:
            context.refuses = True
        with pytest.raises(ModelError, match="could not run a batch of 8") as error:
            begin(runtime)
        assert "It says" not in str(error.value)


def test_why_a_plan_is_invalid_has_the_names_of_tensorrt_for_rtx() -> None:
    module = pytest.importorskip("tensorrt_rtx_bindings", reason="it is not installed", exc_type=ImportError)
    known = module.EngineInvalidityDiagnostics.__members__
    assert {name: flag.value for name, flag in known.items()} == INVALID


@pytest.mark.parametrize(
    ("built", "capability", "command"),
    [
        (["8.9"], "8.6", "--target tensorrt-rtx --compute-capability 8.6 --opt-level 5"),
        (["8.9"], "9.0", "--target tensorrt --opt-level 5"),  # which TensorRT for RTX does not know
        ([], "7.5", "--target tensorrt-rtx --compute-capability 7.5 --opt-level 5"),
        ([], "9.0", "--target tensorrt --opt-level 5"),
        (["8.6"], "8.6", "--target tensorrt --opt-level 5"),  # the same again would be refused again
    ],
)
def test_a_plan_for_other_gpus_names_both_and_a_command_for_this_one(
    host: HostTensorRt, darkness_onnx: Path, tmp_path: Path, built: list[str], capability: str, command: str
) -> None:
    options = (["--compute-capability", ",".join(built)] if built else []) + ["--opt-level", "5"]
    settings = {"options": options, "compute_capabilities": built}
    plan = host.write(tmp_path / "model.plan", darkness_onnx, **settings)
    host.device.gpu = Gpu("NVIDIA X", capability, "13.0")  # type: ignore[assignment]
    host.invalid = 2
    with pytest.raises(OtherGpuError) as error:
        TensorRtRuntime(plan)
    targets = ", ".join(built) or "8.0, 8.6, 8.9, 12.0, 12.1"
    said = (
        f"{plan}: built for compute capability {targets}; this GPU is NVIDIA X ({capability}), where TensorRT for RTX"
    )
    assert str(error.value).startswith(said)
    assert f" --batch-size 1,4,8 {command} --out " in str(error.value)


def test_where_its_runtime_does_not_start_the_onnx_file_is_named(
    host: HostTensorRt, darkness_onnx: Path, tmp_path: Path
) -> None:
    sha = hashlib.sha256(darkness_onnx.read_bytes()).hexdigest()
    plan = host.write(tmp_path / "model.plan", darkness_onnx, onnx_sha256=sha)
    shutil.copy(darkness_onnx, tmp_path / "model.onnx")
    host.starting = _fail(TypeError("nullptr"))
    with pytest.raises(ModelError, match=f"Use {tmp_path / 'model.onnx'}, the ONNX file that it was built of"):
        TensorRtRuntime(plan)


def test_a_cache_that_cannot_be_saved_does_not_keep_the_memory(
    host: HostTensorRt, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = TensorRtRuntime(plan)
    assert host.device.allocated > 0
    monkeypatch.setattr(host.cache, "serialize", _fail(ValueError("a surprise")))
    with pytest.raises(ValueError, match="a surprise"):
        runtime.close()
    assert host.device.allocated == host.device.pushed == 0
    assert runtime._engine is runtime._runtime is runtime._kernels is None
    runtime.close()


def test_a_slot_that_cannot_be_freed_does_not_keep_the_others(host: HostTensorRt, plan: Path) -> None:
    runtime = TensorRtRuntime(plan)
    one = host.device.allocated // 3
    first = runtime.slots[0]._buffers[1]
    free, first.free = first.free, _fail(CudaError("an illegal memory access"))  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"could not close .*: an illegal memory access"):
        runtime.close()
    with host.device.current():
        free()
    assert host.device.allocated == 0
    assert one > 0
    assert runtime._engine is None


def test_what_went_wrong_first_is_what_is_said(host: HostTensorRt, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.cache, "serialize", _fail(ValueError("a surprise")))
    with pytest.raises(KeyError, match="the cause"), TensorRtRuntime(plan):
        raise KeyError("the cause")
    assert host.device.allocated == 0


@pytest.mark.parametrize(
    ("flavour", "capability", "skipped"),
    [
        ("tensorrt-rtx", "9.0", True),
        ("tensorrt-rtx", "7.5", True),
        ("tensorrt-rtx", "8.9", False),
        ("tensorrt", "9.0", False),
    ],
)
def test_the_tests_on_a_gpu_are_skipped_only_where_it_is_unknown(
    host: HostTensorRt, flavour: str, capability: str, skipped: bool
) -> None:
    trt, gpu = TensorRt(flavour, host.module, VERSION), Gpu("any", capability, "13.0")
    with pytest.raises(pytest.skip.Exception) if skipped else nullcontext():
        skip_where_it_is_not_made_for(gpu, trt, OtherGpuError("built for others"))


@pytest.mark.parametrize(("capability", "outcome"), [("9.0", pytest.skip.Exception), ("8.9", OtherGpuError)])
def test_a_plan_that_was_built_here_and_is_refused_skips_a_test_only_where_the_gpu_is_unknown(
    host: HostTensorRt, plan: Path, capability: str, outcome: type[BaseException]
) -> None:
    gpu = Gpu("any", capability, "13.0")
    open_made_for(gpu, "tensorrt-rtx", plan).close()
    host.invalid = 2
    with pytest.raises(outcome, match="UNSUPPORTED_CC"):
        open_made_for(gpu, "tensorrt-rtx", plan)
