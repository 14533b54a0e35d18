"""TensorRT for RTX builds engines without a GPU, so these are real builds."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")

from onnx import TensorProto, helper

from isicrt.engine import tensorrt_api
from isicrt.engine.cuda_driver import Gpu
from isicrt.engine.errors import BuildError
from isicrt.engine.rebuild import builder_problem
from isicrt.engine.tensorrt_api import known_capabilities
from isicrt.export import tensorrt_build
from isicrt.export.half import to_half
from isicrt.export.inspection import Layer, half_share, require_half
from isicrt.export.tensorrt_build import (
    COMPATIBILITIES,
    BuildProgress,
    Profile,
    Tuning,
    build_engine,
    require_tuning,
    timing_cache_path,
)
from tests.tiny_models import plan_card

PROFILE = Profile(1, 4, 8)


@pytest.fixture(scope="module")
def trt() -> tensorrt_api.TensorRt:
    return tensorrt_api.load("tensorrt-rtx")


@pytest.fixture(scope="module")
def tiny_half(tiny_onnx: onnx.ModelProto) -> bytes:
    return to_half(tiny_onnx).SerializeToString()


def test_builds_an_fp16_engine_with_every_convolution_half(
    trt: tensorrt_api.TensorRt, tiny_onnx: onnx.ModelProto
) -> None:
    seen: list[float] = []
    engine = build_engine(trt, to_half(tiny_onnx).SerializeToString(), PROFILE, half=True, on_progress=seen.append)
    assert len(engine.plan) > 1000
    assert half_share(engine.layers) == "6 of 6 convolutions"
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) > 10


def test_an_fp32_engine_has_none(trt: tensorrt_api.TensorRt, tiny_onnx: onnx.ModelProto) -> None:
    engine = build_engine(trt, tiny_onnx.SerializeToString(), PROFILE, half=False)
    assert {layer.types for layer in engine.layers} == {frozenset({"FLOAT"})}
    assert half_share(engine.layers) == "0 of 6 convolutions"


def test_asking_for_half_of_a_float_graph_is_an_error_before_anything_is_built(
    trt: tensorrt_api.TensorRt, tiny_onnx: onnx.ModelProto
) -> None:
    seen: list[float] = []
    with pytest.raises(BuildError, match=r"--fp16 was asked for, but 0 of 6 convolutions are HALF .* is FLOAT"):
        build_engine(trt, tiny_onnx.SerializeToString(), PROFILE, half=True, on_progress=seen.append)
    assert not seen


def test_asking_for_float_of_a_half_graph_is_an_error_too(trt: tensorrt_api.TensorRt, tiny_half: bytes) -> None:
    with pytest.raises(BuildError, match=r"--fp32 was asked for, but 6 of 6 convolutions are HALF .* is HALF"):
        build_engine(trt, tiny_half, PROFILE, half=False)


def test_what_the_parser_refuses_is_named(trt: tensorrt_api.TensorRt) -> None:
    graph = helper.make_graph(
        [helper.make_node("Transpose", ["image"], ["y"], name="turned", perm=[0, 3, 1, 2])],
        "uint8",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 4, 4, 3])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, ["n", 3, 4, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(BuildError, match=r"(?s)cannot parse the ONNX graph.*turned.*Transpose.*UInt8"):
        build_engine(trt, model.SerializeToString(), PROFILE, half=False)


def test_bytes_that_are_no_graph(trt: tensorrt_api.TensorRt) -> None:
    with pytest.raises(BuildError, match="cannot parse"):
        build_engine(trt, b"not ONNX", PROFILE, half=False)


def test_a_fixed_batch_is_refused(trt: tensorrt_api.TensorRt, tiny_onnx: onnx.ModelProto) -> None:
    fixed = onnx.ModelProto()
    fixed.CopyFrom(tiny_onnx)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(BuildError, match="fixed batch of 2"):
        build_engine(trt, fixed.SerializeToString(), PROFILE, half=False)


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """What Ctrl-C does, once; also where the tests run in the background of a shell, which has it ignored."""
    if sys.platform == "win32":
        pytest.skip("os.kill does not send SIGINT there")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    calls = itertools.count()
    yield lambda: None if next(calls) else os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_stops_the_builder(
    trt: tensorrt_api.TensorRt, tiny_onnx: onnx.ModelProto, ctrl_c: Callable[[], None]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_engine(trt, tiny_onnx.SerializeToString(), PROFILE, half=False, on_progress=lambda fraction: ctrl_c())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tensorrt-builder")]


def test_ctrl_c_while_the_graph_is_parsed(
    trt: tensorrt_api.TensorRt, tiny_half: bytes, ctrl_c: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logger is called then. What it raises TensorRT prints, and goes on."""

    def make_logger(trt: tensorrt_api.TensorRt) -> Any:
        log = tensorrt_api.make_logger(trt)
        log.log = lambda severity, message: ctrl_c()
        return log

    monkeypatch.setattr(tensorrt_build, "shared_logger", make_logger)
    with pytest.raises(KeyboardInterrupt):
        build_engine(trt, tiny_half, PROFILE, half=True)


