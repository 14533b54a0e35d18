"""What a run waits for, with the CPU in the GPU's place."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from isicrt.benchmarks import gpu_queue
from isicrt.benchmarks.gpu_queue import (
    Clock,
    Setting,
    command,
    make_parts,
    queue_figures,
    to_markdown,
    unserved_seconds,
)
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
    assert clock.take(1) == {"wall_ms": 0, "cpu_ms": 0, "unserved_ms": 0}


@pytest.mark.skipif(math.isnan(unserved_seconds()), reason="this kernel does not tell how long threads wait for a core")
def test_a_clock_tells_a_wait_for_a_core(tmp_path: Path) -> None:
    """Two threads of one process, kept on one core, which each compute without Python's lock."""
    code = (
        "import hashlib, os, sys, threading\n"
        "from isicrt.benchmarks.gpu_queue import Clock\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "data = bytes(50_000_000)\n"
        "threading.Thread(target=lambda: [hashlib.sha256(data) for _ in range(1000)], daemon=True).start()\n"
        "clock = Clock()\n"
        "work = clock.around(lambda: [hashlib.sha256(data) for _ in range(5)])\n"
        "work()\n"
        "spent = clock.take(1)\n"
        "print(spent['unserved_ms'] / spent['wall_ms'], flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 0.2


def test_a_kernel_that_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert math.isnan(unserved_seconds(tmp_path / "none"))
    (tmp_path / "schedstat").write_text("5 2500000000 7\n")
    assert unserved_seconds(tmp_path / "schedstat") == 2.5
    monkeypatch.setattr(gpu_queue, "unserved_seconds", lambda: math.nan)
    clock = Clock()
    clock.around(time.sleep)(0.001)
    assert clock.take(1)["unserved_ms"] is None
    assert clock.take(1)["unserved_ms"] == 0


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
        assert found[part]["cpu_ms"]["user"] > 0
    report = {"settings": {"0 processes, 1 CPU threads": {"result": found}}, "notes": ["cut short"]}
    head, rule, row, note = to_markdown(report).splitlines()
    assert row.startswith("| 0 processes, 1 CPU threads |")
    assert row.count("|") == head.count("|") == rule.count("|") == 11
    assert note == "- cut short"


def test_a_setting_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch is not installed (extra train)")
    write_convolution_model(tmp_path / "model.onnx")
    seen = []

    def figures(runtime: object, files: object, setting: Setting, *rest: object) -> dict[str, object]:
        seen.append((setting.processes, setting.cpu_threads, setting.hardware_load))
        raise RuntimeError("no memory")

    monkeypatch.setattr(gpu_queue, "open_torch", lambda model, largest: torch_host(model))
    monkeypatch.setattr(gpu_queue, "queue_figures", figures)
    options = [
        str(tmp_path / "model.onnx"),
        "--processes",
        "4,2",
        "--cpu-threads",
        "0,1",
        "--hardware-loads",
        "0.5,1",
        "--json",
        str(tmp_path / "q.json"),
    ]
    done = CliRunner().invoke(command, options)
    assert done.exit_code == 0, done.output
    assert seen == [(4, 0, 0.5), (4, 0, 1), (4, 1, 0.5), (2, 0, 0.5), (2, 1, 0.5)]
    assert "- settings / 4 processes, all CPU threads, share 0.5: RuntimeError: no memory" in done.output
    for bad in (["--processes", "4,x"], ["--hardware-loads", "0.5,1.5"], ["--hardware-loads", "half"]):
        assert CliRunner().invoke(command, [*options, *bad]).exit_code == 2


def test_the_decoder_of_a_setting_has_its_share_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(gpu_queue, "GpuDecoder", lambda index, **options: made.append((index, options)))
    device = type("Device", (), {"index": 3})()
    make_parts(Setting(4, 2, 0.75)).decoder(device, 0.1)
    assert made == [(3, {"hardware_load": 0.75, "cpu_threads": 2})]
