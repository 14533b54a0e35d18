"""How near each stage is to what this machine can do at all.

    python -m isicrt.benchmarks.ceilings --images DIR --json ceilings.json

Beside each stage of an image stands the least work that no implementation can leave out, done by the fastest code at
hand on one thread:

- decode: the file's entropy coding, all of which must be read: libjpeg-turbo at an eighth of the size, in grey. Files
  that are not JPEG are left out of all stages;
- infer: the network's multiply-accumulates, at the rate of ONNX Runtime's product of two large matrices: uint8 x int8
  for an int8 model, else float32;
- restore: one pass over the mask's pixels: to fill memory that is there already;
- write: the same bytes into a new file, in one call.

A stage at its ceiling has a share of 1. Caches, latencies and everything that is not a multiplication are in none of
the ceilings, so they are bounds and not goals.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import simplejpeg

from isicrt._command import ModuleCommand, NamedPath
from isicrt.benchmarks.environment import provenance, read_environment, recorded_command
from isicrt.benchmarks.macs import count_macs, load_graph
from isicrt.benchmarks.result_file import check_places, write_whole
from isicrt.benchmarks.stages import stage_pass
from isicrt.engine import shipped
from isicrt.engine.errors import DataError
from isicrt.engine.images import decode_image
from isicrt.engine.masks import encode_png, restore_window
from isicrt.engine.pipeline import STAGES
from isicrt.engine.runtime import Runtime, open_runtime
from isicrt.engine.silent_imports import import_onnxruntime
from isicrt.engine.sources import find_jobs

SCHEMA = "isicrt-ceilings/1"
SIDE = 1024
"""Of the square matrices whose product is the ceiling of arithmetic."""
REPEATS = 5
_JPEG = (".jpg", ".jpeg")


@dataclass(frozen=True)
class Ceiling:
    """One stage."""

    stage: str
    cpu_ms: float
    """CPU milliseconds an image; medians, as all of these."""
    floor_ms: float
    """The same of the work that cannot be left out."""

    @property
    def share(self) -> float:
        """Of the stage's time that is such work, 0..1."""
        return self.floor_ms / self.cpu_ms


@dataclass(frozen=True)
class Arithmetic:
    """Of one thread."""

    gmac: float
    """10^9 multiply-accumulates of the network for an image."""
    gmac_per_second: float
    """Of the large product."""


def measure(
    images: Sequence[Path], model: Path, *, repeats: int = REPEATS, batch_size: int = 8
) -> tuple[list[Ceiling], Arithmetic]:
    """Measure all stages and their ceilings, in turn, `repeats` times.

    Args:
        images: JPEG files that can be decoded.
        model: an ``.onnx`` file.
        repeats: the result has their medians.
        batch_size: of the network's calls.

    Raises:
        DataError: no images.
        ModelError: not a model.
    """
    if not images:
        raise DataError("no JPEG files: the ceiling of decoding is known for these only")
    with open_runtime(model, threads=1) as runtime, tempfile.TemporaryDirectory(prefix="isicrt-ceilings-") as name:
        gmac = count_macs(load_graph(model)) / 1e9
        product = _product(runtime.card.precision)
        files = [path.read_bytes() for path in images]
        sizes, pngs = _masks(images, runtime)
        pixels = np.ones(max(height * width for height, width in sizes), np.uint8)
        floors: dict[str, Callable[[int], object]] = {
            "decode": lambda n: simplejpeg.decode_jpeg(files[n], "Gray", min_height=1, min_width=1),
            "restore": lambda n: pixels[: sizes[n][0] * sizes[n][1]].fill(1),
            "write": lambda n: _write(Path(name) / f"floor-{repeat}-{n}", pngs[n]),
        }
        taken: dict[str, list[float]] = {stage: [] for stage in STAGES}
        least: dict[str, list[float]] = {stage: [] for stage in STAGES}
        rates = []
        stage_pass(images[:batch_size], runtime, batch_size, _folder(name, "warm-up"))
        product()
        for repeat in range(repeats):
            cpu_ms = stage_pass(images, runtime, batch_size, _folder(name, f"masks-{repeat}")).cpu_ms
            rates.append(SIDE**3 / _cpu_seconds(product) / 1e9)
            least["infer"].append(gmac / rates[-1] * 1e3)
            for stage, work in floors.items():
                seconds = _cpu_seconds(lambda work=work: [work(n) for n in range(len(images))])  # type: ignore[misc]
                least[stage].append(seconds / len(images) * 1e3)
            for stage in STAGES:
                taken[stage].append(cpu_ms[stage])
    found = [Ceiling(s, float(np.median(taken[s])), float(np.median(least[s]))) for s in STAGES]
    return found, Arithmetic(gmac, float(np.median(rates)))