@pytest.mark.parametrize("kind", [BrokenPipeError, TimeoutError])
def test_what_the_caller_of_progress_raises_stops_the_builder(
    trt: tensorrt_api.TensorRt, tiny_half: bytes, kind: type[OSError]
) -> None:
    calls = []

    def fail(fraction: float) -> None:
        calls.append(fraction)
        if len(calls) == 3:
            raise kind("nobody reads")

    with pytest.raises(kind, match="nobody reads"):
        build_engine(trt, tiny_half, PROFILE, half=True, on_progress=fail)
    assert len(calls) == 3


@pytest.mark.parametrize("stopped", [False, True])
def test_nothing_of_tensorrt_outlives_an_error(
    trt: tensorrt_api.TensorRt, tiny_onnx: onnx.ModelProto, stopped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its objects would be destroyed whenever Python next collects garbage: in the midst of another build.

    The network is refused, or the builder gives no engine.
    """
    stop, model = threading.Event(), tiny_onnx.SerializeToString()
    stop.set()
    loggers: list[weakref.ref[Any]] = []

    def make_logger(trt: tensorrt_api.TensorRt) -> Any:
        log = tensorrt_api.make_logger(trt)
        loggers.append(weakref.ref(log))
        return log

    monkeypatch.setattr(tensorrt_build, "shared_logger", make_logger)  # that of the process lives on
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(BuildError):
            if stopped:
                tensorrt_build._build(trt, model, PROFILE, False, Tuning(), None, lambda fraction: None, stop)
                pytest.fail("it was built")
            build_engine(trt, model, PROFILE, half=True)
        alive = [log() for log in loggers]
    finally:
        gc.enable()
    assert alive == [None]


@pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 1, 4), (1, 5, 4)])
def test_profiles_are_checked(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(BuildError, match="1 <= MIN <= OPT <= MAX"):
        Profile(*sizes)


def test_progress_is_one_number_from_nested_phases_and_never_falls() -> None:
    seen: list[float] = []
    progress = BuildProgress(seen.append)
    progress.start("build", None, 2)
    progress.start("optimise", "build", 4)
    progress.step("optimise", 0)
    progress.step("optimise", 2)
    progress.finish("optimise")
    progress.step("build", 0)
    progress.start("time", "build", 2)
    progress.step("time", 0)
    progress.finish("time")  # early, as builders may
    progress.step("unknown", 3)
    progress.finish("build")
    assert seen == [0.125, 0.375, 0.375, 0.5, 0.75, 0.75, 0.75, 1.0]


@pytest.mark.parametrize(
    ("types", "share", "passes"),
    [
        ([{"HALF"}, {"HALF"}], "2 of 2 convolutions", True),
        ([{"HALF"}, {"HALF", "FLOAT"}], "1 of 2 convolutions", False),
        ([], "0 of 0 convolutions", False),
    ],
)
def test_the_proof_of_half(types: list[set[str]], share: str, passes: bool) -> None:
    layers = [Layer(f"c{n}", "convolution", frozenset(t)) for n, t in enumerate(types)]
    assert half_share(layers) == share
    if passes:
        require_half(layers)
    else:
        with pytest.raises(BuildError, match=share):
            require_half(layers)


def test_matrix_products_are_counted_apart() -> None:
    layers = [Layer("c", "convolution", frozenset({"HALF"})), Layer("m", "matrix product", frozenset({"FLOAT"}))]
    assert half_share(layers) == "1 of 1 convolutions, 0 of 1 matrix products"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "timing-11.4.0.106-NVIDIA-H100-80GB-HBM3-sm9.0-cuda13.0-580.95.05.bin"),
        ({"driver": ""}, "timing-11.4.0.106-NVIDIA-H100-80GB-HBM3-sm9.0-cuda13.0.bin"),
        (
            {"tuning": Tuning("ampere-plus", (), 5, 64)},
            "timing-11.4.0.106-NVIDIA-H100-80GB-HBM3-sm9.0-cuda13.0-580.95.05"
            "-hardware-compatibility-ampere-plus-opt-level-5-workspace-64.bin",
        ),
    ],
)
def test_the_timing_cache_is_named_by_version_gpu_driver_and_tuning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, Any], name: str
) -> None:
    monkeypatch.setenv("ISICRT_CACHE", str(tmp_path / "isicrt"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    gpu = Gpu("NVIDIA H100 80GB HBM3", "9.0", "13.0", changes.get("driver", "580.95.05"))
    assert timing_cache_path("11.4.0.106", gpu, changes.get("tuning", Tuning())) == tmp_path / "isicrt" / name


@pytest.mark.parametrize(
    "tuning",
    [
        Tuning(opt_level=0),
        Tuning(opt_level=5, workspace_mib=512),
        Tuning(compute_capabilities=("8.9",)),
        Tuning(compute_capabilities=("8.0", "12.0"), opt_level=1),
    ],
    ids=lambda tuning: " ".join(tuning.to_words()),
)
def test_a_tuned_builder_builds(trt: tensorrt_api.TensorRt, tiny_half: bytes, tuning: Tuning) -> None:
    engine = build_engine(trt, tiny_half, PROFILE, half=True, tuning=tuning)
    assert half_share(engine.layers) == "6 of 6 convolutions"


@pytest.mark.parametrize("name", COMPATIBILITIES)
@pytest.mark.parametrize(
    "rest",
    [
        {},
        {"compute_capabilities": ("current",)},
        {"compute_capabilities": ("8.0", "12.0"), "opt_level": 0, "workspace_mib": 1 << 20},
    ],
)
def test_what_may_be_asked_for_may_stand_in_a_card(name: str, rest: dict[str, Any]) -> None:
    assert builder_problem(plan_card(options=Tuning(name, **rest).to_words()).builder) == ""


def test_the_compute_capability_reaches_the_plan(trt: tensorrt_api.TensorRt, tiny_half: bytes) -> None:
    plans = [
        build_engine(trt, tiny_half, PROFILE, half=True, tuning=Tuning(compute_capabilities=those)).plan
        for those in (("8.0",), ("8.9",), ("8.0", "8.6", "8.9", "12.0"))
    ]
    assert plans[0] != plans[1]
    assert len(plans[2]) != len(plans[0])


def test_a_workspace_that_is_too_small_is_the_builders_own_error(
    trt: tensorrt_api.TensorRt, darkness_onnx: Path
) -> None:
    with pytest.raises(BuildError, match=r"(?s)could not build the engine.*workspace limit.*try a larger --workspace"):
        build_engine(trt, darkness_onnx.read_bytes(), PROFILE, half=False, tuning=Tuning(workspace_mib=1))


def test_the_compute_capabilities_that_tensorrt_for_rtx_knows(trt: tensorrt_api.TensorRt) -> None:
    known = known_capabilities(trt)
    assert known["8.9"] == "SM89"
    assert known["12.0"] == "SM120"
    assert known["current"] == "CURRENT"
    assert all(hasattr(trt.module.ComputeCapability, name) for name in known.values())


@pytest.mark.parametrize(
    ("flavour", "tuning", "message"),
    [
        ("tensorrt-rtx", Tuning("ampere-plus"), "--hardware-compatibility: TensorRT for RTX .* --compute-capability"),
        (
            "tensorrt",
            Tuning(compute_capabilities=("8.9",)),
            "--compute-capability: TensorRT .* --hardware-compatibility",
        ),
        (
            "tensorrt-rtx",
            Tuning(compute_capabilities=("9.0",)),
            r"--compute-capability 9.0: TensorRT for RTX .* knows 7.5",
        ),
        ("tensorrt-rtx", Tuning(compute_capabilities=("current", "8.9")), "'current' stands alone"),
    ],
)
def test_what_a_flavour_does_not_have_is_refused_with_what_it_has(
    trt: tensorrt_api.TensorRt, flavour: str, tuning: Tuning, message: str
) -> None:
    with pytest.raises(BuildError, match=message):
        require_tuning(tensorrt_api.TensorRt(flavour, trt.module, "1"), tuning)


def test_tensorrt_takes_its_own_tuning() -> None:
    require_tuning(tensorrt_api.TensorRt("tensorrt", None, "11"), Tuning("ampere-plus", (), 5, 64))
