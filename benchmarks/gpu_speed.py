"""How fast a plan is on this machine's GPU, stage by stage and end to end; torch and ONNX Runtime in the same run.

    python -m isicrt.benchmarks.gpu_speed model.onnx --plan model.plan --json speed.json
    python -m isicrt.benchmarks.gpu_verdict speed.json       # as Markdown

Engines are measured one after the other: the plan (``tensorrt-fp16``, or what its card says), then torch in its place
(`isicrt.benchmarks.gpu_torch`), so that the GPU's way is measured where no plan runs, then torch compiled, for the
first size of images alone. Stages that need no engine are measured once (`isicrt.benchmarks.gpu_alone`). What the goals
need comes first, then shares of the hardware decoder; sizes of images after the first are measured in half the time.
The report is written after every section.

Network figures: "events" are the GPU's own clock, the two transfers apart, without a CUDA graph; "call" is the wall
clock of `infer`, host memory to host memory, both transfers and the graph in it; "stream" is throughput with several
batches in flight, transfers in. Stages start at the compressed bytes in memory, but for "read", which starts at file
names. End to end starts at file names and ends at PNG files.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click

from isicrt._command import ModuleCommand
from isicrt.benchmarks.environment import provenance, read_environment, recorded_command
from isicrt.benchmarks.gpu_alone import (
    RESIZE,
    RESTORE,
    GpuParts,
    chain_figures,
    cpu_decode_figures,
    cpu_restore_figures,
    gpu_decode_figures,
    held_figures,
    process_read_figures,
    process_write_figures,
    read_figures,
    write_figures,
)
from isicrt.benchmarks.gpu_attempts import Attempts
from isicrt.benchmarks.gpu_files import SIZES, render_files
from isicrt.benchmarks.gpu_onnx import cuda_figures
from isicrt.benchmarks.gpu_rates import network_figures
from isicrt.benchmarks.gpu_slots import IdleContext, SlotRuntime
from isicrt.benchmarks.gpu_torch import COMPILE_SECONDS, open_torch, torch_figures
from isicrt.benchmarks.gpu_verdict import conclude, to_markdown
from isicrt.benchmarks.gpu_whole import REPEATS, end_to_end_figures, other_way_figures
from isicrt.benchmarks.latency import Window
from isicrt.benchmarks.result_file import check_places
from isicrt.engine.cuda_memory import CudaDevice
from isicrt.engine.errors import IsicrtError
from isicrt.engine.onnx_file import read_onnx_card
from isicrt.engine.pipeline import available_cores, default_processes, default_threads
from isicrt.engine.plan import read_plan
from isicrt.engine.runtime import open_runtime

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PLAN = "the plan"
COMPILED = "torch compiled"
"""The engine that is measured with the first size of images alone: other batches would have to be compiled too."""
ENGINES = (PLAN, "torch", COMPILED)
TORCH_BATCHES = {"compile": (1, 256), "eager": BATCHES}
SCHEMA = "isicrt-gpu-speed/2"
HARDWARE_LOADS = (0.0, 0.35, 0.65, 1.0)
CPU_SHARES = (None, 0.25, 0.5)
"""Of the JPEGs; None: the GPU decodes none, and restores no mask."""


@dataclass(frozen=True)
class Session:
    """What the sections have in common."""

    attempt: Attempts
    model: Path
    """The ONNX file."""
    files: dict[str, list[Path]]
    """By name of `SIZES`."""
    scratch: Path
    """A folder that is deleted at the end."""
    seconds: float
    """Of each repeat of a figure."""
    batches: int
    """Of each end-to-end run that the goals need; others have a quarter."""
    parts: GpuParts = field(default_factory=GpuParts)

    def seconds_for(self, size: str) -> float:
        """Of each repeat of a figure that depends on the size of images."""
        return self.seconds if size == next(iter(self.files)) else self.seconds / 2

    @property
    def window(self) -> Window:
        """Of the network's figures."""
        return Window(calls=50, seconds=self.seconds, warmup_calls=20)

    def folder(self, *names: str) -> Path:
        """A new one to write into."""
        folder = self.scratch / "-".join(names).replace(" ", "-")
        folder.mkdir()
        return folder

    def host_stages(self, size: str, *, on_threads: bool = False) -> None:
        """What the CPU does on the GPU's way, as in a run, or `on_threads` where a run has processes."""
        cores = available_cores()
        readers, writers = default_threads(cores, on_gpu=True)
        processes = default_processes(cores, on_gpu=True)
        shape = read_onnx_card(self.model).input_size
        files, native, seconds = self.files[size], SIZES[size], self.seconds_for(size)
        sections: dict[str, Callable[[], Any]]
        if on_threads or not processes:
            name, folder = (" on threads", "write-threads") if on_threads else ("", "write")
            sections = {
                f"read{name}": lambda: read_figures(files, shape, seconds, readers),
                f"write{name}": lambda: write_figures(native, self.folder(folder, size), seconds, writers),
            }
            if on_threads and not processes:
                return  # measured already
        else:
            sections = {
                "read": lambda: process_read_figures(files, seconds, readers),
                "write": lambda: process_write_figures(native, self.folder("write", size), seconds, processes),
            }
        for name, work in sections.items():
            self.attempt(("stages", size, name), work)

    def gpu_stages(self, idle: Any, size: str) -> None:
        """What needs a GPU and no engine. `idle` is a runtime whose network does nothing."""
        files, seconds, parts = self.files[size], self.seconds_for(size), self.parts
        sections: dict[str, Callable[[], Any]] = {
            "gpu decode": partial(gpu_decode_figures, idle, files, seconds, parts),
            "gpu resize": partial(held_figures, idle, files, seconds, parts, RESIZE),
            "gpu restore and pack": partial(held_figures, idle, files, seconds, parts, RESTORE),
        }
        for name, work in sections.items():
            self.attempt(("stages", size, name), work)

    def hardware_loads(self, idle: Any, size: str) -> None:
        """Which share of a batch is best for the hardware decoder; each is alone, for one may fail."""
        for load in HARDWARE_LOADS:
            work = partial(gpu_decode_figures, idle, self.files[size], self.seconds, self.parts, load)
            self.attempt(("hardware decoder load", size, f"{load:g}"), work)

    def network(self, runtime: Any) -> None:
        """Of an engine: one image, which a goal is about, and the largest batch."""
        sizes = (1, runtime.max_batch)
        self.attempt(("engines", runtime.name, "network"), lambda: network_figures(runtime, sizes, self.window))

    def whole(self, runtime: Any, size: str, *, repeats: int = REPEATS, cold: bool = True) -> None:
        """Of an engine: end to end, its network as a stage of that, and all that the GPU does together."""
        files, parts, seconds = self.files[size], self.parts, self.seconds_for(size)
        whole = partial(end_to_end_figures, runtime, files, self.batches, parts, repeats=repeats, cold=cold)
        sections: dict[str, Callable[[], Any]] = {
            "end to end": whole,
            "network in the chain": lambda: held_figures(runtime, files, seconds, parts, frozenset()),
            "gpu stages together": lambda: chain_figures(runtime, files, seconds, parts),
        }
        for name, work in sections.items():
            self.attempt(("engines", runtime.name, name, size), work)

    def about(self, runtime: Any) -> None:
        """What an engine says of itself; a graph that could not be recorded is only known after a while."""
        if about := getattr(runtime, "about", None):
            self.attempt(("engines", runtime.name, "about"), lambda: dict(about))
            if "graph_error" in about:
                self.attempt.note(f"{runtime.name}: without CUDA graphs: {about['graph_error']}")

    def at_length(self, runtime: Any) -> None:
        """Of an engine: every batch size, CPU threads that help, and none of the GPU's decoding."""
        window = Window(calls=50, seconds=self.seconds / 2, warmup_calls=10)
        path = ("engines", runtime.name)
        self.attempt((*path, "network by batch"), lambda: network_figures(runtime, BATCHES, window))
        for size, files in self.files.items():
            for share in CPU_SHARES:
                way = "decoded on the CPU" if share is None else f"CPU share {share:g}"
                work = partial(other_way_figures, runtime, files, max(2, self.batches // 4), self.parts, share)
                self.attempt((*path, way, size), work)

    def cpu_stages(self, size: str) -> None:
        """The same work on the CPU alone."""
        cores, shape = available_cores(), read_onnx_card(self.model).input_size
        decode = partial(cpu_decode_figures, self.files[size], shape, self.seconds, cores)
        self.attempt(("stages", size, "cpu decode"), decode)
        restore = partial(cpu_restore_figures, shape, SIZES[size])
        path = ("stages", size, "cpu restore and write")
        self.attempt(path, lambda: restore(self.folder("restore", size), self.seconds, cores))

    def torch_peers(self, kind: str) -> None:
        """The network alone by torch, ``eager`` or ``compile``; each size is alone, for one may fail."""
        for size in TORCH_BATCHES[kind]:
            self.attempt(("peers", f"torch {kind}", str(size)), partial(torch_figures, self.model, kind, size, 50))

    def onnx_runtime_cuda(self, model: Path) -> None:
        """The network of `model` alone by ONNX Runtime's CUDA provider; each size is alone, for one may fail."""
        for size in BATCHES:
            self.attempt(("peers", "onnxruntime-cuda", str(size)), partial(cuda_figures, model, size, 50))

    def onnx_runtime(self) -> None:
        """The network alone on the CPU."""
        self.attempt(("peers", "onnxruntime"), lambda: _onnx_runtime(self.model, (1, 8, 32), self.window))


def _onnx_runtime(model: Path, sizes: Sequence[int], window: Window) -> dict[str, Any]:
    with open_runtime(model) as runtime:
        return {"runtime": runtime.name, "batches": network_figures(runtime, sizes, window)}


@contextmanager
def opened(session: Session, name: str, opener: Callable[[], Any]) -> Iterator[Any]:
    """A runtime; None, and a note, where it cannot be opened or the time is up."""
    if session.attempt.left < 0:
        session.attempt.note(f"{name}: not opened, the time was up")
        yield None
        return
    try:
        runtime = opener()
    except IsicrtError as error:
        session.attempt.note(f"{name}: {error}")
        yield None
        return
    with runtime:
        yield runtime


def measure(
    session: Session,
    engines: Mapping[str, Callable[[], Any]],
    make_idle: Callable[[], Any],
    cuda_model: Path | None = None,
) -> list[str]:
    """Every section, the most important first.

    Args:
        session: of the report.
        engines: by name, what opens them; the most important first.
        make_idle: opens a runtime whose network does nothing.
        cuda_model: the ONNX file for ONNX Runtime's CUDA provider; without it the session's model.

    Returns:
        Names of the engines that could be opened.
    """
    good = []
    first, *others = session.files
    staged: set[str] = set()

    def stages(size: str) -> None:
        if size in staged:
            return
        staged.add(size)
        session.host_stages(size)
        with opened(session, "stages on the GPU", make_idle) as idle:
            if idle is not None:
                session.gpu_stages(idle, size)

    for name, opener in engines.items():
        with opened(session, name, opener) as runtime:
            if runtime is None:
                continue
            good.append(name)
            session.network(runtime)
            if name == COMPILED:
                session.whole(runtime, first, repeats=2, cold=False)
            else:
                session.whole(runtime, first)
                stages(first)
            session.about(runtime)
    stages(first)
    with opened(session, "stages on the GPU", make_idle) as idle:
        if idle is not None:
            session.hardware_loads(idle, first)
    for name in good if others else []:
        if name == COMPILED:
            continue
        with opened(session, name, engines[name]) as runtime:
            for size in others if runtime is not None else []:
                session.whole(runtime, size, repeats=2, cold=False)
                stages(size)
    for size in others:
        stages(size)
    if good:
        with opened(session, good[0], engines[good[0]]) as runtime:
            if runtime is not None:
                session.at_length(runtime)
    session.torch_peers("compile")
    session.onnx_runtime_cuda(cuda_model or session.model)
    session.onnx_runtime()
    for size in session.files:
        session.host_stages(size, on_threads=True)
        session.cpu_stages(size)
    session.torch_peers("eager")
    return good


@click.command(cls=ModuleCommand)
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--plan", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Without: torch in its place."
)
@click.option("--seconds", type=float, default=1.0, show_default=True, help="Of each repeat of a figure.")
@click.option("--batches", type=click.IntRange(min=2), default=64, show_default=True, help="Of each end-to-end run.")
@click.option(
    "--largest", type=click.IntRange(min=1), default=256, show_default=True, help="Batch, where there is no plan."
)
@click.option(
    "--compile-seconds", type=float, default=COMPILE_SECONDS, show_default=True, help="That torch.compile may take."
)
@click.option(
    "--engine", "names", type=click.Choice(ENGINES), multiple=True, help="Only these, in this order; may be repeated."
)
@click.option(
    "--cuda-model",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="ONNX file for ONNX Runtime's CUDA provider, such as the FP16 one beside a plan. Without: MODEL.",
)
@click.option("--within", type=float, default=float("inf"), help="Begin nothing after so many seconds.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), required=True)
def command(
    model: Path,
    plan: Path | None,
    seconds: float,
    batches: int,
    largest: int,
    compile_seconds: float,
    names: tuple[str, ...],
    cuda_model: Path | None,
    within: float,
    json_file: Path,
) -> None:
    """Measure a plan stage by stage and end to end; MODEL is the ONNX file behind it, for torch and the peers.

    The exit code is 1 where the plan cannot be opened; all the rest is measured then too.
    """
    check_places(json_file)
    if PLAN in names and plan is None:
        raise click.UsageError(f"--engine {PLAN!r} needs --plan")
    head = {
        "schema": SCHEMA,
        "command": recorded_command(["python", "-m", "isicrt.benchmarks.gpu_speed", *sys.argv[1:]]),
        **provenance(model, plan),
        "environment": read_environment().to_dict(),
    }
    attempt = Attempts(json_file, head, conclude=conclude, seconds=within)
    engines: dict[str, Callable[[], Any]] = {}
    if plan is not None:
        runtime_of_plan = partial(open_runtime, plan)
        engines[PLAN] = runtime_of_plan
        largest = _note_plan(attempt, plan) or largest
    engines["torch"] = lambda: open_torch(model, largest)
    engines[COMPILED] = lambda: open_torch(
        model, largest, compiled=True, seconds=max(1.0, min(compile_seconds, attempt.left))
    )
    if names:
        engines = {name: engines[name] for name in names if name in engines}
    card = read_onnx_card(model)

    def make_idle() -> SlotRuntime:
        return SlotRuntime(card, "no network", CudaDevice(), IdleContext, largest)

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        files = {name: render_files(scratch, name) for name in SIZES}
        session = Session(attempt, model, files, scratch, seconds, batches)
        good = measure(session, engines, make_idle, cuda_model)
    click.echo(to_markdown(attempt.report), nl=False)
    click.echo(f"Wrote {json_file}")
    if PLAN in engines and PLAN not in good:
        refusal = next(note for note in attempt.report["notes"] if note.startswith(f"{PLAN}: "))
        raise click.ClickException(refusal)


def _note_plan(attempt: Attempts, plan: Path) -> int | None:
    """What is in a plan's card goes into the report. Returns its largest batch; None where it is no plan."""
    try:
        card, _ = read_plan(plan)
    except IsicrtError:
        return None  # whoever opens it says why
    attempt.report["plan"] = {"file": plan.name, "precision": card.precision, "builder": dict(card.builder)}
    profile = card.builder.get("profile")
    return max(profile) if profile else None


if __name__ == "__main__":
    command()
