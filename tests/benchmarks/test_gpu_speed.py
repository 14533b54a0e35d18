"""The report of a GPU's speed where there is none: order, sections and verdict, with torch and the CPU in its place."""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from isicrt.benchmarks import gpu_files, gpu_speed
from isicrt.benchmarks.gpu_attempts import Attempts
from isicrt.benchmarks.gpu_dali import differences
from isicrt.benchmarks.gpu_files import forget, render_files
from isicrt.benchmarks.gpu_onnx import PROVIDER
from isicrt.benchmarks.gpu_rates import network_figures, rate
from isicrt.benchmarks.gpu_speed import Session, measure, opened
from isicrt.benchmarks.gpu_verdict import STAGES, conclude
from isicrt.benchmarks.gpu_watch import FIELDS, GpuWatch
from isicrt.benchmarks.gpu_whole import run_figures
from isicrt.benchmarks.latency import Window
from isicrt.engine import cuda_driver
from isicrt.engine.cuda_driver import find_gpu
from isicrt.engine.errors import ModelError
from isicrt.engine.silent_imports import import_onnxruntime
from tests.benchmarks.host_parts import host_parts, idle_host, torch_host, write_convolution_model
from tests.engine.cpu_kernels import CpuKernels
from tests.engine.host_plan import HostPlan
from tests.engine.stand_ins import PipelinedOnnx

QUICK = Window(calls=2, seconds=0.01, warmup_calls=1, warmup_seconds=0.0)

SMI = """#!/bin/sh
echo "$@" >"$0.asked"
echo "1980, 2619, 350.5, 1200, 97, 45"
echo "1755, 2619, [N/A], 1300, 99, 46"
echo "cut off"
exec sleep 60
"""


@pytest.mark.skipif(sys.platform == "win32", reason="nvidia-smi is a shell script here")
def test_the_watch_reads_nvidia_smi_and_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with GpuWatch() as watch:
        deadline = time.monotonic() + 10
        while len(watch._rows) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    summary = watch.summary()
    assert set(summary) == set(FIELDS)
    assert summary["clocks.sm"] == {"median": 1867.5, "max": 1980.0}
    assert summary["power.draw"] == {"median": 350.5, "max": 350.5}


@pytest.mark.skipif(sys.platform == "win32", reason="nvidia-smi is a shell script here")
@pytest.mark.parametrize(("known", "asked"), [(True, "GPU-00010203-0405-0607-0809-0a0b0c0d0eff"), (False, "1")])
def test_the_watch_asks_for_the_gpu_that_cuda_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool, asked: str
) -> None:
    """CUDA's number is not nvidia-smi's."""

    def uuid(target: Any, device: Any) -> int:
        assert device.value == 7
        target._obj[:] = [*range(15), 255]
        return 0 if known else 101

    def device(target: Any, index: int) -> int:
        assert index == 1
        target._obj.value = 7
        return 0

    driver = SimpleNamespace(cuInit=lambda flags: 0, cuDeviceGet=device, cuDeviceGetUuid=uuid)
    monkeypatch.setattr(cuda_driver, "driver_library", lambda: driver)
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with GpuWatch(1) as watch:
        deadline = time.monotonic() + 10
        while not watch._rows and time.monotonic() < deadline:
            time.sleep(0.01)
    assert f"--id={asked} " in (tmp_path / "nvidia-smi.asked").read_text()


def test_without_nvidia_smi_there_is_nothing_to_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with GpuWatch() as watch:
        pass
    assert watch.summary() == {}


def test_a_rate_counts_what_the_work_says() -> None:
    calls = []

    def work() -> int:
        calls.append(1)
        time.sleep(0.002)
        return 5

    found = rate(work, 0.01, 2)
    assert len(found["runs"]) == 2
    assert 0 < found["images_per_second"] <= 5 / 0.002
    assert len(calls) >= 3  # the first is not counted


@pytest.mark.parametrize("good_calls", [0, 1, 4])
def test_work_that_does_nothing_has_no_rate_and_ends(good_calls: int) -> None:
    left = [8] * good_calls

    def work() -> int:
        return left.pop() if left else 0

    with pytest.raises(ModelError, match="not one image came out"):
        rate(work, 60.0, 1)


