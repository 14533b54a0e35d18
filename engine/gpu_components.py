"""Which parts of the software are here, in which version, and whether they fit each other.

Everything heavy is imported in a process of its own: a library that is half there may hang or crash where it is
imported, and what it says then is the finding.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from typing import Any

from isicrt.engine.cuda_driver import Gpu, driver_library, driver_problem
from isicrt.engine.errors import install_line
from isicrt.engine.tensorrt_api import OLDEST_TENSORRT

IMPORT_SECONDS = 120.0
"""After that a library that is being imported counts as broken: torch takes 10 s from a cold disk."""
_SHOWN = 300
_OLDEST_OF_TENSORRT = 7.5
"""Compute capability."""


@dataclass(frozen=True)
class Component:
    """One part of the software and what was found."""

    name: str
    status: str
    """``ok`` or ``missing``. ``note``: works, but see `detail`. ``broken``: there, but cannot be imported. ``unfit``:
    does not fit what else is here."""
    version: str | None = None
    cuda: str | None = None
    """CUDA that it was built for, or that the driver serves: ``"13.0"`` or ``"13"``."""
    detail: str = ""
    advice: str = ""
    """What to do about it; empty where nothing is to be done."""
    capabilities: tuple[str, ...] = ()
    """Compute capabilities of the GPUs that it runs on, as ``"8.9"``; empty where it does not say."""
    sees_gpu: bool | None = None
    """Whether it would use a GPU here; None where it was not asked."""

    @property
    def usable(self) -> bool:
        """Whether work can be done with it."""
        return self.status in ("ok", "note")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Probe:
    """How a package is looked at."""

    name: str
    module: str
    """What is imported."""
    extra: str
    """Of isicrt that installs it; empty for a base dependency."""
    report: str
    """Python that sets ``version``, and ``cuda``, ``detail``, ``capabilities`` and ``sees_gpu`` if it likes; the module
    is bound to ``m``."""
    wheel: str = ""
    """Regular expression for the distributions whose name says the CUDA that they were built for."""


_VERSION = "version = m.__version__"
PROBES = (
    Probe(
        "PyTorch",
        "torch",
        "train",
        f"{_VERSION}; cuda = m.version.cuda; sees_gpu = m.cuda.is_available()\n"
        "detail = 'sees the GPU' if sees_gpu else 'sees no GPU' if cuda else 'built for CPUs only'",
    ),
    Probe("ONNX", "onnx", "train", _VERSION),
    Probe("DALI", "nvidia.dali", "gpu", _VERSION, r"nvidia-dali-cuda(\d\d)\d"),
    Probe(
        "nvImageCodec",
        "nvidia.nvimgcodec",
        "gpu",
        # Its extension for JPEG looks there; it says nothing until every image has failed.
        f"{_VERSION}; import ctypes, glob, os\n"
        "here = os.path.dirname(m.__file__)\n"
        "found = glob.glob(os.path.join(here, '..', '*', 'lib', 'libnvjpeg.so*'))\n"
        "if not found and not glob.glob('/usr/local/cuda/lib64/libnvjpeg.so*'):\n"
        "    try: ctypes.CDLL(f'libnvjpeg.so.{int(m.__cuda_version__) // 1000}')\n"
        "    except Exception: detail = 'without libnvjpeg: no JPEG on the GPU (wheel nvidia-nvjpeg)'",
        r"nvidia-nvimgcodec-cu(\d+)",
    ),
    Probe("TensorRT", "tensorrt", "gpu", f"m.Builder; {_VERSION}", r"tensorrt-cu(\d+)(?:-bindings|-libs)?"),
    Probe(
        "TensorRT for RTX",
        "tensorrt_rtx|tensorrt_rtx_bindings",
        "rtx",
        f"m.Builder; {_VERSION}\n"
        "if hasattr(m, 'ComputeCapability'):\n"
        "    from isicrt.engine.tensorrt_api import TensorRt, known_capabilities\n"
        "    known = known_capabilities(TensorRt('tensorrt-rtx', m, version))\n"
        "    capabilities = [name for name in known if name != 'current']",
        r"tensorrt-rtx-cu(\d+)(?:-bindings|-libs)?",
    ),
    Probe(
        "PyCUDA",
        "pycuda.driver",
        "gpu",
        "import pycuda; version = pycuda.VERSION_TEXT; cuda = '.'.join(map(str, m.get_version()[:2]))",
    ),
)

# `sys.path` is this process's: with -c Python would put the current folder in front, where a file may be called torch.
_SCRIPT = """
import importlib, json, sys, warnings
sys.path[:] = {path!r}
warnings.simplefilter("ignore")
version = cuda = sees_gpu = None
detail, absent, capabilities, m = "", [], [], None
for name in {modules!r}:
    try:
        m = importlib.import_module(name)
        break
    except ModuleNotFoundError as error:
        if not (name + ".").startswith((error.name or "?") + "."):
            raise
        absent.append(name)
