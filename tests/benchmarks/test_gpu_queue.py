"""What a run waits for, with the CPU in the GPU's place."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from isicrt.benchmarks import gpu_queue
from isicrt.benchmarks.gpu_queue import Clock, Setting, command, queue_figures, to_markdown
from tests.benchmarks.host_parts import host_parts, torch_host, write_convolution_model
from tests.engine.cpu_kernels import CpuKernels


def test_a_clock_tells_waiting_from_work() -> None:
    clock = Clock()
    wait = clock.around(lambda seconds: time.sleep(seconds) or seconds)
    assert wait(0.02) == wait(0.02) == 0.02
    with pytest.raises(TypeError):
        wait("long")
    assert clock.calls == 3
    found = clock.take(2)
    assert found["wall_ms"] >= 20
    assert found["cpu_ms"] < found["wall_ms"] / 2
    assert clock.take(1) == {"wall_ms": 0, "cpu_ms": 0}


def test_the_calls_of_a_run_and_of_the_chain_alone(rendered_pairs: Path, tmp_path: Path) -> None:
    pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed (extra gpu)")
    pytest.importorskip("torch", reason="torch is not installed (extra train)")
    write_convolution_model(tmp_path / "model.onnx")
    files = sorted((rendered_pairs / "images").iterdir())[:3]
    with torch_host(tmp_path / "model.onnx") as runtime:
        parts = host_parts(CpuKernels(tmp_path))
        found = queue_figures(runtime, files, Setting(processes=0, cpu_threads=1), 3, 0.02, parts)
    assert found["run"]["images"] == 12  # three batches of four
    assert found["run"]["failed"] == 0
    assert found["run"]["decoded"] == {"gpu": 12, "cpu": 0, "refused": 0}
    for part in ("alone", "run"):
        assert found[part]["images_per_second"] > 0
        assert found[part]["decode"]["wall_ms"] >= found[part]["decode"]["cpu_ms"] > 0
        assert found[part]["launch"]["wall_ms"] > 0
    assert found["run"]["cpu_seconds"]["user"] > 0
    report = {"settings": {"0 processes, 1 CPU threads": {"result": found}}, "notes": ["cut short"]}
    row, note = to_markdown(report).splitlines()[2:]
    assert row.startswith("| 0 processes, 1 CPU threads |")
    assert row.count("|") == 9
    assert note == "- cut short"


def test_a_setting_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch is not installed (extra train)")
    write_convolution_model(tmp_path / "model.onnx")
    seen = []

    def figures(runtime: object, files: object, setting: Setting, *rest: object) -> dict[str, object]:
        seen.append((setting.processes, setting.cpu_threads))
        raise RuntimeError("no memory")

    monkeypatch.setattr(gpu_queue, "open_torch", lambda model, largest: torch_host(model))
    monkeypatch.setattr(gpu_queue, "queue_figures", figures)
    options = [
        str(tmp_path / "model.onnx"),
        "--processes",
        "4,2",
        "--cpu-threads",
        "0,1",
        "--json",
        str(tmp_path / "q.json"),
    ]
    done = CliRunner().invoke(command, options)
    assert done.exit_code == 0, done.output
    assert seen == [(4, 0), (4, 1), (2, 0), (2, 1)]
    assert "- settings / 4 processes, all CPU threads: RuntimeError: no memory" in done.output
    assert CliRunner().invoke(command, [*options, "--processes", "4,x"]).exit_code == 2
