from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from isicrt.benchmarks.process import Usage, isicrt_command, module_command, run_command
from isicrt.engine.errors import DataError

HOLD = "import time; held = bytearray({mb} * 1_000_000); held[::4096] = b'x' * len(held[::4096]); print('said')"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell a child's peak")
def test_the_peak_is_the_commands_own() -> None:
    mine = bytearray(300_000_000)
    mine[::4096] = b"x" * len(mine[::4096])
    small = run_command([sys.executable, "-S", "-c", HOLD.format(mb=1)])
    large = run_command([sys.executable, "-S", "-c", HOLD.format(mb=200)])
    assert small.peak_rss_mb is not None
    assert large.peak_rss_mb is not None
    # 300 MB are held by this process, which a child would inherit if it were started from here.
    assert small.peak_rss_mb < 100
    assert 190 < large.peak_rss_mb - small.peak_rss_mb < 215
    assert small.cpu_seconds is not None
    assert small.cpu_seconds > 0
    assert small.seconds > 0
    assert Usage.from_dict(small.to_dict()) == small


def test_isicrt_as_a_command_takes_no_module_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("click", "json", "isicrt"):
        (tmp_path / f"{name}.py").write_text("import sys; sys.exit('a stranger')")
    monkeypatch.chdir(tmp_path)
    assert run_command(isicrt_command("segment", "--help")).seconds > 0
    assert run_command(module_command("isicrt.benchmarks.plain_unet", "--help")).seconds > 0
    with pytest.raises(DataError, match=r"^python -m isicrt\.benchmarks\.plain_unet --two words\n.*exit code 2:"):
        run_command(module_command("isicrt.benchmarks.plain_unet", "--two words"))
    with pytest.raises(DataError, match=r"^isicrt two words\n.*exit code 2:[^$]*No such command 'two words'"):
        run_command(isicrt_command("two words"))


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one process alone")
def test_who_is_interrupted_takes_the_command_with_it(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    command = f"import os, pathlib, time; pathlib.Path({str(note)!r}).write_text(str(os.getpid())); time.sleep(300)"
    code = f"run_command([sys.executable, '-c', {command!r}])"
    code = f"import sys; from isicrt.benchmarks.process import run_command; {code}"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=subprocess.PIPE,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        while not (note.exists() and note.read_text()):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in said
    pid = int(note.read_text())
    if runs := _runs(pid):
        os.kill(pid, signal.SIGKILL)
    assert not runs


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie that nobody has buried yet."""
    said = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(said) and not said.startswith("Z")


def test_a_command_that_fails() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('it is broken')"]
    with pytest.raises(DataError, match=r"ended with exit code 1: it is broken"):
        run_command(command)
    assert run_command(command, accept=(0, 1)).seconds > 0
    with pytest.raises(DataError, match="no-such-program: cannot be run"):
        run_command(["no-such-program"])


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ("100\n50\n", 0.0),
        ("[N/A]\n", None),
    ],
)
def test_gpu_memory_is_what_nvidia_smi_says(
    answers: str, expected: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{answers}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert run_command([sys.executable, "-c", "pass"]).gpu_memory_mb == expected


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
def test_gpu_memory_is_the_largest_rise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool, count = tmp_path / "nvidia-smi", tmp_path / "count"
    # 100 MiB at first, 1100 MiB at the second time, 100 MiB from then on.
    tool.write_text(f"#!/bin/sh\necho x >> {count}\n[ $(wc -l < {count}) = 2 ] && echo 1100 || echo 100\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    wait = f"import os, time\nwhile os.path.getsize({str(count)!r}) < 6: time.sleep(0.05)"
    assert run_command([sys.executable, "-c", wait]).gpu_memory_mb == pytest.approx(1000 * 2**20 / 1e6)
