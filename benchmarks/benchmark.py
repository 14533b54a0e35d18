"""The benchmark itself: load the models, measure each in turn, several times over, score the masks they wrote.

Everything that is repeated is interleaved: repeat 1 of every model, then repeat 2 of every model, so that a machine
that slows down does so for all of them. It goes on until the last three repeats of everything agree, or for
`Protocol.max_repeats`.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from isicrt.benchmarks.accuracy import Accuracy, score_masks
from isicrt.benchmarks.environment import read_environment
from isicrt.benchmarks.evaluation import labels_of_files
from isicrt.benchmarks.latency import Latency, measure_latency, settled
from isicrt.benchmarks.process import Usage, isicrt_command, run_command
from isicrt.benchmarks.result import ModelResult, Protocol, Report
from isicrt.benchmarks.scratch import fresh
from isicrt.benchmarks.stages import StagePass, StageSplit, crowded_pass, on_device, quiet_pass, stage_pass
from isicrt.benchmarks.throughput import EndToEnd, TimedRun, run_once
from isicrt.benchmarks.timeline import TIMELINE_BATCHES, TIMELINE_IMAGES, Lane, record_timeline
from isicrt.benchmarks.workload import (
    Workload,
    batches_of,
    how_many_in_turn,
    in_turn,
    open_workload,
    readable_sample,
    render_workload,
)
from isicrt.engine.errors import DataError, SettingsError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.pipeline import STAGES, available_cores
from isicrt.engine.runtime import Runtime, open_runtime
from isicrt.engine.shipped import resolve
from isicrt.engine.sources import find_jobs

Progress = Callable[[str, int, int], None]
"""Called between measurements, never during one: what comes next, steps done, steps in all if it settles early."""


@dataclass
class _Candidate:
    """One model while it is being measured."""

    file: Path
    runtime: Runtime
    alone: Runtime
    """For the stages: the same model on one thread, or `runtime` where that runs on a device."""
    batch_sizes: tuple[int, ...]
    sample: list[Path]
    pixels: UInt8Array
    """Of some of the sample, for the network alone."""
    windows: dict[int, list[tuple[float, ...]]] = field(default_factory=dict)
    passes: list[StagePass] = field(default_factory=list)
    crowded: list[float] = field(default_factory=list)
    runs: list[TimedRun] = field(default_factory=list)
    failures: tuple[str, ...] = ()

    @property
    def pipeline_batch(self) -> int:
        return self.batch_sizes[-1]

    @property
    def latencies(self) -> tuple[Latency, ...]:
        return tuple(Latency(size, tuple(windows), len(self.pixels)) for size, windows in self.windows.items())

    @property
    def end_to_end(self) -> EndToEnd:
        return EndToEnd(self.pipeline_batch, tuple(self.runs), self.failures)

    @property
    def settled(self) -> bool:
        passes = [sum(p.cpu_ms.values()) for p in self.passes]
        return self.end_to_end.settled and settled(passes) and all(x.settled for x in self.latencies)


def run_benchmark(
    models: Sequence[str],
    protocol: Protocol,
    *,
    images: Path | None = None,
    masks: Path | None = None,
    rendered: int = 48,
    command: str = "",
    on_step: Progress = lambda step, done, total: None,
) -> Report:
    """Measure `models` on the same images.

    Args:
        models: files or names of shipped models; none for the default one.
        protocol: batch sizes, repeats and so on. The pipeline runs at the largest batch size; a size above what a
            model was built for is lowered to that.
        images: a folder, a pattern or a list, as for `find_jobs`; None for rendered images.
        masks: ground truth of `images`.
        rendered: how many images to render where `images` is None.
        command: for the report.
        on_step: progress.

    Raises:
        SettingsError: masks without images.
        ModelError: a model that cannot be loaded.
        DataError: no images, or no ground truth in `masks`, or no image that can be decoded.
        OSError: the system's temporary folder is full or cannot be written.
    """
    if masks is not None and images is None:
        raise SettingsError("--masks needs --images: the ground truth is of somebody's images")
    environment = read_environment()
    with ExitStack() as stack:
        files = [resolve(m) for m in models] or [resolve(None)]
        runtimes = [stack.enter_context(open_runtime(f, threads=protocol.threads)) for f in files]
        alone = [
            r if on_device(r) else stack.enter_context(open_runtime(f, threads=1))
            for f, r in zip(files, runtimes, strict=True)
        ]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="isicrt-bench-")))
        total = len(files) * (protocol.repeats + 2) + 1
        if images is None:
            on_step(f"rendering {rendered} images", 0, total)
            workload = render_workload(folder, rendered)
        else:
            workload = open_workload(images, masks, folder / "masks")
        contents = workload.read_ahead()
        count = how_many_in_turn(r.card.input_size for r in runtimes)
        candidates = [_prepare(*found, protocol, workload, count) for found in zip(files, runtimes, alone, strict=True)]
        labels = labels_of_files([r.card.name for r in runtimes], files)
        folders = [folder / f"masks-{n}" for n in range(len(candidates))]
        done = 1
        for n, candidate in enumerate(candidates):
            on_step(f"{labels[n]}: warming up", done + n, total)
            _warm_up(candidate, protocol, workload, folders[n])
        most = max(protocol.repeats, protocol.max_repeats or 0)
        for repeat in range(1, most + 1):
            if repeat > protocol.repeats and all(c.settled for c in candidates):
                break
            for n, candidate in enumerate(candidates):
                done += 1
                more = f" of {protocol.repeats}" if repeat <= protocol.repeats else ", not settled yet"
                at = min(done + len(candidates) - 1, total - len(candidates) - 1)
                on_step(f"{labels[n]}: run {repeat}{more}", at, total)
                _measure(candidate, protocol, workload, folders[n])
        results = []
        for n, candidate in enumerate(candidates):
            accuracy = score_masks(folders[n], workload.truths) if workload.truths else None
            on_step(f"{labels[n]}: memory and timeline", total - len(candidates) + n, total)
            process = _measure_process(candidate, protocol, workload, folders[n])
            lanes = _record(candidate, protocol, workload, folders[n])
            results.append(_conclude(candidate, labels[n], accuracy, process, lanes, protocol.threads))
        return Report(
            command=command,
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            environment=environment,
            workload=workload.describe(contents),
            protocol=protocol,
            models=tuple(results),
        )


def _prepare(
    file: Path, runtime: Runtime, alone: Runtime, protocol: Protocol, workload: Workload, count: int
) -> _Candidate:
    limit = runtime.max_batch or max(protocol.batch_sizes)
    sizes = tuple(sorted({min(size, limit) for size in protocol.batch_sizes}))
    sample = readable_sample(workload, runtime.card.input_size, protocol.stage_images)
    return _Candidate(file, runtime, alone, sizes, sample, in_turn(sample, runtime.card.input_size, count))


def _warm_up(candidate: _Candidate, protocol: Protocol, workload: Workload, out: Path) -> None:
    """The pipeline and the stages once, on a few images, and every batch of the latency windows once: the first time
    that as many images are looked at again costs more, and the windows' own warm-up may not get there."""
    few = candidate.pipeline_batch * 2
    jobs = find_jobs(workload.images, fresh(out))[:few]
    run_once(jobs, out, candidate.runtime, candidate.pipeline_batch, protocol.threads)
    stage_pass(candidate.sample[:few], candidate.alone, candidate.pipeline_batch, fresh(out))
    for size in candidate.batch_sizes:
        for batch in batches_of(candidate.pixels, size):
            candidate.runtime.infer(batch)


