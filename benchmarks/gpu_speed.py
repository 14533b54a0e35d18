"""How fast a plan is on this machine's GPU, stage by stage and end to end; torch and ONNX Runtime in the same run.

    python -m isicrt.benchmarks.gpu_speed model.onnx --plan model.plan --json speed.json

Network figures: "events" are the GPU's own clock, the two transfers apart, without a CUDA graph; "call" is the wall
clock of `infer`, host memory to host memory, both transfers and the graph in it; "stream" is throughput with several
batches in flight, transfers in. Decode figures start at the compressed bytes in memory. End to end starts at file
names and ends at PNG files.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from isicrt.benchmarks.environment import read_environment
from isicrt.benchmarks.gpu_watch import GpuWatch
from isicrt.benchmarks.latency import Window, measure_latency
from isicrt.benchmarks.rendered import render
from isicrt.engine.errors import ModelError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.gpu_stages import open_chain
from isicrt.engine.images import decode_image
from isicrt.engine.in_flight import infer_batches
from isicrt.engine.masks import restore_mask, write_mask
from isicrt.engine.pipeline import available_cores, run_jobs
from isicrt.engine.runtime import Runtime, open_runtime
from isicrt.engine.sources import Job

SIZES = {"512": (512, 512), "1022x767": (767, 1022), "12MP": (3000, 4000)}
"""(height, width) in pixels."""
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_DISTINCT = {"512": 64, "1022x767": 48, "12MP": 8}
"""Images that are rendered; a run takes them over and over, which is what "warm" means."""


def render_files(folder: Path, name: str) -> list[Path]:
    """JPEGs of quality 90 of one of `SIZES`."""
    height, width = SIZES[name]
    files = []
    for n in range(_DISTINCT[name]):
        # A large photograph is a small one enlarged: rendering 12 megapixels takes seconds.
        image = Image.fromarray(render(n, (min(height, 767), min(width, 1022)))[0]).resize((width, height))
        files.append(folder / f"{name}-{n:03d}.jpg")
        image.save(files[-1], quality=90)
    return files


def rate(work: Callable[[], int], seconds: float, repeats: int) -> dict[str, Any]:
    """Items a second of `work`, which says how many items it did; after one call that is not counted."""
    work()
    rates = []
    for _ in range(repeats):
        items, started = 0, time.perf_counter()
        while (passed := time.perf_counter() - started) < seconds or not items:
            items += work()
        rates.append(items / passed)
    return {"images_per_second": statistics.median(rates), "runs": rates}


def network_figures(runtime: Any, sizes: Sequence[int], window: Window) -> dict[str, Any]:
    """Latency and throughput of a network by batch size.

    Args:
        runtime: any `Runtime`; events and streams where it has them.
        sizes: batches; those above its `max_batch` are left out.
        window: of each figure.
    """
    figures: dict[str, Any] = {}
    rng = np.random.default_rng(0)
    for size in sizes:
        if runtime.max_batch is not None and size > runtime.max_batch:
            continue
        images = rng.integers(0, 256, (size, *runtime.card.input_size, 3), dtype=np.uint8)
        calls = measure_latency(runtime, images, window)
        entry: dict[str, Any] = {
            "call_ms": {f"p{q}": float(np.percentile(calls, q)) for q in (50, 90, 99)} | {"calls": len(calls)},
            "stream": rate(partial(_stream, runtime, images), window.seconds, 3),
        }
        if hasattr(runtime, "time"):
            timings = [runtime.time(images) for _ in range(window.calls)]
            entry["events_ms"] = {
                part: statistics.median(getattr(timing, part) for timing in timings)
                for part in ("upload", "network", "download")
            }
        figures[str(size)] = entry
    return figures


def _stream(runtime: Runtime, images: UInt8Array) -> int:
    return sum(len(found) for _, found in infer_batches(runtime, ((n, images) for n in range(8))))


def cpu_decode_figures(files: Sequence[Path], size: tuple[int, int], seconds: float, threads: int) -> dict[str, Any]:
    """Decode and resize on CPU threads."""
    with ThreadPoolExecutor(threads) as pool:

        def work() -> int:
            return len(list(pool.map(partial(decode_image, size=size), files)))

        return rate(work, seconds, 3)


def gpu_decode_figures(decoder: Any, device: Any, slot: Any, files: Sequence[Path], seconds: float) -> dict[str, Any]:
    """Decode on the GPU at full size, in batches of 32; without the resize, which the chain has."""
    contents = list(islice(cycle([file.read_bytes() for file in files]), 32))

    def work() -> int:
        with device.current():
            images = decoder.decode(contents, slot.stream.handle)
            slot.stream.synchronize()
        return sum(image is not None for image in images)

    return rate(work, seconds, 3)


def finish_figures(size: tuple[int, int], native: tuple[int, int], seconds: float, threads: int) -> dict[str, Any]:
    """Restore and write on CPU threads: from a probability map to a PNG."""
    image = Image.fromarray(render(3, (256, 256))[1]).resize((size[1], size[0]))
    probability = np.asarray(image, np.uint8)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(threads) as pool:

        def one(n: int) -> None:
            mask = restore_mask(probability, native, threshold=0.5, keep_largest=True, fill_holes=True)
            write_mask(mask, Path(folder) / f"{n}.png")

        def work() -> int:
            return len(list(pool.map(one, range(64))))

        return rate(work, seconds, 3)


CPU_SHARES = (0.0, 0.25, 0.5)


def run_figures(
    runtime: Runtime, chain: Any, files: Sequence[Path], count: int, *, cpu_share: float = 0.0, cold: bool = False
) -> dict[str, Any]:
    """End to end, as `isicrt segment` does it without a journal: file names to PNG files.

    Args:
        runtime: the plan's.
        chain: decodes on the GPU; None to decode on the CPU.
        files: taken over and over.
        count: masks to write.
        cpu_share: of the JPEGs that CPU threads decode beside the GPU.
        cold: with an empty page cache, as far as the system empties it when asked.
    """
    if cold:
        forget(files)
    with tempfile.TemporaryDirectory() as folder:
        jobs = (Job(file, Path(folder) / f"{n}.png") for n, file in enumerate(islice(cycle(files), count)))
        options: dict[str, Any] = {"batch_size": runtime.max_batch, "chain": chain, "cpu_share": cpu_share}
        summary = run_jobs(jobs, runtime, **options)
    return {
        "images_per_second": summary.images_per_second,
        "megapixels_per_second": summary.megapixels_per_second,
        "images": count,
        "failed": summary.failed,
        "stage_seconds": dict(summary.stage_seconds),
    }


def forget(files: Sequence[Path]) -> None:
    """Ask the system to drop the files from its page cache; Linux does."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            with suppress(AttributeError, OSError):
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def torch_figures(model: Path, sizes: Sequence[int], calls: int) -> dict[str, Any]:
    """The same network as a torch module on the GPU, half precision: eager and compiled. Pixels are on the GPU."""
    import torch

    from isicrt.benchmarks.peers.onnx_module import load_module

    figures: dict[str, Any] = {}
    with open_runtime(model) as runtime:
        size_in = runtime.card.input_size
    module: Any = load_module(model).cuda()
    for name in ("eager", "compile"):
        network = module if name == "eager" else torch.compile(module)
        for size in sizes:
            images = torch.randint(0, 256, (size, *size_in, 3), dtype=torch.uint8, device="cuda")
            try:
                with torch.inference_mode(), torch.autocast("cuda", torch.float16):
                    for _ in range(5):
                        network(images)
                    milliseconds = []
                    for _ in range(calls):
                        event: Any = torch.cuda.Event
                        start, end = event(enable_timing=True), event(enable_timing=True)
                        start.record()
                        network(images)
                        end.record()
                        end.synchronize()
                        milliseconds.append(start.elapsed_time(end))
            except Exception as error:  # a peer that does not run costs its own row
                figures.setdefault(name, {})[str(size)] = {"error": str(error)[:300]}
                continue
            figures.setdefault(name, {})[str(size)] = {"network_ms": statistics.median(milliseconds)}
    return figures


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--plan", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Without: the peers alone.")
@click.option("--seconds", type=float, default=2.0, show_default=True, help="Of each figure.")
@click.option("--images", "count", type=int, default=4096, show_default=True, help="Of each end-to-end run.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), required=True)
def command(model: Path, plan: Path | None, seconds: float, count: int, json_file: Path) -> None:
    """Measure a plan stage by stage and end to end; MODEL is the ONNX file behind it, for the peers."""
    report: dict[str, Any] = {"format": 1, "environment": read_environment().to_dict(), "notes": []}

    def attempt(name: str, work: Callable[[], Any]) -> None:
        """One section: what fails is noted, and the rest goes on. Written at once, for time may run out."""
        click.echo(f"{name} ...", err=True)
        started = time.perf_counter()
        with GpuWatch() as watch:
            try:
                result = work()
            except Exception as error:
                report["notes"].append(f"{name}: {type(error).__name__}: {error}"[:2000])
                click.echo(f"  {report['notes'][-1]}", err=True)
            else:
                report[name] = {"result": result, "seconds": round(time.perf_counter() - started, 2)}
        if name in report:
            report[name]["gpu"] = watch.summary()
        json_file.write_text(json.dumps(report, indent=1) + "\n")

    cores = available_cores()
    window = Window(calls=100, seconds=seconds, warmup_calls=20)
    attempt("onnxruntime network", lambda: network_figures(open_runtime(model), (1, 8, 32), window))
    attempt("torch network", lambda: torch_figures(model, BATCHES, 50))
    if plan is None:
        click.echo(f"Wrote {json_file}, without a plan")
        return
    try:
        runtime: Any = open_runtime(plan)
    except ModelError as error:
        raise click.ClickException(str(error)) from error
    with runtime, tempfile.TemporaryDirectory() as folder:
        size = runtime.card.input_size
        report["plan"] = {"name": runtime.name, "builder": dict(runtime.card.builder), "depth": runtime.depth}
        attempt("network", lambda: network_figures(runtime, BATCHES, window))
        for name, native in SIZES.items():
            files = render_files(Path(folder), name)
            images = max(count // 8, runtime.max_batch) if name == "12MP" else count
            attempt(f"cpu decode {name}", partial(cpu_decode_figures, files, size, seconds, cores))
            attempt(f"restore and write {name}", partial(finish_figures, size, native, seconds, cores))
            attempt(f"gpu decode {name}", partial(_gpu_decode, runtime, files, seconds))
            attempt(f"end to end {name}", partial(_end_to_end, runtime, files, images))
    click.echo(f"Wrote {json_file}")


def _gpu_decode(runtime: Any, files: Sequence[Path], seconds: float) -> dict[str, Any]:
    from isicrt.engine.gpu_decode import GpuDecoder

    figures = {}
    for load in (0.0, 0.35, 0.65, 1.0):
        with runtime.device.current():
            decoder = GpuDecoder(hardware_load=load)
        figures[str(load)] = gpu_decode_figures(decoder, runtime.device, runtime.slots[0], files, seconds)
        with runtime.device.current():
            decoder.close()
    return figures


def _end_to_end(runtime: Any, files: Sequence[Path], count: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"decoded on the CPU": run_figures(runtime, None, files, count)}
    with open_chain(runtime, "gpu") or nullcontext() as chain:
        run_figures(runtime, chain, files, runtime.max_batch)
        figures["cold"] = run_figures(runtime, chain, files, count, cold=True)
        for share in CPU_SHARES:
            for run in ("warm", "warm again"):
                figures[f"{run}, CPU share {share:g}"] = run_figures(runtime, chain, files, count, cpu_share=share)
    return figures


if __name__ == "__main__":
    command()