if m is None:
    found = {{"absent": absent}}
else:
{report}
    found = {{"version": str(version), "cuda": cuda, "detail": detail, "capabilities": capabilities}}
    found["sees_gpu"] = sees_gpu
print("\\n" + json.dumps(found))
"""


def run_python(code: str, seconds: float = IMPORT_SECONDS) -> tuple[dict[str, Any] | None, str]:
    """Run Python in a process of its own.

    Args:
        code: prints a JSON object as its last line.
        seconds: it is ended then.

    Returns:
        The object, or None and what went wrong in one line.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, errors="replace", timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return None, f"did not answer within {seconds:g} s"
    except OSError as error:
        return None, f"Python could not be started: {error}"
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name if -done.returncode in set(signal.Signals) else -done.returncode
        return None, f"crashed ({name})"
    last = (done.stdout.strip().splitlines() or [""])[-1]
    try:
        answer = json.loads(last) if done.returncode == 0 else None
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        return answer, ""
    said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return None, said[:_SHOWN]


def probe(wanted: Probe, distributions: Iterable[str] = (), *, path: Sequence[str] | None = None) -> Component:
    """Look at one package.

    Args:
        wanted: which.
        distributions: names of what is installed, normalised.
        path: `sys.path` of the process that imports it; None for this one's.
    """
    code = _SCRIPT.format(
        path=list(sys.path if path is None else path),
        modules=wanted.module.split("|"),
        report="\n".join(f"    {line}" for line in wanted.report.splitlines()),
    )
    install = install_line(wanted.extra) if wanted.extra else "pip install --force-reinstall . in isicrt's repository"
    found, problem = run_python(code)
    if found is None:
        return Component(wanted.name, "broken", detail=problem, advice=install)
    if "absent" in found:
        return Component(wanted.name, "missing", detail="not installed", advice=install)
    cuda = found["cuda"] or _wheel_cuda(wanted, distributions)
    return Component(
        wanted.name,
        "ok",
        found["version"],
        cuda,
        found["detail"],
        capabilities=tuple(found["capabilities"]),
        sees_gpu=found["sees_gpu"],
    )


def _wheel_cuda(wanted: Probe, distributions: Iterable[str]) -> str | None:
    matches = (re.fullmatch(wanted.wheel, name) for name in distributions if wanted.wheel)
    return next((match[1] for match in matches if match), None)


def installed_distributions() -> list[str]:
    """Names of the installed packages, lower case with dashes. Damaged metadata is passed over."""
    names = (distribution.metadata["Name"] for distribution in metadata.distributions())
    return sorted({re.sub(r"[-_.]+", "-", name).lower() for name in names if name})


def probe_all() -> list[Component]:
    """Look at everything in `PROBES`, several at a time."""
    names = installed_distributions()
    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(lambda wanted: probe(wanted, names), PROBES))


