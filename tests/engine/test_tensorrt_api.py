from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from isicrt.engine import tensorrt_api
from isicrt.engine.errors import MissingDependencyError


def test_loads_tensorrt_for_rtx_by_its_bindings() -> None:
    bindings = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")
    trt = tensorrt_api.load("tensorrt-rtx")
    assert trt.version == bindings.__version__
    assert trt.title == f"TensorRT for RTX {trt.version}"
    assert tensorrt_api.installed("tensorrt-rtx")


@pytest.mark.parametrize(
    "path",
    [
        "Builder.build_serialized_network",
        "Builder.create_builder_config",
        "Builder.create_network",
        "Builder.create_optimization_profile",
        "BuilderFlag.TF32",
        "ComputeCapability.CURRENT",
        "ComputeCapability.SM80",
        "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",
        "DataType.UINT8",
        "DynamicShapesKernelSpecializationStrategy.EAGER",
        "EngineInvalidityDiagnostics",
        "EngineValidity.INVALID",
        "HardwareCompatibilityLevel.AMPERE_PLUS",
        "HardwareCompatibilityLevel.NONE",
        "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY",
        "IBuilderConfig.add_optimization_profile",
        "IBuilderConfig.builder_optimization_level",
        "IBuilderConfig.clear_flag",
        "IBuilderConfig.create_timing_cache",
        "IBuilderConfig.get_memory_pool_limit",
        "IBuilderConfig.get_timing_cache",
        "IBuilderConfig.hardware_compatibility_level",
        "IBuilderConfig.num_compute_capabilities",
        "IBuilderConfig.profiling_verbosity",
        "IBuilderConfig.progress_monitor",
        "IBuilderConfig.set_compute_capability",
        "IBuilderConfig.set_memory_pool_limit",
        "IBuilderConfig.set_timing_cache",
        "IConvolutionLayer.kernel",
        "ICudaEngine.create_execution_context",
        "ICudaEngine.create_runtime_config",
        "ICudaEngine.get_tensor_dtype",
        "ICudaEngine.get_tensor_mode",
        "ICudaEngine.get_tensor_name",
        "ICudaEngine.get_tensor_profile_shape",
        "ICudaEngine.get_tensor_shape",
        "ICudaEngine.num_io_tensors",
        "IDeconvolutionLayer.kernel",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.set_input_shape",
        "IExecutionContext.set_tensor_address",
        "ILogger.INTERNAL_ERROR",
        "IRuntimeCache.deserialize",
        "IRuntimeCache.serialize",
        "IRuntimeConfig.create_runtime_cache",
        "IRuntimeConfig.cuda_graph_strategy",
        "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
        "IRuntimeConfig.set_runtime_cache",
        "ITimingCache.serialize",
        "MemoryPoolType.WORKSPACE",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "ProfilingVerbosity.DETAILED",
        "Runtime.deserialize_cuda_engine",
        "Runtime.engine_header_size",
        "Runtime.get_engine_validity",
        "TensorIOMode.INPUT",
        "TensorIOMode.OUTPUT",
    ],
)
def test_the_bindings_have_all_that_isicrt_uses(path: str) -> None:
    """The execution path cannot run without a GPU; at least every name in it exists."""
    found = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")
    for part in path.split("."):
        found = getattr(found, part)


def test_the_logger_keeps_warnings_and_errors_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    module = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")
    log = tensorrt_api.make_logger(tensorrt_api.load("tensorrt-rtx"))
    heard = tensorrt_api.Heard(log)
    severity = module.ILogger.Severity
    for level in (severity.VERBOSE, severity.INFO, severity.WARNING, severity.ERROR, severity.INTERNAL_ERROR):
        log.log(level, f"a {level.name} \n")
    assert heard.problems == ["a WARNING", "a ERROR", "a INTERNAL_ERROR"]
    for n in range(30):
        log.log(severity.ERROR, str(n))
    assert heard.problems == [str(n) for n in range(10, 30)]
    assert capfd.readouterr() == ("", "")


def test_the_reason_is_an_error_and_nothing_from_before() -> None:
    module = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")
    log, severity = tensorrt_api.make_logger(tensorrt_api.load("tensorrt-rtx")), module.ILogger.Severity
    log.log(severity.ERROR, "of another's call")
    heard = tensorrt_api.Heard(log)
    assert (heard.problems, heard.reason) == ([], "")
    log.log(severity.WARNING, "slow")
    assert heard.reason == "slow"
    log.log(severity.ERROR, "no memory")
    log.log(severity.WARNING, "slow")
    assert (heard.reason, heard.problems) == ("no memory", ["slow", "no memory", "slow"])
    heard.forget()
    assert (heard.problems, heard.reason) == ([], "")


def test_each_of_several_builders_hears_its_own_errors() -> None:
    """TensorRT calls the logger that it was given first, and warns of every other one. At the end of the process too,
    where objects that use it may be left."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")
    program = """
from isicrt.engine.tensorrt_api import Heard, load, shared_logger

trt = load("tensorrt-rtx")
kept = []
for _ in range(2):
    heard = Heard(shared_logger(trt))
    builder = trt.module.Builder(heard.logger)
    network = builder.create_network(1 << int(trt.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    print(heard.problems)
    kept.append((builder, network, trt.module.OnnxParser(network, heard.logger)))
    assert not kept[-1][-1].parse(b"no graph")
    print(len(heard.problems), "Failed to parse the ONNX model" in heard.reason)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, 2 * ["[]", "1 True"], "")


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_tensorrt_that_is_not_installed_names_its_extra() -> None:
    with pytest.raises(MissingDependencyError, match=r"TensorRT is needed .*pip install '\.\[gpu\]'"):
        tensorrt_api.load("tensorrt")
    assert not tensorrt_api.installed("tensorrt")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("__version__ = '10.3.0'\nclass Builder: pass", r"TensorRT 10\.12 or newer .*10\.3\.0 is installed"),
        ("raise OSError('libnvonnxparser.so.11: cannot open')", r"libnvonnxparser\.so\.11"),
        ("", "'tensorrt' is there but has no Builder"),
    ],
    ids=["too old", "libraries missing", "a stub of that name"],
)
def test_a_broken_installation_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    (tmp_path / "tensorrt.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(MissingDependencyError, match=message):
        tensorrt_api.load("tensorrt")
    sys.modules.pop("tensorrt", None)
