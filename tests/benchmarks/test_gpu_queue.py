"""What a run waits for, with the CPU in the GPU's place."""

from __future__ import annotations

import subprocess
import sys
import threading
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
    assert clock.take(1) == {"wall_ms": 0, "cpu_ms": 0}
    assert clock.thread == threading.get_native_id()


@pytest.mark.skipif(not unserved_seconds(), reason="this kernel does not tell how long threads wait for a core")
def test_threads_that_wait_for_a_core() -> None:
    """Two threads of one process, kept on one core, which each compute without Python's lock."""
    code = (
        "import hashlib, os, threading, time\n"
        "from isicrt.benchmarks.gpu_queue import unserved_seconds\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "data = bytes(50_000_000)\n"
        "threading.Thread(target=lambda: [hashlib.sha256(data) for _ in range(1000)], daemon=True).start()\n"
        "own, before, start = threading.get_native_id(), unserved_seconds(), time.perf_counter()\n"
        "for _ in range(5):\n"
        "    hashlib.sha256(data)\n"
        "wall, after = time.perf_counter() - start, unserved_seconds()\n"
        "assert len(after) >= 2\n"
        "print((after[own] - before[own]) / wall, flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 0.2


def test_a_kernel_that_does_not_tell(tmp_path: Path) -> None:
    assert unserved_seconds(tmp_path / "none") == {}
    for thread, text in (("7", "5 2500000000 7\n"), ("8", ""), ("9", None)):
        (tmp_path / thread).mkdir()
        if text is not None:
            (tmp_path / thread / "schedstat").write_text(text)
    assert unserved_seconds(tmp_path) == {7: 2.5}


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
        assert found[part]["process_cpu_ms"]["user"] > 0
        assert set(found[part]["unserved_ms"]) == {"chain", "process"}
    alone = found["alone"]["unserved_ms"]
    assert (alone["chain"] is None) == (not unserved_seconds())
    if alone["chain"] is not None:
        assert 0 <= alone["chain"] <= alone["process"]
    report = {"settings": {"0 processes, 1 CPU threads": {"result": found}}, "notes": ["cut short"]}
    head, rule, row, note = to_markdown(report).splitlines()
    assert row.startswith("| 0 processes, 1 CPU threads |")
    assert row.count("|") == head.count("|") == rule.count("|") == 13
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