def _measure(candidate: _Candidate, protocol: Protocol, workload: Workload, out: Path) -> None:
    runtime = candidate.runtime
    for size in candidate.batch_sizes:
        batches = batches_of(candidate.pixels, size)
        candidate.windows.setdefault(size, []).append(measure_latency(runtime, batches, protocol.window))
    candidate.passes.append(stage_pass(candidate.sample, candidate.alone, candidate.pipeline_batch, fresh(out)))
    batch = batches_of(candidate.pixels, candidate.pipeline_batch)[0]
    if (crowded := crowded_pass(runtime, batch)) is not None:
        # Some images may take several looks: the batch is compared with itself.
        share = crowded / quiet_pass(candidate.alone, batch)
        candidate.crowded.append(share * candidate.passes[-1].cpu_ms["infer"])
    jobs = find_jobs(workload.images, fresh(out))
    run, candidate.failures = run_once(jobs, out, runtime, candidate.pipeline_batch, protocol.threads)
    if run.failed == run.images:
        raise DataError(f"{workload.images}: not one image gave a mask. The first: {candidate.failures[0]}")
    candidate.runs.append(run)


def _measure_process(
    candidate: _Candidate, protocol: Protocol, workload: Workload, out: Path
) -> tuple[Usage | None, str | None]:
    """`isicrt segment` on the same images: this process has loaded more than that needs. Where it did not write the
    masks that the timed runs wrote, its memory is not that of a run, and the reason stands in the place of it."""
    options = ["--out", str(fresh(out)), "--model", str(candidate.file)]
    options += ["--batch-size", str(candidate.pipeline_batch)]
    options += [] if protocol.threads is None else ["--threads", str(protocol.threads)]
    command = isicrt_command("segment", *options, "--", str(workload.images))
    # 1: some image failed, as in the timed runs. An exception that nobody caught exits with 1 too.
    try:
        usage = run_command(command, accept=(0, 1) if candidate.failures else (0,))
    except DataError as error:
        return None, f"memory was not measured: {error}"
    written = sum((out / name).is_file() for name in workload.names)
    expected = len(workload.names) - candidate.runs[-1].failed
    if written != expected:
        return None, (
            f"memory was not measured: isicrt segment, as a process of its own, wrote {written} masks where the timed "
            f"runs wrote {expected}"
        )
    return usage, None


def _record(candidate: _Candidate, protocol: Protocol, workload: Workload, out: Path) -> tuple[Lane, ...]:
    jobs = find_jobs(workload.images, fresh(out))[: max(candidate.pipeline_batch * TIMELINE_BATCHES, TIMELINE_IMAGES)]
    return record_timeline(jobs, out, candidate.runtime, candidate.pipeline_batch, protocol.threads)


def _conclude(
    candidate: _Candidate,
    label: str,
    accuracy: Accuracy | None,
    process: tuple[Usage | None, str | None],
    timeline: tuple[Lane, ...],
    threads: int | None,
) -> ModelResult:
    passes = candidate.passes
    return ModelResult(
        label=label,
        runtime=candidate.runtime.name,
        file=candidate.file.name,
        sha256=hashlib.sha256(candidate.file.read_bytes()).hexdigest(),
        bytes=candidate.file.stat().st_size,
        card=candidate.runtime.card,
        latencies=candidate.latencies,
        stages=StageSplit(
            batch_size=candidate.pipeline_batch,
            images=len(candidate.sample),
            cores=available_cores(),
            wall_ms={s: tuple(p.wall_ms[s] for p in passes) for s in STAGES},
            cpu_ms={s: tuple(p.cpu_ms[s] for p in passes) for s in STAGES},
            on_device=on_device(candidate.runtime),
            megapixels=passes[-1].megapixels,
            crowded_ms=tuple(candidate.crowded),
            threads=threads,
        ),
        end_to_end=candidate.end_to_end,
        accuracy=accuracy,
        process=process[0],
        process_note=process[1],
        timeline=timeline,
    )
