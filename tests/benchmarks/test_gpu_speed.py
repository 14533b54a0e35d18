"""What of the GPU's figures can be computed without one: on ONNX Runtime behind the same interfaces."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from isicrt.benchmarks import gpu_speed
from isicrt.benchmarks.gpu_dali import differences
from isicrt.benchmarks.gpu_speed import (
    cpu_decode_figures,
    finish_figures,
    forget,
    network_figures,
    rate,
    render_files,
    run_figures,
)
from isicrt.benchmarks.gpu_watch import FIELDS, GpuWatch
from isicrt.benchmarks.latency import Window
from tests.engine.cpu_kernels import CpuKernels
from tests.engine.host_plan import HostPlan
from tests.engine.stand_ins import PipelinedOnnx

QUICK = Window(calls=2, seconds=0.01, warmup_calls=1, warmup_seconds=0.0)

SMI = """#!/bin/sh
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


def test_figures_of_a_network_by_batch(darkness_onnx: Path) -> None:
    with PipelinedOnnx(darkness_onnx, depth=2, max_batch=4) as runtime:
        figures = network_figures(runtime, (1, 4, 8), QUICK)
        assert runtime.most_in_flight == 2
    assert list(figures) == ["1", "4"]
    assert figures["4"]["call_ms"]["calls"] >= 2
    assert figures["4"]["stream"]["images_per_second"] > 0
    assert "events_ms" not in figures["4"]


def test_a_chain_end_to_end_and_its_failures(
    darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed (extra gpu)")
    host = HostPlan(darkness_onnx, CpuKernels(tmp_path_factory.mktemp("kernels")))
    broken = tmp_path / "broken.jpg"
    broken.write_text("no image")
    files = [*sorted((rendered_pairs / "images").iterdir())[:4], broken]
    for chain, share in ((host.chain, 0.0), (host.chain, 0.5)):
        figures = run_figures(host.runtime, chain, files, 10, cpu_share=share, cold=share == 0)
        assert (figures["images"], figures["failed"]) == (10, 2)
        assert figures["images_per_second"] > 0
        assert figures["stage_seconds"]["infer"] > 0
    host.close()


def test_stages_alone(rendered_pairs: Path) -> None:
    files = sorted((rendered_pairs / "images").iterdir())[:2]
    assert cpu_decode_figures(files, (64, 64), 0.01, 2)["images_per_second"] > 0
    assert finish_figures((64, 64), (120, 160), 0.01, 2)["images_per_second"] > 0
    forget(files)
    assert files[0].read_bytes()


def test_rendered_files_have_the_size_that_they_are_named_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_speed, "_DISTINCT", {"512": 1, "1022x767": 1, "12MP": 1})
    for name, (height, width) in gpu_speed.SIZES.items():
        (file,) = render_files(tmp_path, name)
        with Image.open(file) as image:
            assert image.size == (width, height)


def test_the_peers_alone_are_measured_where_there_is_no_plan(
    darkness_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_speed, "BATCHES", (1,))
    report = tmp_path / "speed.json"
    result = CliRunner().invoke(
        gpu_speed.command, [str(darkness_onnx), "--seconds", "0.01", "--json", str(report)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    data = json.loads(report.read_text())
    assert data["onnxruntime network"]["result"]["8"]["call_ms"]["p50"] > 0
    # A peer that fails is noted, and the rest stands.
    assert "torch network" in data or any(note.startswith("torch network") for note in data["notes"])


def test_a_plan_that_does_not_load_is_an_error(darkness_onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "a.plan").write_bytes(b"no plan")
    result = CliRunner().invoke(
        gpu_speed.command,
        [
            str(darkness_onnx),
            "--plan",
            str(tmp_path / "a.plan"),
            "--seconds",
            "0.01",
            "--json",
            str(tmp_path / "s.json"),
        ],
    )
    assert result.exit_code == 1
    assert "not a plan made by" in result.output


def test_dali_agrees_with_itself(rendered_pairs: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed (extra train)")
    files = sorted((rendered_pairs / "images").iterdir())[:3]
    found = differences(files, ("cpu", "cpu"), (32, 32))
    assert (found["images"], found["mean"], found["max"]) == (3, 0.0, 0.0)
    assert np.isfinite(found["seconds_first"])
