"""What a command costs as a process of its own: seconds, CPU seconds, the largest memory it had."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from isicrt.engine.errors import DataError
from isicrt.engine.import_path import import_path

# A small process between: Linux counts into a child's peak what its parent had when it started it, and the parent here
# may have loaded torch. Its own standard output is for the figures.
_LAUNCHER = """
import json, signal, subprocess, sys, time
try:
    import resource
except ImportError:
    resource = None
start = time.perf_counter()
command = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
signal.signal(signal.SIGTERM, lambda *_: command.kill())
try:
    code = command.wait()
finally:
    command.kill()
seconds = time.perf_counter() - start
cpu = peak = None
if resource:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e6 / 1024)
print(json.dumps([code, seconds, cpu, peak]))
"""
_POLL_SECONDS = 0.2

# As isicrt's workers are started: not `-m`, and nothing imported before the path is set, for Python would look for it
# in the current folder first, which may be a stranger's images.
_ISICRT = (
    "import sys; end = 2 + int(sys.argv[1]); sys.path[:] = sys.argv[2:end]; sys.argv[:end] = ['isicrt']; "
    "from isicrt.cli.main import main; main()"
)
_MODULE = (
    "import sys; end = 2 + int(sys.argv[1]); sys.path[:] = sys.argv[2:end]; del sys.argv[:end]; "
    "import runpy; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


@dataclass(frozen=True)
class Usage:
    """Of one command, from its start to its end."""

    seconds: float
    """Start-up included."""
    cpu_seconds: float | None
    """Over all threads; None where the system does not tell."""
    peak_rss_mb: float | None
    """Largest resident memory, 10^6 bytes; None where the system does not tell."""
    gpu_memory_mb: float | None = None
    """Largest rise of the memory in use on all GPUs, 10^6 bytes; None where there is none."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Usage:
        """The inverse of `to_dict`."""
        return cls(**data)


def isicrt_command(*arguments: str) -> list[str]:
    """A command for `run_command`: the isicrt that runs here, with `arguments`."""
    found = import_path()
    return [sys.executable, "-c", _ISICRT, str(len(found)), *found, *arguments]


def module_command(module: str, *arguments: str) -> list[str]:
    """A command for `run_command`: `module` of the isicrt that runs here, as ``python -m`` would run it."""
    found = import_path()
    return [sys.executable, "-c", _MODULE, str(len(found)), *found, module, *arguments]


def run_command(
    command: Sequence[str], *, accept: Sequence[int] = (0,), environment: Mapping[str, str] | None = None
) -> Usage:
    """Run a command to its end.

    Args:
        command: program and arguments.
        accept: exit codes that are no failure.
        environment: all of its variables; None for this process's.

    Raises:
        DataError: it failed; the message has the end of what it said.
    """
    launch = [sys.executable, "-I", "-S", "-c", _LAUNCHER, *command]
    pipe = subprocess.PIPE
    with (
        _GpuMemory() as gpu,
        subprocess.Popen(launch, stdout=pipe, stderr=pipe, text=True, errors="replace", env=environment) as launcher,
    ):
        try:
            figures, said = launcher.communicate()
        except BaseException:
            # It takes the command with it, which would go on writing to a folder that is about to be removed.
            launcher.terminate()
            launcher.wait()
            raise
    try:
        code, seconds, cpu, peak = json.loads(figures)
    except ValueError:
        raise DataError(f"{command[0]}: cannot be run: {said[-2000:].strip()}") from None
    if code not in accept:
        raise DataError(f"{_shown(command)}\nended with exit code {code}: {said[-2000:].strip()}")
    return Usage(seconds, cpu, peak, gpu.rise_mb)


def _shown(command: Sequence[str]) -> str:
    """A command for people, who would type it without where modules are."""
    for code, start in ((_ISICRT, ["isicrt"]), (_MODULE, ["python", "-m"])):
        if list(command[1:3]) == ["-c", code]:
            return " ".join([*start, *command[4 + int(command[3]) :]])
    return " ".join(command)


class _GpuMemory:
    """Asks nvidia-smi now and then. Whole GPUs: in a container processes cannot be told apart."""

    def __init__(self) -> None:
        self._tool = shutil.which("nvidia-smi")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._readings: list[float] = []

    def __enter__(self) -> _GpuMemory:
        self._read()
        if self._readings:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._readings:
            self._thread.join()

    @property
    def rise_mb(self) -> float | None:
        """Largest reading above the first."""
        return max(self._readings) - self._readings[0] if self._readings else None

    def _watch(self) -> None:
        while not self._done.wait(_POLL_SECONDS):
            self._read()

    def _read(self) -> None:
        if self._tool is None:
            return
        query = [self._tool, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        try:
            answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
            self._readings.append(sum(float(line) for line in answer.split()) * 2**20 / 1e6)
        except (OSError, subprocess.SubprocessError, ValueError):
            return