def test_figures_of_a_network_by_batch(darkness_onnx: Path) -> None:
    with PipelinedOnnx(darkness_onnx, depth=2, max_batch=4) as runtime:
        figures = network_figures(runtime, (1, 4, 8), QUICK)
        assert runtime.most_in_flight == 2
    assert list(figures) == ["1", "4"]
    assert figures["4"]["call_ms"]["calls"] >= 2
    assert figures["4"]["stream"]["images_per_second"] > 0
    assert "events_ms" not in figures["4"]


def test_a_section_that_fails_is_noted_and_the_report_is_written_each_time(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    attempt = Attempts(file, {"format": 2}, conclude=lambda report: {"sections": len(report.get("a", {}))})

    def fail() -> None:
        raise RuntimeError("out of memory")

    assert attempt(("a", "first"), lambda: {"images_per_second": 1.0})
    assert json.loads(file.read_text())["a"]["first"]["result"] == {"images_per_second": 1.0}
    assert not attempt(("a", "second"), fail)
    assert not attempt(("a", "second"), fail)
    assert json.loads(file.read_text())["notes"] == ["a / second: RuntimeError: out of memory"]
    assert attempt(("a", "third"), lambda: 3)
    data = json.loads(file.read_text())
    assert (list(data["a"]), data["sections"], data["format"]) == (["first", "third"], 2, 2)


def test_nothing_is_begun_when_the_time_is_up(tmp_path: Path) -> None:
    attempt = Attempts(tmp_path / "report.json", {}, seconds=-1)
    assert not attempt(("late",), lambda: pytest.fail("it was begun"))
    assert attempt.report["notes"] == ["late: not begun, the time was up"]


def test_a_chain_end_to_end_and_its_failures(
    darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed (extra gpu)")
    host = HostPlan(darkness_onnx, CpuKernels(tmp_path_factory.mktemp("kernels")))
    broken = tmp_path / "broken.jpg"
    broken.write_text("no image")
    files = [*sorted((rendered_pairs / "images").iterdir())[:4], broken]
    for share in (0.0, 1.0):
        figures = run_figures(host.runtime, host.chain, files, 10, cpu_share=share, cold=share == 0)
        assert (figures["images"], figures["failed"]) == (10, 2)
        assert figures["images_per_second"] > 0
        assert figures["steady"] > 0
        assert figures["stage_seconds"]["infer"] > 0
        decoded = figures["decoded"]
        assert (decoded["gpu"], decoded["cpu"], decoded["refused"]) == ((0, 8, 0) if share else (8, 0, 0))
    cut = run_figures(host.runtime, host.chain, files, 1_000_000, seconds=0.5)
    assert 0 < cut["images"] < 100_000  # what was taken till then was finished
    assert cut["seconds"] < 30
    whole = run_figures(host.runtime, host.chain, files, 1_000_000, seconds=0.2, batch=70)
    assert whole["images"] >= 70
    assert whole["images"] % 70 == 0  # a batch that was begun was filled
    host.close()


def test_rendered_files_have_the_size_that_they_are_named_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_files, "DISTINCT", {"512": 1, "1022x767": 1, "12MP": 1})
    for name, (height, width) in gpu_files.SIZES.items():
        (file,) = render_files(tmp_path, name)
        with Image.open(file) as image:
            assert image.size == (width, height)
        forget([file])
        assert file.read_bytes()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small size, few batches."""
    monkeypatch.setattr(gpu_speed, "SIZES", {"512": (120, 90)})
    monkeypatch.setattr(gpu_files, "SIZES", {"512": (120, 90)})
    monkeypatch.setattr(gpu_files, "DISTINCT", {"512": 2})
    monkeypatch.setattr(gpu_speed, "BATCHES", (1, 4))
    monkeypatch.setattr(gpu_speed, "TORCH_BATCHES", {"eager": (1,), "compile": (1,)})
    monkeypatch.setattr(Session, "window", QUICK)


@pytest.mark.usefixtures("quick")
def test_without_a_plan_torch_has_its_place_and_everything_else_is_measured(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("torch", reason="torch is not installed (extra train)")
    pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed (extra gpu)")
    model = tmp_path / "model.onnx"
    card = write_convolution_model(model)
    attempt = Attempts(tmp_path / "speed.json", {}, conclude=conclude)
    files = {"512": render_files(tmp_path, "512")}
    kernels = CpuKernels(tmp_path_factory.mktemp("kernels"))
    session = Session(attempt, model, files, tmp_path, 0.001, 3, host_parts(kernels))

    def no_plan() -> Any:
        raise ModelError("calls it invalid on NVIDIA H100")

    good = measure(session, {"the plan": no_plan, "torch": lambda: torch_host(model)}, lambda: idle_host(card))
    assert good == ["torch"]
    report = json.loads((tmp_path / "speed.json").read_text())
    assert report["notes"][0] == "the plan: calls it invalid on NVIDIA H100"
    # Of the peers torch and ONNX Runtime's CUDA provider need a GPU; whatever else is in the notes has failed.
    missing = () if find_gpu() is not None else ("peers / torch",)
    if PROVIDER not in import_onnxruntime().get_available_providers():
        missing += ("peers / onnxruntime-cuda",)
    wrong = [note for note in report["notes"][1:] if not note.startswith(missing)]
    assert wrong == []
    (engine,) = report["engines"].values()
    assert list(report["engines"]) == ["torch-eager-fp16"]
    assert set(engine) == {
        *("network", "end to end", "network in the chain", "gpu stages together", "network by batch"),
        *("decoded on the CPU", "CPU share 0.25", "CPU share 0.5"),
    }
    assert {*STAGES, "cpu decode", "cpu restore and write"} - {"network"} == set(report["stages"]["512"])
    assert set(report["hardware decoder load"]["512"]) == {"0", "0.35", "0.65", "1"}
    whole = engine["end to end"]["512"]["result"]
    assert (len(whole["runs"]), whole["images"], whole["decoded"]["gpu"], whole["failed"]) == (3, 12, 12, 0)
    assert report["ratios"]["torch-eager-fp16"]["512"]["ratio"] > 0
    assert all(goal["met"] is not None for goal in report["goals"]["torch-eager-fp16"].values())
    assert report["peers"]["onnxruntime"]["result"]["batches"]["8"]["call_ms"]["p50"] > 0
    # The order of the report is that of the sections: what the goals need comes first.
    sections = [name for name in report if name not in ("notes", "ratios", "goals")]
    assert sections == ["engines", "stages", "hardware decoder load", "peers"]


class _Named(nullcontext[None]):
    """A runtime."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class _Recorder:
    """A `Session` that measures nothing."""

    def __init__(self, attempt: Attempts) -> None:
        self.attempt, self.files = attempt, {"512": [], "1022x767": [], "12MP": []}
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any, **options: Any) -> None:
            names = tuple(getattr(one, "name", one) for one in given)
            self.calls.append((name, *names, *options.items()))

        return call