def describe_driver(gpus: Sequence[Gpu]) -> Component:
    """The driver and its GPUs."""
    if gpus:
        names = ", ".join(f"{gpu.name} (compute capability {gpu.compute_capability})" for gpu in gpus)
        return Component("NVIDIA driver", "ok", gpus[0].driver or None, gpus[0].cuda, names)
    try:
        driver_library()
    except OSError:
        return Component("NVIDIA driver", "missing", detail="no GPU driver: everything runs on the CPU")
    return Component(
        "NVIDIA driver",
        "broken",
        detail="its library is here but finds no GPU" + (f" ({problem})" if (problem := driver_problem()) else ""),
        advice="see what nvidia-smi says; in a container, start it with the GPU (--gpus all)",
    )


def describe_compiler() -> Component:
    """NVIDIA's compiler: PyCUDA is installed with it, and restores masks on the GPU through it."""
    path = shutil.which("nvcc")
    if path is None:
        return Component("nvcc", "missing", detail="not on the PATH", advice="install the CUDA toolkit")
    try:
        text = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Component("nvcc", "broken", detail=f"{path}: {error}", advice="install the CUDA toolkit again")
    release = re.search(r"release (\d+\.\d+), V([\d.]+)", text)
    if release is None:
        return Component("nvcc", "broken", detail=f"{path} does not say its version", advice="install the CUDA toolkit")
    return Component("nvcc", "ok", release[2], release[1], path)


def judge(components: Sequence[Component], gpus: Sequence[Gpu]) -> list[Component]:
    """The same components, with those that do not fit the driver, the GPU or each other marked as such."""
    served = gpus[0].cuda if gpus else None
    majors = {c.name: _major(c.cuda) for c in components if c.cuda and c.usable and c.name != "NVIDIA driver"}
    judged = []
    for component in components:
        own = majors.get(component.name)
        if component.name == "TensorRT" and component.version and _too_old(component.version):
            oldest = ".".join(map(str, OLDEST_TENSORRT))
            component = replace(
                component,
                status="unfit",
                detail=f"isicrt needs {oldest} or newer",
                advice=install_line("gpu"),
            )
        elif own is not None and served is not None and own > _major(served):
            component = replace(
                component,
                status="unfit",
                detail=f"built for CUDA {own}, but the driver serves CUDA {served} and older",
                advice=f"install a driver for CUDA {own}, or the packages for CUDA {_major(served)}",
            )
        elif component.sees_gpu is False and not component.cuda and gpus:
            advice = f"to train on the GPU: one that is built for CUDA {_major(gpus[0].cuda)} or older"
            component = replace(component, status="note", advice=advice)
        elif own is not None and (others := _others(majors, component.name, own)):
            component = replace(
                component, status="note", detail=_joined(component.detail, f"built for CUDA {own}, but {others}")
            )
        elif component.name == "PyCUDA" and component.status == "broken" and not gpus:
            component = replace(
                component,
                detail=_joined(component.detail, "it can be imported only where there is a driver"),
                advice="",
            )
        elif component.name == "TensorRT for RTX" and component.usable and gpus:
            component = _judge_rtx(component, gpus[0])
        judged.append(component)
    return judged


def _judge_rtx(component: Component, gpu: Gpu) -> Component:
    """By what the installed version knows: on an H200 (9.0) it refused every plan, whatever it was built for."""
    here = gpu.compute_capability
    if not component.capabilities or here in component.capabilities:
        return component
    detail = f"runs on compute capability {', '.join(component.capabilities)}; this GPU has {here}"
    advice = f"for this GPU rather: {install_line('gpu')}" if float(here) >= _OLDEST_OF_TENSORRT else ""
    return replace(component, status="unfit", detail=detail, advice=advice)


def _others(majors: dict[str, int], name: str, own: int) -> str:
    """Who else was built for another CUDA, said only at the few: those that differ from most."""
    counts = sorted(majors.values())
    usual = max(set(counts), key=lambda major: (counts.count(major), major), default=own)
    if own == usual:
        return ""
    return f"{', '.join(other for other, major in majors.items() if major == usual)} for CUDA {usual}"


def _major(cuda: str) -> int:
    return int(cuda.split(".")[0])


def _too_old(version: str) -> bool:
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    return numbers < OLDEST_TENSORRT


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