def _folder(parent: str, name: str) -> Path:
    folder = Path(parent) / name
    folder.mkdir()
    return folder


def _cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _masks(images: Sequence[Path], runtime: Runtime) -> tuple[list[tuple[int, int]], list[bytes]]:
    """The sizes of the masks and their files."""
    card = runtime.card
    sizes, pngs = [], []
    for path in images:
        decoded = decode_image(path, card.input_size)
        (probability,) = runtime.infer(decoded.pixels[None])
        mask = restore_window(probability, decoded.native_size, threshold=0.5, keep_largest=True, fill_holes=True)
        sizes.append(decoded.native_size)
        pngs.append(encode_png(mask))
    return sizes, pngs


def _write(path: Path, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        os.write(file, data)
    finally:
        os.close(file)


def _product(precision: str) -> Callable[[], object]:
    """The product of two large matrices by ONNX Runtime, on one thread."""
    from onnx import TensorProto, helper

    onnxruntime = import_onnxruntime()
    rng = np.random.default_rng(0)
    shape = [SIDE, SIDE]
    if precision == "int8":
        kinds, operator = (TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32), "MatMulInteger"
        a: Any = rng.integers(0, 128, shape, np.uint8)
        b: Any = rng.integers(-64, 64, shape, np.int8)
    else:
        kinds, operator = (TensorProto.FLOAT,) * 3, "MatMul"
        a, b = rng.random(shape, np.float32), rng.random(shape, np.float32)
    sides = [helper.make_tensor_value_info(name, kind, shape) for name, kind in zip("abc", kinds, strict=True)]
    graph = helper.make_graph([helper.make_node(operator, ["a", "b"], ["c"])], "product", sides[:2], sides[2:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": a, "b": b})


def to_dict(found: Sequence[Ceiling], arithmetic: Arithmetic, **facts: Any) -> dict[str, Any]:
    """Plain JSON types; ``schema`` first."""
    return {
        "schema": SCHEMA,
        **facts,
        "arithmetic": asdict(arithmetic),
        "stages": {c.stage: {"cpu_ms": c.cpu_ms, "floor_ms": c.floor_ms, "share": c.share} for c in found},
    }


@click.command(cls=ModuleCommand)
@click.option("--images", required=True, type=NamedPath(exists=True, path_type=Path), help="Folder of JPEG files.")
@click.option("--model", default=None, help="An .onnx file or a shipped model's name. [default: the shipped model]")
@click.option("--limit", type=click.IntRange(min=1), default=64, show_default=True, help="Images, at most.")
@click.option("--json", "json_file", type=NamedPath(dir_okay=False, path_type=Path))
def main(images: Path, model: str | None, limit: int, json_file: Path | None) -> None:
    """Measure how near each stage is to what this machine can do."""
    check_places(json_file)
    environment = read_environment()  # its load average is of other work only before the first pass
    photographs = find_jobs(images, Path(tempfile.gettempdir())).images
    files = [image for image in photographs if image.suffix.lower() in _JPEG]
    chosen = files[:: max(1, len(files) // limit)][:limit]
    path = shipped.resolve(model)
    found, arithmetic = measure(chosen, path)
    facts = {
        "command": recorded_command(["python", "-m", "isicrt.benchmarks.ceilings", *sys.argv[1:]]),
        **provenance(path),
        "environment": environment.to_dict(),
        "model": path.name,
        "images": len(chosen),
    }
    try:
        write_whole(json_file, json.dumps(to_dict(found, arithmetic, **facts), indent=2) + "\n")
    finally:  # nothing is lost where the file cannot be written
        click.echo(f"{len(chosen)} images, {path.name}; CPU ms an image on one thread")
        for c in found:
            click.echo(f"{c.stage:8} {c.cpu_ms:8.3f}   at least {c.floor_ms:8.3f}   {c.share:4.0%}")
        click.echo(f"{arithmetic.gmac:.2f} GMAC an image; a large product: {arithmetic.gmac_per_second:.0f} GMAC/s")


if __name__ == "__main__":
    main()
