"""What a run over the GPU's way waits for: the calls of the chain in a run, and the same calls alone.

    python -m isicrt.benchmarks.gpu_queue unet-light.onnx --plan model.plan --json queue.json

One thread decodes each batch and queues what follows. Alone it supplies the GPU at the decoder's rate; in a run, beside
the threads and the processes that read files and finish masks, an H200 has seen half of that (docs/gpu.md). So the same
calls are timed in both, by number of processes, of nvImageCodec's own CPU threads and by the hardware decoder's share:
where `decode` takes longer in a run by the clock and not by its thread's CPU time, it waits, and the kernel knows for
how much of that it was ready and had no core. What is left it waited for others: for nvImageCodec's threads, for the
GPU, or for Python's lock.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from isicrt._command import ModuleCommand
from isicrt.benchmarks.environment import read_environment, recorded_command
from isicrt.benchmarks.gpu_alone import GpuParts, batch_of, in_flight_figures, opened_chain
from isicrt.benchmarks.gpu_attempts import Attempts
from isicrt.benchmarks.gpu_files import render_files
from isicrt.benchmarks.gpu_torch import open_torch
from isicrt.benchmarks.gpu_whole import run_figures
from isicrt.engine.cores import available_cores
from isicrt.engine.gpu_decode import HARDWARE_LOAD, GpuDecoder
from isicrt.engine.pipeline import default_processes
from isicrt.engine.runtime import open_runtime

SCHEMA = "isicrt-gpu-queue/2"
"""The first had neither the time without a core nor CPU time of all threads of the chain alone."""
SIZE = "512"
_CPU = ("user", "system", "children_user", "children_system")


def unserved_seconds(schedstat: Path = Path("/proc/thread-self/schedstat")) -> float:
    """For how long the calling thread has been ready to run and had no core; NaN where the kernel does not tell.
    https://docs.kernel.org/scheduler/sched-stats.html"""
    try:
        return int(schedstat.read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return math.nan


class Clock:
    """Calls, their wall time, and of the threads that made them the CPU time and the time ready without a core. For one
    thread at a time."""

    def __init__(self) -> None:
        self.calls, self.wall, self.cpu, self.unserved = 0, 0.0, 0.0, 0.0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same, timed."""

        def timed(*arguments: Any, **options: Any) -> Any:
            unserved, wall, cpu = unserved_seconds(), time.perf_counter(), time.thread_time()
            try:
                return call(*arguments, **options)
            finally:
                # In the reverse order of the beginning: the CPU time lies within the wall time.
                self.cpu += time.thread_time() - cpu
                self.wall += time.perf_counter() - wall
                self.unserved += unserved_seconds() - unserved
                self.calls += 1

        return timed

    def take(self, batches: int) -> dict[str, float | None]:
        """Milliseconds a batch since it was last asked."""
        spent = {"wall_ms": self.wall, "cpu_ms": self.cpu, "unserved_ms": self.unserved}
        self.calls, self.wall, self.cpu, self.unserved = 0, 0.0, 0.0, 0.0
        return {name: None if math.isnan(value) else round(1e3 * value / batches, 3) for name, value in spent.items()}


class TimedDecoder:
    """A decoder with a clock around `decode`."""

    def __init__(self, decoder: Any, clock: Clock) -> None:
        self._decoder = decoder
        self.check, self.close = decoder.check, decoder.close
        self.decode = clock.around(decoder.decode)


class TimedKernels:
    """Kernels with a clock around `launch`."""

    def __init__(self, kernels: Any, clock: Clock) -> None:
        self.launch = clock.around(kernels.launch)


@dataclass(frozen=True)
class Setting:
    """What is varied."""

    processes: int
    """That read, and as many that finish."""
    cpu_threads: int
    """Of nvImageCodec; 0: as many as it likes."""
    hardware_load: float = HARDWARE_LOAD
    """Share of the images, 0..1, for the GPU's JPEG engine."""

    @property
    def name(self) -> str:
        """Of its section."""
        return f"{self.processes} processes, {self.cpu_threads or 'all'} CPU threads, share {self.hardware_load:g}"


def make_parts(setting: Setting) -> GpuParts:
    """Of a chain with that decoder."""

    def decoder(device: Any, _: float) -> GpuDecoder:
        return GpuDecoder(device.index, hardware_load=setting.hardware_load, cpu_threads=setting.cpu_threads)

    return replace(GpuParts(), decoder=decoder)


def queue_figures(
    runtime: Any, files: Sequence[Path], setting: Setting, batches: int, seconds: float, parts: GpuParts
) -> dict[str, Any]:
    """The chain alone and in a run.

    Args:
        runtime: of the engine.
        files: taken over and over.
        setting: of the run; the chain alone has its decoder only.
        batches: of the run.
        seconds: of each repeat of the chain alone.
        parts: of the chain.

    Returns:
        ``alone`` and ``run``: ``images_per_second``; by call (``decode``, ``launch``, ``collect``) the milliseconds
        a batch by the clock, of its thread, and in which that was ready and had no core; and ``cpu_ms``: CPU
        milliseconds a batch of this process (``user``, ``system``) and of its processes that have ended
        (``children_...``), as `os.times` has them. ``run`` also has what `run_figures` has.
    """
    clocks = {name: Clock() for name in ("decode", "launch", "collect")}
    timed = GpuParts(
        lambda device, load: TimedDecoder(parts.decoder(device, load), clocks["decode"]),
        lambda device: TimedKernels(parts.kernels(device), clocks["launch"]),
    )
    images = batch_of(files, runtime.card.input_size, runtime.max_batch)
    with opened_chain(runtime, timed) as chain:
        chain.collect = clocks["collect"].around(chain.collect)  # type: ignore[method-assign]
        in_flight_figures(chain, images, seconds / 4)  # graphs are recorded, buffers have their size
        found: dict[str, Any] = {}

        def measured(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
            for clock in clocks.values():
                clock.take(1)
            before = os.times()
            rates, after = measure(), os.times()
            count = max(1, clocks["collect"].calls)
            spent = {name: round(1e3 * (getattr(after, name) - getattr(before, name)) / count, 1) for name in _CPU}
            return rates | {name: clock.take(count) for name, clock in clocks.items()} | {"cpu_ms": spent}

        def run(count: int) -> dict[str, Any]:
            return run_figures(
                runtime, chain, files, count * len(images), batch=len(images), processes=setting.processes
            )

        found["alone"] = measured(lambda: in_flight_figures(chain, images, seconds))
        run(4)
        found["run"] = measured(lambda: run(batches))
    return found


def _shares(_: click.Context, __: click.Parameter, value: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in value.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 <= share <= 1 for share in found):
        raise click.BadParameter(f"{value!r}: numbers from 0 to 1 with commas between them")
    return found


def _numbers(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        found = tuple(int(part) for part in value.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 0:
        raise click.BadParameter(f"{value!r}: numbers with commas between them")
    return found


@click.command(cls=ModuleCommand)
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--plan", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Without: torch in its place."
)
@click.option("--processes", callback=_numbers, help="With commas between them. [default: a run's, half and a quarter]")
@click.option("--cpu-threads", default="0,1,4", callback=_numbers, show_default=True, help="0: as many as it likes.")
@click.option(
    "--hardware-loads",
    default=f"{HARDWARE_LOAD:g},1,0",
    callback=_shares,
    show_default=True,
    help="Shares of the GPU's JPEG engine; those behind the first with a run's own threads and processes.",
)
@click.option("--batches", type=click.IntRange(min=2), default=64, show_default=True, help="Of each run.")
@click.option("--seconds", type=float, default=0.5, show_default=True, help="Of each repeat of the chain alone.")
@click.option("--within", type=float, default=float("inf"), help="Begin nothing after so many seconds.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), required=True)
def command(
    model: Path,
    plan: Path | None,
    processes: tuple[int, ...] | None,
    cpu_threads: tuple[int, ...],
    hardware_loads: tuple[float, ...],
    batches: int,
    seconds: float,
    within: float,
    json_file: Path,
) -> None:
    """Time the chain's calls in a run and alone. MODEL is the ONNX file behind the plan, for torch."""
    usual = default_processes(available_cores(), on_gpu=True)
    counts = processes or tuple(dict.fromkeys((usual, usual // 2, usual // 4)))
    head = {
        "schema": SCHEMA,
        "command": recorded_command(["python", "-m", "isicrt.benchmarks.gpu_queue", *sys.argv[1:]]),
        "environment": read_environment().to_dict(),
        "size": SIZE,
    }
    attempt = Attempts(json_file, head, seconds=within)
    # What is most likely to tell the cause comes first: each share, then each count of threads, with a run's processes.
    settings = [Setting(counts[0], cpu_threads[0], share) for share in hardware_loads]
    settings += [Setting(count, threads, hardware_loads[0]) for count in counts for threads in cpu_threads][1:]
    with tempfile.TemporaryDirectory() as folder:
        files = render_files(Path(folder), SIZE)
        with open_runtime(plan) if plan is not None else open_torch(model, 256) as runtime:
            attempt.report["engine"] = runtime.name
            for setting in settings:
                parts = make_parts(setting)
                attempt(
                    ("settings", setting.name),
                    lambda s=setting, p=parts: queue_figures(runtime, files, s, batches, seconds, p),  # type: ignore[misc]
                )
    click.echo(to_markdown(attempt.report), nl=False)


def to_markdown(report: dict[str, Any]) -> str:
    """A row for each setting."""
    lines = [
        "| | alone, images/s | decode, ms a batch (CPU, without a core) | all CPU | run, images/s | steady "
        "| decode (CPU, without a core) | launch | collect | all CPU |",
        "|---" * 10 + "|",
    ]
    for name, section in report.get("settings", {}).items():
        alone, run = section["result"]["alone"], section["result"]["run"]
        steady = "-" if run["steady"] is None else f"{run['steady']:,.0f}"
        cells = [
            name,
            f"{alone['images_per_second']:,.0f}",
            _call(alone["decode"]),
            f"{sum(alone['cpu_ms'].values()):.0f}",
            f"{run['images_per_second']:,.0f}",
            steady,
        ]
        cells += [_call(run["decode"]), f"{run['launch']['wall_ms']:.1f}", f"{run['collect']['wall_ms']:.1f}"]
        cells += [f"{sum(run['cpu_ms'].values()):.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *(f"- {note}" for note in report["notes"])]) + "\n"


def _call(call: dict[str, float | None]) -> str:
    unserved = "-" if call["unserved_ms"] is None else f"{call['unserved_ms']:.1f}"
    return f"{call['wall_ms']:.1f} ({call['cpu_ms']:.1f}, {unserved})"


if __name__ == "__main__":
    command()
