"""`isicrt check-parity` with torch in TensorRT's place: are the masks of the GPU's way those of the CPU?

    python -m isicrt.benchmarks.gpu_parity model.onnx --images DIR --masks DIR --json parity.json

Decoding on the GPU, its kernels, half precision and the packed masks are compared with ONNX Runtime and Pillow, by the
limits of `isicrt check-parity`. What it says nothing about is TensorRT.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from isicrt._command import ModuleCommand
from isicrt.benchmarks.agreement import Agreement, Limits, cpu_masker, measure_agreement
from isicrt.benchmarks.environment import provenance, read_environment, recorded_command
from isicrt.benchmarks.gpu_alone import GpuParts, opened_chain
from isicrt.benchmarks.gpu_torch import open_torch
from isicrt.benchmarks.result_file import check_places, write_whole
from isicrt.benchmarks.workload import open_workload
from isicrt.engine.errors import DataError, ModelError
from isicrt.engine.runtime import open_runtime

LARGEST = 64
"""Batch."""


def compare(
    model: Path, images: Path, masks: Path | None, open_engine: Callable[[], Any], parts: GpuParts
) -> tuple[Agreement, dict[str, Any]]:
    """Masks of the CPU's way against those of the GPU's.

    Args:
        model: an ONNX file.
        images: a folder.
        masks: its ground truth.
        open_engine: the runtime of the chain.
        parts: of the chain.

    Returns:
        The agreement, and where the GPU's way decoded.

    Raises:
        DataError: no image could be compared, or none of the masks fits one.
        ModelError: the GPU decoded no image.
    """
    with tempfile.TemporaryDirectory() as folder:
        workload = open_workload(images, masks, Path(folder))
    with open_runtime(model) as cpu, open_engine() as engine, opened_chain(engine, parts) as chain:
        agreement = measure_agreement(
            cpu_masker(cpu),
            chain.masks_of,
            workload.files,
            workload.names,
            dict(workload.truths),
            chunk=engine.max_batch,
        )
        decoded = chain.decoded
        name = engine.name
    if masks is not None and agreement.scores is None:
        raise DataError(f"{masks}: has no ground truth that fits the images compared")
    if not decoded.gpu:
        raise ModelError(f"{name}: the GPU decoded none of the images, so nothing of its way was compared")
    return agreement, {"engine": name, "gpu": decoded.gpu, "cpu": decoded.cpu, "refused": decoded.refused}


SCHEMA = "isicrt-gpu-parity/1"


@click.command(cls=ModuleCommand)
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--masks", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), required=True)
def command(model: Path, images: Path, masks: Path | None, json_file: Path) -> None:
    """Compare MODEL on ONNX Runtime with the same network on the GPU, by torch. The exit code is 1 if they differ."""
    check_places(json_file)
    agreement, decoded = compare(model, images, masks, lambda: open_torch(model, LARGEST), GpuParts())
    problems = agreement.problems(Limits())
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "command": recorded_command(["python", "-m", "isicrt.benchmarks.gpu_parity", *sys.argv[1:]]),
        **provenance(model),
        "environment": read_environment().to_dict(),
        "model": model.name,
        **decoded,
        "problems": problems,
    }
    change = "not measured" if agreement.change is None else f"{agreement.change:+.5f}"
    line = f"{decoded}; mean Jaccard index of the masks {agreement.jaccard_mean:.5f}, change of the score {change}"
    try:
        write_whole(json_file, json.dumps({**found, **agreement.to_dict()}, indent=1) + "\n")
    finally:  # nothing is lost where the file cannot be written
        click.echo(line)
    if problems:
        raise click.ClickException("; ".join(problems))


if __name__ == "__main__":
    command()