def test_what_the_goals_need_comes_first_and_the_compiled_engine_after_the_first_size(tmp_path: Path) -> None:
    session: Any = _Recorder(Attempts(tmp_path / "speed.json", {}))

    def engine(name: str) -> Any:
        return lambda: _Named(name)

    def fails() -> Any:
        raise ModelError("torch.compile: not done after 120 s")

    for compiled, expected in ((engine("inductor"), ["torch", gpu_speed.COMPILED]), (fails, ["torch"])):
        session.calls.clear()
        engines = {"torch": engine("eager"), gpu_speed.COMPILED: compiled}
        assert measure(session, engines, engine("idle")) == expected
        few = (("repeats", 2), ("cold", False))
        assert session.calls[:5] == [
            ("network", "eager"),
            ("whole", "eager", "512"),
            ("host_stages", "512"),
            ("gpu_stages", "idle", "512"),
            ("about", "eager"),
        ]
        rest = session.calls[5:]
        if expected[-1] != "torch":
            assert rest[:3] == [("network", "inductor"), ("whole", "inductor", "512", *few), ("about", "inductor")]
            rest = rest[3:]
        assert rest[0] == ("hardware_loads", "idle", "512")
        assert rest[1:7] == [
            *(("whole", "eager", "1022x767", *few), ("host_stages", "1022x767"), ("gpu_stages", "idle", "1022x767")),
            *(("whole", "eager", "12MP", *few), ("host_stages", "12MP"), ("gpu_stages", "idle", "12MP")),
        ]
        assert rest[7] == ("at_length", "eager")
        assert [call[0] for call in rest[8:11]] == ["torch_peers", "onnx_runtime_cuda", "onnx_runtime"]
    assert session.attempt.report["notes"] == [f"{gpu_speed.COMPILED}: torch.compile: not done after 120 s"]


