"""`isicrt doctor`: what is here, what is missing, and how to get it. Needs nothing but a Python with Click."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isicrt._version import __version__

if TYPE_CHECKING:
    from isicrt.engine.cuda_driver import Gpu
    from isicrt.engine.gpu_components import Component

_LITTLE_DISK = 2 * 10**9
_MARKS = {"ok": "ok", "note": "note", "missing": "-", "broken": "BROKEN", "unfit": "UNFIT"}

# Base packages are imported with all that they need, and the model that ships segments an image.
_SEGMENT = """
import json, sys, time
sys.path[:] = {path!r}
import numpy, cv2, PIL, simplejpeg
from isicrt.engine.silent_imports import import_onnxruntime
onnxruntime = import_onnxruntime()
from importlib.metadata import version
import isal, rich
from isicrt.engine.exact_sums import sums_are_exact
from isicrt.engine.pipeline import available_cores
from isicrt.engine.segmenter import Segmenter
with Segmenter() as segmenter:
    image = numpy.full((96, 128, 3), 200, numpy.uint8)
    image[30:60, 40:90] = 60
    started = time.perf_counter()
    mask = segmenter.segment(image)
    seconds = time.perf_counter() - started
    assert mask.shape == (96, 128) and mask.dtype == numpy.uint8
    name, runtime = segmenter.card.name, segmenter.runtime.name
packages = {{"numpy": numpy.__version__, "opencv": cv2.__version__, "pillow": PIL.__version__}}
packages.update({{p: version(p) for p in ("simplejpeg", "isal", "rich", "click")}})
print("\\n" + json.dumps({{
    "packages": packages, "model": name, "runtime": runtime, "seconds": seconds, "cores": available_cores(),
    "exact": sums_are_exact(),
    "onnxruntime": onnxruntime.__version__, "providers": onnxruntime.get_available_providers(),
}}))
"""


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Say what this machine has, what is missing and how to get it.

    Nothing is changed. Each package is imported in a process of its own, so that a broken one is found and not
    suffered. The exit code is 0 if `isicrt segment` runs here, on whatever hardware, and 1 if it does not.
    """
    from isicrt.engine.gpu_components import describe_compiler, describe_driver, judge, probe_all

    gpus = find_gpus()
    base = [*check_segment(), check_disk(Path())]
    parts = judge([describe_driver(gpus), *probe_all(), describe_compiler()], gpus)
    can = abilities(base, parts)
    if as_json:
        report = {
            "format": 1,
            "isicrt": __version__,
            "python": platform.python_version(),
            "system": platform.platform(),
            "can": can,
            "components": [component.to_dict() for component in (*base, *parts)],
        }
        click.echo(json.dumps(report, indent=1))
    else:
        click.echo(f"isicrt {__version__}, Python {platform.python_version()}, {platform.platform()}\n")
        _print("To segment", base)
        _print("To train, to build plans, and to run on a GPU", parts)
        for line in verdict(can):
            click.echo(line)
    if not can["segment"]:
        ctx.exit(1)


def find_gpus() -> list[Gpu]:
    """All GPUs that the driver sees."""
    from isicrt.engine.cuda_driver import find_gpu

    gpus: list[Gpu] = []
    while (gpu := find_gpu(len(gpus))) is not None:
        gpus.append(gpu)
    return gpus


def check_segment() -> list[Component]:
    """Base packages, ONNX Runtime, a real image through the model that ships, and the cores; in its own process."""
    from isicrt.engine.gpu_components import Component, run_python

    found, problem = run_python(_SEGMENT.format(path=sys.path))
    if found is None:
        advice = "pip install --force-reinstall . in isicrt's repository"
        return [Component("segmenting", "broken", detail=problem, advice=advice), describe_cores(None)]
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in found["providers"])
    model = f"{found['model']} on {found['runtime']}: first image, with loading, in {found['seconds'] * 1e3:.0f} ms"
    return [
        Component("base packages", "ok", detail=packages),
        Component("ONNX Runtime", "ok", found["onnxruntime"], detail=f"providers: {providers}; isicrt uses CPU"),
        Component("shipped model", "ok", detail=model),
        describe_cores(found["cores"], exact=found["exact"]),
    ]


