"""What a figure was measured on: software versions, processor, operating system, GPU."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from isicrt.engine.model_identity import file_sha256
from isicrt.engine.pipeline import available_cores
from isicrt.engine.runtime import CPU_RUNTIME_VARIABLE

_PACKAGES = (
    "isicrt",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "opencv-python-headless",
    "opencv-python",
    "simplejpeg",
    "isal",
    "pillow",
    "cykooz-resizer",
    "nvidia-dali-cuda130",
    "torch",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
    "pycuda",
)


def recorded_command(words: Sequence[str]) -> str:
    """A command as a shell takes it, with the variable before it that chose the runtime, if one did."""
    chosen = os.environ.get(CPU_RUNTIME_VARIABLE)
    return (f"{CPU_RUNTIME_VARIABLE}={shlex.quote(chosen)} " if chosen else "") + shlex.join(words)


@dataclass(frozen=True)
class Environment:
    """The machine and the software."""

    versions: Mapping[str, str]
    """Of Python and of the packages that are installed."""
    cpu: str
    cores: int
    """That this process may use."""
    os: str
    gpus: tuple[str, ...]
    """Name, driver and memory of each, as nvidia-smi says; empty where there is none."""
    load_average: float | None
    """Of the minute before the start: other work that disturbs the figures."""

    @property
    def busy(self) -> str | None:
        """That other programs had more than half of the cores before the start, in words; None where they had not."""
        if self.load_average is None or self.load_average <= self.cores / 2:
            return None
        return f"the machine was busy before the start: load average {self.load_average:.1f} on {self.cores} cores"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self) | {"gpus": list(self.gpus)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Environment:
        """The inverse of `to_dict`."""
        return cls(**{**data, "gpus": tuple(data["gpus"])})


def read_environment() -> Environment:
    """Look at this machine. Nothing is raised where something cannot be read; it is left out."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Environment(
        versions=versions,
        cpu=_cpu(),
        cores=available_cores(),
        os=platform.platform(),
        gpus=_gpus(),
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def provenance(*files: Path | None) -> dict[str, Any]:
    """When it was measured, and of which files: the date and each one's name and SHA-256, as plain JSON types."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "files": [{"name": file.name, "sha256": file_sha256(file)} for file in files if file is not None],
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _gpus() -> tuple[str, ...]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in answer.splitlines() if line.strip())