def test_nothing_is_opened_or_compiled_when_the_time_is_up(tmp_path: Path) -> None:
    session = Session(Attempts(tmp_path / "speed.json", {}, seconds=-1), tmp_path, {}, tmp_path, 1.0, 2)
    with opened(session, "torch", lambda: pytest.fail("it was opened")) as runtime:
        assert runtime is None
    assert session.attempt.report["notes"] == ["torch: not opened, the time was up"]


def test_an_engine_that_records_no_graph_says_so(tmp_path: Path) -> None:
    attempt = Attempts(tmp_path / "speed.json", {})
    session = Session(attempt, tmp_path, {}, tmp_path, 1.0, 2)
    session.about(SimpleNamespace(name="plan"))
    session.about(SimpleNamespace(name="torch", about={}))
    assert attempt.report == {"notes": []}
    session.about(SimpleNamespace(name="torch", about={"compile_seconds": {1: 3.0}, "graph_error": "not permitted"}))
    assert attempt.report["engines"]["torch"]["about"]["result"]["compile_seconds"] == {1: 3.0}
    assert attempt.report["notes"] == ["torch: without CUDA graphs: not permitted"]


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU here")
@pytest.mark.usefixtures("quick")
def test_a_plan_that_does_not_load_costs_itself_and_makes_the_exit_code_1(darkness_onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "a.plan").write_bytes(b"no plan")
    report = tmp_path / "s.json"
    options = ["--plan", str(tmp_path / "a.plan"), "--seconds", "0.001", "--json", str(report)]
    result = CliRunner().invoke(gpu_speed.command, [str(darkness_onnx), *options])
    assert result.exit_code == 1
    assert "not a plan made by" in result.output
    data = json.loads(report.read_text())
    assert data["stages"]["512"]["write"]["result"]["images_per_second"] > 0
    assert data["peers"]["onnxruntime"]["result"]["batches"]["8"]["call_ms"]["p50"] > 0
    assert any(note.startswith("stages on the GPU: no NVIDIA GPU") for note in data["notes"])


def test_dali_agrees_with_itself(rendered_pairs: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed (extra train)")
    files = sorted((rendered_pairs / "images").iterdir())[:3]
    found = differences(files, ("cpu", "cpu"), (32, 32))
    assert (found["images"], found["mean"], found["max"]) == (3, 0.0, 0.0)
    assert np.isfinite(found["seconds_first"])


def test_only_the_engines_that_are_asked_for_are_measured(
    darkness_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def measure(session: Session, engines: dict[str, Any], *rest: Any) -> list[str]:
        asked.append(list(engines))
        return []

    monkeypatch.setattr(gpu_speed, "measure", measure)
    monkeypatch.setattr(gpu_speed, "render_files", lambda folder, name: [])
    arguments = [str(darkness_onnx), "--json", str(tmp_path / "speed.json")]
    wanted = ["--engine", gpu_speed.COMPILED, "--engine", "torch"]
    for options in (wanted, []):
        result = CliRunner().invoke(gpu_speed.command, [*arguments, *options], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert asked == [[gpu_speed.COMPILED, "torch"], ["torch", gpu_speed.COMPILED]]


def test_a_plan_that_is_asked_for_and_not_given_is_an_error(darkness_onnx: Path, tmp_path: Path) -> None:
    options = ["--engine", gpu_speed.PLAN, "--json", str(tmp_path / "speed.json")]
    result = CliRunner().invoke(gpu_speed.command, [str(darkness_onnx), *options])
    assert result.exit_code == 2
    assert "--engine 'the plan' needs --plan" in result.output
    assert not (tmp_path / "speed.json").exists()
