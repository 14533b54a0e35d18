"""The benchmark itself: load the models, measure each in turn, several times over, score the masks they wrote.

Everything that is repeated is interleaved: repeat 1 of every model, then repeat 2 of every model, so that a machine
that slows down does so for all of them.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from isicrt.benchmarks.accuracy import score_masks
from isicrt.benchmarks.environment import read_environment
from isicrt.benchmarks.latency import Latency, measure_latency
from isicrt.benchmarks.result import ModelResult, Protocol, Report
from isicrt.benchmarks.stages import StageSplit, stage_pass
from isicrt.benchmarks.throughput import EndToEnd, run_once
from isicrt.benchmarks.workload import Workload, decoded_batch, open_workload, readable_sample, render_workload
from isicrt.engine.errors import SettingsError
from isicrt.engine.pipeline import STAGES, RunSummary, available_cores
from isicrt.engine.runtime import Runtime, open_runtime
from isicrt.engine.shipped import resolve
from isicrt.engine.sources import find_jobs

Progress = Callable[[str, int, int], None]
"""Called between measurements, never during one: what comes next, steps done, steps in all."""


@dataclass
class _Candidate:
    """One model while it is being measured."""

    file: Path
    runtime: Runtime
    batch_sizes: tuple[int, ...]
    sample: list[Path]
    windows: dict[int, list[tuple[float, ...]]] = field(default_factory=dict)
    wall_ms: list[dict[str, float]] = field(default_factory=list)
    cpu_ms: list[dict[str, float]] = field(default_factory=list)
    runs: list[RunSummary] = field(default_factory=list)
    failures: tuple[str, ...] = ()

    @property
    def pipeline_batch(self) -> int:
        return self.batch_sizes[-1]


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
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="isicrt-bench-")))
        total = len(files) * (protocol.repeats + 1) + 1
        if images is None:
            on_step(f"rendering {rendered} images", 0, total)
            workload = render_workload(folder, rendered)
        else:
            workload = open_workload(images, masks, folder / "masks")
        _read_ahead(workload.files)
        candidates = [_prepare(f, r, protocol, workload) for f, r in zip(files, runtimes, strict=True)]
        labels = _labels(candidates)
        done = 1
        for repeat in range(protocol.repeats + 1):
            for n, candidate in enumerate(candidates):
                what = f"run {repeat} of {protocol.repeats}" if repeat else "warming up"
                on_step(f"{labels[n]}: {what}", done, total)
                out = folder / f"masks-{n}"
                if repeat:
                    _measure(candidate, protocol, workload, out)
                else:
                    _warm_up(candidate, protocol, workload, out)
                done += 1
        results = tuple(
            _conclude(candidate, labels[n], workload, folder / f"masks-{n}") for n, candidate in enumerate(candidates)
        )
        return Report(
            command=command,
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            environment=environment,
            workload=workload.describe(),
            protocol=protocol,
            models=results,
        )


def _read_ahead(files: Sequence[Path]) -> None:
    """Bring the files into the page cache, so that the first run is like the others."""
    for file in files:
        if file.is_file():
            with suppress(OSError):  # the run will say what is wrong with it
                file.read_bytes()


def _prepare(file: Path, runtime: Runtime, protocol: Protocol, workload: Workload) -> _Candidate:
    limit = runtime.max_batch or max(protocol.batch_sizes)
    sizes = tuple(sorted({min(size, limit) for size in protocol.batch_sizes}))
    sample = readable_sample(workload, runtime.card.input_size, protocol.stage_images)
    return _Candidate(file, runtime, sizes, sample)


def _warm_up(candidate: _Candidate, protocol: Protocol, workload: Workload, out: Path) -> None:
    """The pipeline and the stages once, on a few images; the latency windows warm up by themselves."""
    few = candidate.pipeline_batch * 2
    jobs = find_jobs(workload.images, _emptied(out))[:few]
    run_once(jobs, candidate.runtime, candidate.pipeline_batch, protocol.threads)
    stage_pass(candidate.sample[:few], candidate.runtime, candidate.pipeline_batch, _emptied(out))


def _measure(candidate: _Candidate, protocol: Protocol, workload: Workload, out: Path) -> None:
    runtime = candidate.runtime
    for size in candidate.batch_sizes:
        batch = decoded_batch(candidate.sample, runtime.card.input_size, size)
        candidate.windows.setdefault(size, []).append(measure_latency(runtime, batch, protocol.window))
    wall, cpu = stage_pass(candidate.sample, runtime, candidate.pipeline_batch, _emptied(out))
    candidate.wall_ms.append(wall)
    candidate.cpu_ms.append(cpu)
    jobs = find_jobs(workload.images, _emptied(out))
    summary, candidate.failures = run_once(jobs, runtime, candidate.pipeline_batch, protocol.threads)
    candidate.runs.append(summary)


def _conclude(candidate: _Candidate, label: str, workload: Workload, out: Path) -> ModelResult:
    return ModelResult(
        label=label,
        runtime=candidate.runtime.name,
        file=candidate.file.name,
        sha256=hashlib.sha256(candidate.file.read_bytes()).hexdigest(),
        bytes=candidate.file.stat().st_size,
        card=candidate.runtime.card,
        latencies=tuple(Latency(size, tuple(windows)) for size, windows in candidate.windows.items()),
        stages=StageSplit(
            batch_size=candidate.pipeline_batch,
            images=len(candidate.sample),
            cores=available_cores(),
            wall_ms={s: tuple(p[s] for p in candidate.wall_ms) for s in STAGES},
            cpu_ms={s: tuple(p[s] for p in candidate.cpu_ms) for s in STAGES},
        ),
        end_to_end=EndToEnd(candidate.pipeline_batch, tuple(candidate.runs), candidate.failures),
        accuracy=score_masks(out, workload.truths) if workload.truths else None,
    )


def _labels(candidates: Sequence[_Candidate]) -> list[str]:
    """The models' names; with the file where two share a name, with a number where they share that too."""
    names = Counter(c.runtime.card.name for c in candidates)
    labels = [f"{n} ({c.file.name})" if names[n := c.runtime.card.name] > 1 else n for c in candidates]
    return [
        f"{label} #{labels[: n + 1].count(label)}" if labels.count(label) > 1 else label
        for n, label in enumerate(labels)
    ]


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
