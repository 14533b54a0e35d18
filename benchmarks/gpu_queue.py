"""What a run over the GPU's way waits for: the calls of the chain in a run, and the same calls alone.

    python -m isicrt.benchmarks.gpu_queue unet-light.onnx --plan model.plan --json queue.json

One thread decodes each batch and queues what follows. Alone it supplies the GPU at the decoder's rate; in a run, beside
the threads and the processes that read files and finish masks, an H200 has seen half of that
(docs/gpu-measurements.md). So the same calls are timed in both, by number of processes, of nvImageCodec's own CPU
threads and by the hardware decoder's share: where `decode` takes longer in a run by the clock and not by its thread's
CPU time, it waits. The kernel knows for how long threads were ready to run and had no core: the chain's own, and all of
this process, nvImageCodec's among them, for which the chain's may have waited. Where these are small, there were cores
enough, and what is waited for is the GPU, Python's lock, or a core that is slower because its other thread is busy.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from isicrt._command import ModuleCommand
from isicrt.benchmarks.environment import provenance, read_environment, recorded_command
from isicrt.benchmarks.gpu_alone import GpuParts, batch_of, in_flight_figures, opened_chain
from isicrt.benchmarks.gpu_attempts import Attempts
from isicrt.benchmarks.gpu_files import render_files
from isicrt.benchmarks.gpu_torch import open_torch
from isicrt.benchmarks.gpu_whole import run_figures
from isicrt.benchmarks.result_file import check_places
from isicrt.engine.cores import available_cores
from isicrt.engine.gpu_decode import HARDWARE_LOAD, GpuDecoder
from isicrt.engine.pipeline import default_processes
from isicrt.engine.runtime import open_runtime

SCHEMA = "isicrt-gpu-queue/2"
"""The first had neither the time without a core nor CPU time of all threads of the chain alone."""
SIZE = "512"
_CPU = ("user", "system", "children_user", "children_system")


def unserved_seconds(tasks: Path = Path("/proc/self/task")) -> dict[int, float]:
    """For how long each thread of this process has been ready to run and had no core, by its number; empty where the
    kernel does not tell. https://docs.kernel.org/scheduler/sched-stats.html"""
    found = {}
    with suppress(OSError):
        for task in tasks.iterdir():
            with suppress(OSError, ValueError, IndexError):  # one that has ended, or a kernel that does not tell
                found[int(task.name)] = int((task / "schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    return found


class Clock:
    """Calls, their wall time, and the CPU time of the threads that made them. For one thread at a time."""

    def __init__(self) -> None:
        self.calls, self.wall, self.cpu = 0, 0.0, 0.0
        self.thread: int | None = None
        """That made the last call, as the system numbers it."""

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same, timed."""

        def timed(*arguments: Any, **options: Any) -> Any:
            self.thread = threading.get_native_id()
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return call(*arguments, **options)
            finally:
                # In the reverse order of the beginning: the CPU time lies within the wall time.
                self.cpu += time.thread_time() - cpu
                self.wall += time.perf_counter() - wall
                self.calls += 1

        return timed

    def take(self, batches: int) -> dict[str, float]:
        """Milliseconds a batch since it was last asked."""
        found = {"wall_ms": round(1e3 * self.wall / batches, 3), "cpu_ms": round(1e3 * self.cpu / batches, 3)}
        self.calls, self.wall, self.cpu = 0, 0.0, 0.0
        return found


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
        a batch by the clock and of its thread; ``process_cpu_ms``: CPU milliseconds a batch of this process (``user``,
        ``system``) and of its processes that have ended (``children_...``), as `os.times` has them; and
        ``unserved_ms``: milliseconds a batch in which a thread was ready and had no core, of the chain's and of all of
        this process that were there from beginning to end, None where the kernel does not tell. ``run`` also has what
        `run_figures` has.
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
            before, ready = os.times(), unserved_seconds()
            rates, ready_now, after = measure(), unserved_seconds(), os.times()
            count = max(1, clocks["collect"].calls)
            spent = {name: round(1e3 * (getattr(after, name) - getattr(before, name)) / count, 1) for name in _CPU}
            waits = {thread: 1e3 * (ready_now[thread] - ready[thread]) / count for thread in ready.keys() & ready_now}
            chain_waits = waits.get(clocks["decode"].thread or -1)
            return (
                rates
                | {name: clock.take(count) for name, clock in clocks.items()}
                | {"process_cpu_ms": spent}
                | {
                    "unserved_ms": {
                        "chain": None if chain_waits is None else round(chain_waits, 1),
                        "process": round(sum(waits.values()), 1) if waits else None,
                    }
                }
            )

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
    help="Shares of the GPU's JPEG engine; those behind the first with the first of the other two.",
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
    check_places(json_file)
    usual = default_processes(available_cores(), on_gpu=True)
    counts = processes or tuple(dict.fromkeys((usual, usual // 2, usual // 4)))
    head = {
        "schema": SCHEMA,
        "command": recorded_command(["python", "-m", "isicrt.benchmarks.gpu_queue", *sys.argv[1:]]),
        **provenance(model, plan),
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
        "| | alone, images/s | decode, ms a batch (CPU) | all CPU | without a core | run, images/s | steady "
        "| decode (CPU) | launch | collect | all CPU | without a core: the chain, all |",
        "|---" * 12 + "|",
    ]
    for name, section in report.get("settings", {}).items():
        alone, run = section["result"]["alone"], section["result"]["run"]
        steady = "-" if run["steady"] is None else f"{run['steady']:,.0f}"
        cells = [
            name,
            f"{alone['images_per_second']:,.0f}",
            _pair(alone["decode"]),
            f"{sum(alone['process_cpu_ms'].values()):.0f}",
            _known(alone["unserved_ms"]["process"]),
            f"{run['images_per_second']:,.0f}",
            steady,
        ]
        cells += [_pair(run["decode"]), f"{run['launch']['wall_ms']:.1f}", f"{run['collect']['wall_ms']:.1f}"]
        cells += [f"{sum(run['process_cpu_ms'].values()):.0f}"]
        cells += [f"{_known(run['unserved_ms']['chain'])}, {_known(run['unserved_ms']['process'])}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *(f"- {note}" for note in report["notes"])]) + "\n"


def _pair(call: dict[str, float]) -> str:
    return f"{call['wall_ms']:.1f} ({call['cpu_ms']:.1f})"


def _known(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    command()