def describe_cores(usable: int | None, *, exact: bool = True) -> Component:
    """CPU cores that this process may use; None where that could not be found out. `exact`: see `sums_are_exact`."""
    from isicrt.engine.gpu_components import Component

    there = os.cpu_count() or 1
    known = usable is not None and usable != there
    detail = f"{usable} usable of {there}: affinity or container" if known else f"{there} usable"
    if not exact:
        detail += "; without VNNI, so 8-bit models run on ONNX Runtime and take about as long as float32"
    return Component("CPU cores", "ok", detail=detail)


def check_disk(folder: Path) -> Component:
    """Free space where the masks would go."""
    from isicrt.engine.gpu_components import Component

    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Component("disk", "note", detail=f"{folder.absolute()}: {error.strerror}")
    text = f"{free / 1e9:.1f} GB free in the current folder"
    if free < _LITTLE_DISK:
        return Component("disk", "note", detail=text, advice="a mask takes about 3 kB, a data set 1 GB")
    return Component("disk", "ok", detail=text)


def abilities(base: list[Component], parts: list[Component]) -> dict[str, Any]:
    """What can be done here."""
    usable = {component.name for component in (*base, *parts) if component.usable}
    gpu = "NVIDIA driver" in usable
    flavours = {"TensorRT": "tensorrt", "TensorRT for RTX": "tensorrt-rtx"}
    run_plans = [key for name, key in flavours.items() if {name, "PyCUDA"} <= usable and gpu]
    # TensorRT for RTX builds for others' GPUs too: one that does not fit this one's, or its driver, still builds.
    builders = usable | {part.name for part in parts if part.name == "TensorRT for RTX" and part.status == "unfit"}
    # Training on the CPU asks no driver for anything: what was built for a newer CUDA serves there too.
    trains = {"PyTorch", "ONNX", "DALI"} <= usable | {
        part.name for part in parts if part.name in ("PyTorch", "DALI") and part.status == "unfit"
    }
    torch_sees_gpu = any(part.sees_gpu for part in parts if part.name == "PyTorch")
    decoders = [component for component in parts if component.name == "nvImageCodec" and component.usable]
    return {
        "segment": "shipped model" in usable,
        "run_plans": run_plans,
        "decode_on_gpu": bool(run_plans) and any("without libnvjpeg" not in part.detail for part in decoders),
        "build_plans": [
            key for name, key in flavours.items() if {name, "ONNX"} <= builders and (gpu or key == "tensorrt-rtx")
        ],
        "train": trains,
        "train_on_gpu": trains and {"PyTorch", "DALI"} <= usable and torch_sees_gpu,
    }


def verdict(can: dict[str, Any]) -> list[str]:
    """The same for people."""
    where = "on the GPU too" if can["run_plans"] else "on the CPU"
    run, built = " and ".join(can["run_plans"]), " and ".join(can["build_plans"])
    without = "no (needs an NVIDIA GPU and the extra gpu, or rtx and PyCUDA)"
    decoded = "there" if can["decode_on_gpu"] else "on the CPU (for the GPU: nvImageCodec and libnvjpeg)"
    return [
        f"isicrt segment: yes, {where}" if can["segment"] else "isicrt segment: NO, see what is broken above",
        f"  with a plan: {f'yes, of {run}, images decoded {decoded}' if run else without}",
        f"isicrt build-engine: {f'ONNX and plans of {built}' if built else 'no plans (extras gpu, rtx)'}",
        f"isicrt train: {_trains(can)}",
    ]


def _trains(can: dict[str, Any]) -> str:
    if not can["train"]:
        return "no (extra train)"
    return "yes, on the GPU" if can["train_on_gpu"] else "yes, on the CPU, which takes hours"


def _print(title: str, components: list[Component]) -> None:
    click.echo(f"{title}:")
    for component in components:
        cuda = f"(CUDA {component.cuda})" if component.cuda else ""
        parts = [part for part in (component.version, cuda, component.detail) if part]
        click.echo(f"  {_MARKS[component.status]:7} {component.name:17} {' '.join(parts)}")
        if component.advice:
            click.echo(f"{'':28}-> {component.advice}")
    click.echo()
