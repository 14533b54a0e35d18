"""Images into masks: a run over any number of jobs, from its settings to its summary.

The threads are in `isicrt.engine.blocks` where the CPU does everything with few cores, in `isicrt.engine.share_run`
where it has many, and else in `isicrt.engine.stages`. The calling thread only collects outcomes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sized
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from isicrt.engine.blocks import BlockRun
from isicrt.engine.channel import Stopped
from isicrt.engine.cores import available_cores
from isicrt.engine.cpu_runtime import CpuRuntime
from isicrt.engine.errors import DataError, SettingsError
from isicrt.engine.finishing import Finishing
from isicrt.engine.images import MAX_PIXELS
from isicrt.engine.import_path import NO_PYTHON, own_python
from isicrt.engine.isolation import DECODE_TIMEOUT, ImageDecoder
from isicrt.engine.ledger import Ledger
from isicrt.engine.opencv_threads import WITHOUT_OPENCV_THREADS
from isicrt.engine.outcome import FAILURES_NAMED, STAGES, Outcome, RunSummary
from isicrt.engine.read_process import ReadAll
from isicrt.engine.routes import BlockRoute, Decode, HostRoute, Route
from isicrt.engine.run_threads import THREAD_PREFIX, Overlay, RunThreads, StageSettings
from isicrt.engine.runtime import ConcurrentRuntime, Runtime
from isicrt.engine.share_process import SegmentAll
from isicrt.engine.share_run import ShareRun
from isicrt.engine.sources import Job
from isicrt.engine.stages import Pipeline
from isicrt.engine.task_process import HAS_TIME_LIMIT, MIN_CORES

if TYPE_CHECKING:
    from isicrt.engine.gpu_chain import GpuChain

__all__ = [
    "STAGES",
    "THREAD_PREFIX",
    "FailureLimitError",
    "Outcome",
    "Overlay",
    "RunSummary",
    "available_cores",
    "default_processes",
    "default_threads",
    "default_workers",
    "run_jobs",
]


MIN_SHARE_CORES = 4
"""Fewer cores are kept busy by threads alone."""
MIN_SHARED_JOBS = 1000
"""Images for which it is worth to start processes: each loads the network in the time of a hundred images."""
MOST_PROCESSES = 255
"""So many names for their temporary files there are."""


class FailureLimitError(DataError):
    """More images failed than a run was to put up with."""


def run_jobs(
    jobs: Iterable[Job],
    runtime: Runtime,
    *,
    batch_size: int = 8,
    threshold: float | None = None,
    threads: int | None = None,
    decode_threads: int | None = None,
    write_threads: int | None = None,
    processes: int | None = None,
    mask_bits: int = 1,
    overlay: Overlay | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
    ledger: Ledger | None = None,
    decode: Decode | None = None,
    decode_timeout: float = DECODE_TIMEOUT,
    max_failures: int | None = None,
    should_stop: Callable[[], bool] | None = None,
    chain: GpuChain | None = None,
    max_pixels: int = MAX_PIXELS,
    cpu_share: float = 0.0,
) -> RunSummary:
    """Segment images into mask files. An image that cannot be read, or whose mask cannot be written, costs itself only.

    A run that stops early takes no more images, finishes what it has where that is quick, and
    leaves the rest: no mask is ever half there.

    Args:
        jobs: taken as they are needed, by a thread of the run; each ends in one outcome.
        runtime: used by this run and by nobody else meanwhile; by one thread of it, or by several where it is a
            `isicrt.engine.runtime.ConcurrentRuntime`.
        batch_size: images in one network call; of a run in blocks, in a block, in whole calls.
        threshold: in (0, 1); None for the model card's.
        threads: the cores that the run is to take; None for `available_cores`. From them follow those below.
        decode_threads, write_threads: of a run in stages, which it is where one of them is given, with a chain, or
            where the runtime is no `isicrt.engine.runtime.ConcurrentRuntime`. All others are runs in blocks, with
            `default_workers` threads that do everything, or in shares, with `processes`.
        processes: of a run in blocks: that segment images, each from its file to its mask, beside this one. Of a run
            in stages: that finish masks, each with a write thread that does nothing else, and no other write threads;
            with a `chain` each decode thread has one too, that reads files. 0 for none; None for `default_processes`,
            or none where `write_threads` are given, or for few jobs. With an `overlay`, which is drawn in this
            process, there are none; of a run in blocks none either where `decode` takes workers for all images.
        mask_bits: 1 or 8, see `write_mask`.
        overlay: called with the job and its mask, bool H x W, after the mask was written, by several threads.
        on_outcome: called for each image as it ends, in no fixed order, in the calling thread.
        ledger: knows what is done already, writes the masks and keeps the journal; None: every image is segmented
            and every mask written.
        decode: an image into pixels; None for an `ImageDecoder` of the run's own.
        decode_timeout: seconds after which an image has failed whose decoding does not end.
        max_failures: the run stops when more images have failed.
        should_stop: asked several times a second; once it says so the run stops as by Ctrl-C.
        chain: decodes and restores on the GPU, see `isicrt.engine.gpu_stages.open_chain`; made of `runtime`, with this
            threshold. `decode` has what the GPU does not decode.
        max_pixels: with a chain: a JPEG of more is for `decode` to refuse.
        cpu_share: with a chain: the share of the JPEGs, in [0, 1], that CPU threads decode beside the GPU.

    Raises:
        SettingsError: an argument out of its range, or a batch that the model was not built for.
        ModelError: the network failed on a batch. Masks that were written stay.
        OutputError: the folder of the masks failed as a whole: a full disk, a lost mount.
        FailureLimitError: see `max_failures`.
        DataError: from `jobs`.
        KeyboardInterrupt: Ctrl-C, or `should_stop`.
    """
    if not 1 <= batch_size <= (runtime.max_batch or batch_size):
        limit = "at least 1" if runtime.max_batch is None else f"1 to {runtime.max_batch}"
        raise SettingsError(f"batch size {batch_size}: model '{runtime.card.name}' takes {limit}")
    threshold = runtime.card.threshold if threshold is None else threshold
    if not 0 < threshold < 1:
        raise SettingsError(f"threshold {threshold}: must lie between 0 and 1")
    if mask_bits not in (1, 8):
        raise SettingsError(f"mask bits {mask_bits}: must be 1 or 8")
    if chain is not None and (chain.card != runtime.card or chain.threshold != threshold):
        raise SettingsError(f"the chain has another model or threshold ({chain.threshold}) than the run ({threshold})")
    if threads is not None and threads < 1:
        raise SettingsError(f"threads ({threads}): must be at least 1")
    cores, on_gpu = threads or available_cores(), chain is not None
    in_stages = on_gpu or not (decode_threads is write_threads is None and isinstance(runtime, ConcurrentRuntime))
    if processes is None:
        # More threads than cores may be asked for; more processes than cores would be slower.
        processes = default_processes(min(cores, available_cores()), on_gpu=on_gpu) if write_threads is None else 0
        if in_stages and not on_gpu:  # finishing a mask is a seventh to a quarter of the work
            processes = processes // 4 if cores >= MIN_CORES else 0
        elif not in_stages and isinstance(jobs, Sized) and len(jobs) < MIN_SHARED_JOBS:
            processes = 0
    processes = 0 if overlay is not None else processes
    decoders, writers = default_threads(cores, on_gpu=on_gpu)
    decoders = decoders if decode_threads is None else decode_threads
    writers = writers if write_threads is None else write_threads
    if not 0 <= processes <= MOST_PROCESSES:
        raise SettingsError(f"processes ({processes}): must be 0 to {MOST_PROCESSES}")
    if processes and own_python() is None:
        raise SettingsError(f"processes ({processes}): {NO_PYTHON}. Use 0 or None")
    if decoders < 1 or writers < 1:
        raise SettingsError("decode and write threads: at least 1 of each is needed")
    if not 0 <= cpu_share <= 1:
        raise SettingsError(f"CPU share {cpu_share}: must lie between 0 and 1")
    if decode_timeout <= 0 or (max_failures is not None and max_failures < 0):
        raise SettingsError(f"decode_timeout ({decode_timeout}) or max_failures ({max_failures}) is out of range")

    images = failed = skipped = without_lesion = pixels = 0
    failures: list[tuple[Path, str]] = []
    started = time.perf_counter()
    decoded_before = None if chain is None else chain.decoded
    own_decoder = ImageDecoder(timeout=decode_timeout) if decode is None else nullcontext(decode)
    with WITHOUT_OPENCV_THREADS, own_decoder as decoder:
        route: Route = HostRoute(runtime, decoder, batch_size)
        read_ahead = None
        if chain is not None:
            from isicrt.engine.gpu_stages import GpuRoute

            route = GpuRoute(chain, decoder, max_pixels=max_pixels, cpu_share=cpu_share)
            read_ahead = ReadAll(max_pixels, cpu_share) if processes and HAS_TIME_LIMIT else None
        card, output = runtime.card, None if ledger is None else ledger.output
        finishing = Finishing(threshold, mask_bits=mask_bits, output=output, **card.clean_up)
        settings = StageSettings(
            card.name, batch_size, finishing, overlay, ledger, decode_timeout, processes > 0, read_ahead
        )
        pipeline: RunThreads
        if in_stages or not isinstance(runtime, ConcurrentRuntime):
            pipeline = Pipeline(jobs, route, settings, decoders, processes or writers)
        else:
            block_route = BlockRoute(runtime, decoder, batch_size)
            task = _task(runtime, decoder, finishing, batch_size) if processes else None
            if task is not None:
                pipeline = ShareRun(jobs, block_route, settings, task, processes)
            else:
                pipeline = BlockRun(jobs, block_route, settings, default_workers(threads))
        interrupted = False
        try:
            pipeline.start()
            ended = pipeline.ended(should_stop or (lambda: False))
            while True:
                try:
                    if (outcome := next(ended, None)) is None:
                        break
                    without_lesion += outcome.found_nothing
                    if outcome.skipped:
                        skipped += 1
                    else:
                        images += 1
                        if outcome.error is not None or outcome.native_size is None:
                            failed += 1
                            if len(failures) < FAILURES_NAMED:
                                failures.append((outcome.job.image, outcome.error or ""))
                        else:
                            pixels += outcome.native_size[0] * outcome.native_size[1]
                    if on_outcome is not None:
                        on_outcome(outcome)
                except KeyboardInterrupt:
                    if interrupted:
                        raise
                    interrupted = True
                    pipeline.drain()
                    ended = pipeline.ended(lambda: False)  # an exception has ended the generator
                if max_failures is not None and failed > max_failures:
                    pipeline.drain()
        except Stopped:  # a stage failed, and its error says how, or draining took too long
            pass
        finally:
            pipeline.stop()
    if pipeline.error is not None:
        raise pipeline.error
    if interrupted or pipeline.asked_to_stop:
        raise KeyboardInterrupt
    if max_failures is not None and failed > max_failures:
        raise FailureLimitError(f"stopped: {failed} images have failed, and at most {max_failures} may")
    seconds = time.perf_counter() - started
    decoded = None if chain is None or decoded_before is None else chain.decoded - decoded_before
    return RunSummary(
        images,
        failed,
        seconds,
        pixels / 1e6,
        pipeline.busy.seconds,
        skipped,
        decoded,
        without_lesion=without_lesion,
        failures=tuple(failures),
    )


def _task(runtime: ConcurrentRuntime, decoder: Decode, finishing: Finishing, batch_size: int) -> SegmentAll | None:
    """What the processes of a run in shares do; None where the network or the decoder is this process's alone (another
    model may lie in its file by now), or where a process that hangs would hold the run."""
    trusted = decoder.trusted if isinstance(decoder, ImageDecoder) else None
    if trusted is None or not isinstance(runtime, CpuRuntime) or not HAS_TIME_LIMIT or not runtime.is_unchanged():
        return None
    return SegmentAll(runtime.in_process, trusted, finishing, batch_size, os.getpid())


def default_threads(cores: int, *, on_gpu: bool = False) -> tuple[int, int]:
    """Decode and write threads for a number of cores, `on_gpu` if the GPU decodes.

    Restoring and writing takes less time than decoding, and more than reading files for the GPU.
    """
    return (max(1, cores // 2), max(1, cores)) if on_gpu else (max(1, cores), max(1, cores // 2))


def default_workers(threads: int | None) -> int:
    """Threads of a run in blocks: as many as were asked for, and else three more than cores, so that none is idle while
    a thread waits for a disk or for Python's lock."""
    return available_cores() + 3 if threads is None else threads


def default_processes(cores: int, *, on_gpu: bool = False) -> int:
    """Processes for a number of cores: none for a few, where threads do as well. See `isicrt.engine.task_process`. None
    either in a program that has no Python beside it to start them with.

    On the CPU one for each core, which segments images. Where a GPU does most of it, one for two cores, which finishes
    masks, and as many that read.
    """
    if own_python() is None:
        return 0
    fewest, wanted = (MIN_CORES, cores // 2) if on_gpu else (MIN_SHARE_CORES, cores)
    return 0 if cores < fewest else min(wanted, MOST_PROCESSES)
