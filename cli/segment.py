"""`isicrt segment`: images into masks, with progress, a summary and a report."""

from __future__ import annotations

import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from isicrt._command import NamedPath, Number
from isicrt.cli.outcome_file import OutcomeCsv, OutcomeJson
from isicrt.cli.plain_text import printable
from isicrt.cli.plan_notice import say_plan_is_code
from isicrt.cli.progress import Progress
from isicrt.cli.result_files import check_results
from isicrt.cli.segment_notices import among_truths, idle_lines, truth_lines
from isicrt.cli.segment_report import Tally, count_run, describe_run, finish_run, say_end
from isicrt.cli.stopping import leave_if_stuck, stop_signals
from isicrt.engine.errors import IsicrtError, SettingsError

if TYPE_CHECKING:
    from isicrt.engine.outcome import Outcome, RunSummary


_IMAGES_UNTIL_GIVEN_BACK = 1000
"""So that memory does not grow with the number of images."""


@click.command("segment")
@click.argument("images", nargs=-1, required=True, type=NamedPath(path_type=Path))
@click.option(
    "--out",
    required=True,
    type=NamedPath(file_okay=False, path_type=Path),
    help="Folder for the masks and for the journal. It is made.",
)
@click.option(
    "--resume/--overwrite",
    "resume",
    default=True,
    show_default=True,
    help="Skip the images whose mask an earlier run made with the same model and settings, or somebody corrected, "
    "or make all masks again.",
)
@click.option("--retry-failed", is_flag=True, help="Try unchanged files again that failed because of what is in them.")
@click.option("--model", metavar="FILE|NAME", help="An .onnx or .plan, or a shipped model. [default: unet-light-int8]")
@click.option(
    "--batch-size",
    type=click.IntRange(1, 4096),
    help="Images that go through the network together, at most. [default: 8; of a plan, the largest that it takes]",
)
@click.option(
    "--threshold",
    type=Number(0, 1, min_open=True, max_open=True),
    help="A pixel whose probability is above it is lesion. [default: the model's]",
)
@click.option(
    "--threads", type=click.IntRange(1, 256), help="CPU threads to use. [default: as many as keep all cores busy]"
)
@click.option(
    "--processes",
    type=click.IntRange(0, 255),
    help="Processes beside this one: that segment images, on one thread each, whatever --threads says; where a GPU "
    "decodes, that finish masks, and as many that read files. None with --overlay, nor where the CPU does everything "
    "with --isolate always. [default: one a core from 4 cores and 1,000 images on; where a GPU decodes, one for two "
    "from 8 cores on]",
)
@click.option(
    "--mask-bits",
    type=click.Choice(["1", "8"]),
    default="1",
    show_default=True,
    help="Bits a pixel. OpenCV and scorers read 0 and 255 from either, Pillow reads 1 bit as booleans.",
)
@click.option(
    "--overlay",
    type=NamedPath(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Also draw each mask's outline on its image, as a JPEG of at most 1024 pixels a side.",
)
@click.option(
    "--json",
    "report_path",
    type=NamedPath(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write settings, versions and every image's outcome as JSON.",
)
@click.option(
    "--csv",
    "table_path",
    type=NamedPath(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a row for each image: mask, size, the lesion's share of it, confidence, a note where the image looks "
    "damaged, has an EXIF orientation or is the first of several in its file, or why there is no mask.",
)
@click.option(
    "--report",
    "summary_path",
    type=NamedPath(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a summary as JSON: counts, settings, versions, the model's hash, times.",
)
@click.option(
    "--on-error",
    type=click.Choice(["skip", "fail"]),
    default="skip",
    show_default=True,
    help="What an image that fails does to the run: nothing, or it ends it.",
)
@click.option("--max-failures", type=click.IntRange(0), metavar="N", help="End the run when more than N images failed.")
@click.option(
    "--on-clash",
    type=click.Choice(["refuse", "fail", "extension"]),
    default="refuse",
    show_default=True,
    help="Where two images claim one mask (a.jpg beside a.png): refuse to start, fail these images, or name the masks "
    "a.jpg.png and a.png.png.",
)
@click.option(
    "--max-megapixels",
    type=Number(0, 10_000, min_open=True),
    default=400,
    show_default=True,
    help="Refuse larger images from their header.",
)
@click.option(
    "--isolate",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Which images are decoded in processes of their own, so that a crash costs one image: auto is all but "
    "ordinary JPEG and PNG.",
)
@click.option(
    "--decode",
    type=click.Choice(["auto", "gpu", "cpu"]),
    default="auto",
    show_default=True,
    help="Where images are decoded and masks restored: auto is the GPU for a plan, if all is there that it takes. What "
    "the GPU cannot decode, all but ordinary JPEG, is decoded on the CPU.",
)
@click.option(
    "--cpu-share",
    type=Number(0, 1),
    default=0,
    show_default=True,
    help="Share of the JPEGs that CPU threads decode beside the GPU; the same ones in each run.",
)
@click.option(
    "--hardware-decoder-load",
    type=Number(0, 1),
    default=0.35,
    show_default=True,
    help="Share of each batch's JPEGs for the hardware decoder that data-centre GPUs such as A100 and H100 have; their "
    "CUDA cores decode the rest. Other GPUs decode all on their CUDA cores.",
)
@click.option(
    "--decode-timeout",
    type=Number(0, min_open=True),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="An image that takes longer to read and decode has failed.",
)
@click.option(
    "--fsync",
    type=click.Choice(["never", "batch", "always"]),
    default="batch",
    show_default=True,
    help="Against power cuts: leave the masks to the system, bring them to the disk every ten seconds and at the end, "
    "or each before it appears.",
)
@click.pass_context
def command(
    ctx: click.Context,
    images: tuple[Path, ...],
    out: Path,
    model: str | None,
    batch_size: int | None,
    threshold: float | None,
    threads: int | None,
    processes: int | None,
    mask_bits: str,
    overlay: Path | None,
    report_path: Path | None,
    table_path: Path | None,
    summary_path: Path | None,
    resume: bool,
    retry_failed: bool,
    on_error: str,
    max_failures: int | None,
    on_clash: str,
    max_megapixels: float,
    isolate: str,
    decode: str,
    cpu_share: float,
    hardware_decoder_load: float,
    decode_timeout: float,
    fsync: str,
) -> None:
    """Segment IMAGES into masks: NAME.png for each image, at the image's own size, 0 background, 255 lesion.

    IMAGES is a folder (searched recursively), a quoted glob pattern, images, or a .txt file with a path in each line
    (relative to that file). Masks and overlays of earlier runs among them are left out. The masks lie below --out as
    the images do. What counts is the stored pixel grid: EXIF orientation is ignored.

    An image that cannot be read costs that image: the others are done, the failures are listed, and the exit code is
    1. Interrupt it when you like: a mask is there whole or not at all, and the same command goes on where it stopped.
    What became of every image stands in .isicrt-journal.jsonl among the masks, a line of JSON each.

    A .plan is code that runs on this machine: open only plans that you trust. One whose SHA-256 is not that in its
    model card is refused unopened.
    """
    from isicrt.engine import shipped
    from isicrt.engine.gpu_stages import check_decode, open_chain
    from isicrt.engine.heap import give_back, keep_buffers, share_heaps
    from isicrt.engine.isolation import ImageDecoder
    from isicrt.engine.ledger import Ledger
    from isicrt.engine.model_identity import mask_settings
    from isicrt.engine.overlay import OverlayFolder
    from isicrt.engine.pipeline import available_cores, default_processes, run_jobs
    from isicrt.engine.runtime import ConcurrentRuntime, open_runtime
    from isicrt.engine.sources import find_jobs

    if default_processes(available_cores()):  # many cores, and many threads
        share_heaps(available_cores() // 2)
    keep_buffers()
    started = time.perf_counter()
    if isolate == "always":
        if decode == "gpu":
            raise SettingsError("--isolate always keeps every decoder out of this process, and --decode gpu runs in it")
        decode = "cpu"
    if on_error == "fail" and max_failures is not None:
        raise SettingsError("--on-error fail ends the run at the first failure: leave --max-failures away")
    results = {"--json": report_path, "--csv": table_path, "--report": summary_path}
    check_results(results, (out, overlay), reads=images, make=False)
    jobs = find_jobs(images, out, overlays=overlay, on_clash=on_clash)
    for line in (*jobs.left_out.lines(), *truth_lines(jobs), *among_truths(out)):
        click.echo(printable(line), err=True)
    model_path = shipped.resolve(model)
    check_decode(decode, model_path)
    say_plan_is_code(model_path)
    with (
        open_runtime(model_path, threads=threads) as runtime,
        open_chain(runtime, decode, threshold=threshold, hardware_load=hardware_decoder_load, threads=threads)
        or nullcontext() as chain,
        warnings.catch_warnings(),
    ):
        # Pillow warns of odd metadata; what matters here is whether the pixels can be read.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        card = runtime.card
        batch_size = batch_size or runtime.max_batch or 8
        settings = {
            "images": [str(argument) for argument in images],
            "out": str(out),
            "batch_size": batch_size,
            "threshold": card.threshold if threshold is None else threshold,
            "threads": threads,
            "decode": "cpu" if chain is None else "gpu",
            "mask_bits": int(mask_bits),
            "overlay": None if overlay is None else str(overlay),
        }
        loaded = ctx.get_parameter_source("hardware_decoder_load") is ParameterSource.COMMANDLINE
        for option, given in (("--cpu-share", cpu_share > 0), ("--hardware-decoder-load", loaded)):
            if given and chain is None:
                click.echo(f"{option} does nothing here: no GPU decodes, and the CPU decodes every image", err=True)
        for line in idle_lines(
            processes=processes,
            threads=threads,
            isolate=isolate,
            overlay=overlay is not None,
            cpu_alone=chain is None and isinstance(runtime, ConcurrentRuntime),
        ):
            click.echo(line, err=True)
        about = describe_run(model_path, runtime, settings)
        tally = Tally(len(jobs))
        with (
            Ledger(
                out,
                jobs,
                model={name: about["model"][name] for name in ("name", "sha256")},
                settings=mask_settings(card, threshold, int(mask_bits)),
                existing="resume" if resume else "overwrite",
                retry_failed=retry_failed,
                overlays=overlay,
                fsync=fsync,
            ) as ledger,
            ImageDecoder(isolate, timeout=decode_timeout, max_pixels=round(max_megapixels * 1e6)) as decoder,
            nullcontext(
                None if overlay is None else OverlayFolder(out, overlay, run=ledger.run, decode=decoder)
            ) as draw,  # before the lists, which may go there
            OutcomeJson(report_path, about) as file,
            OutcomeCsv(table_path) as table,
            Progress(tally.total) as progress,
            stop_signals() as should_stop,
        ):
            if not ledger.locked:
                click.echo(f"{printable(out)}: this file system has no locks; start no second run there", err=True)

            def note(outcome: Outcome) -> None:
                tally.add(outcome)
                file.add(outcome)
                table.add(outcome)
                progress.advance(computed=not outcome.skipped and outcome.error is None)
                if tally.reached % _IMAGES_UNTIL_GIVEN_BACK == 0:
                    give_back()

            def unwritten() -> IsicrtError | None:
                return file.problem or table.problem

            def end(
                status: str, problem: IsicrtError | None = None, summary: RunSummary | None = None
            ) -> tuple[IsicrtError | None, Path | None]:
                decoded = None if chain is None else chain.decoded
                counts = count_run(tally, status, time.perf_counter() - started, summary, decoded)
                asked = {"settings": {**settings, **extra}, "journal": str(ledger.journal)}
                left_out = {"left_out": jobs.left_out.describe()}
                return finish_run(
                    counts, problem, (table, file), ledger, summary_path, about={**about, **asked}, left_out=left_out
                )

            extra = {
                "resume": resume,
                "retry_failed": retry_failed,
                "on_error": on_error,
                "max_failures": max_failures,
                "on_clash": on_clash,
                "max_megapixels": max_megapixels,
                "isolate": isolate,
                "cpu_share": cpu_share,
                "hardware_decoder_load": hardware_decoder_load,
                "decode_timeout": decode_timeout,
                "fsync": fsync,
                "processes": processes,
            }
            status, stopped, summary = "stopped", None, None
            try:
                summary = run_jobs(
                    jobs,
                    runtime,
                    batch_size=batch_size,
                    threshold=threshold,
                    threads=threads,
                    processes=processes,
                    mask_bits=int(mask_bits),
                    overlay=draw,
                    on_outcome=note,
                    ledger=ledger,
                    decode=decoder,
                    decode_timeout=decode_timeout,
                    max_failures=0 if on_error == "fail" else max_failures,
                    should_stop=lambda: should_stop() or unwritten() is not None,
                    chain=chain,
                    max_pixels=round(max_megapixels * 1e6),
                    cpu_share=cpu_share,
                )
            except KeyboardInterrupt:
                stopped = None if should_stop() else unwritten()
                if stopped is None:
                    problem, _ = end("interrupted")
                    progress.close()
                    if problem is not None:
                        click.echo(str(problem), err=True)
                    again = "the same command goes on from here"
                    if not resume:
                        again = "the same command without --overwrite does what has no mask of these settings yet"
                    click.echo(f"Stopped after {tally.reached} of {len(jobs)} images; {again}.", err=True)
                    leave_if_stuck(decoder.close)
                    raise
            except IsicrtError as error:
                stopped = error
            else:
                status = "failed" if tally.failed else "done"
            stopped, where = end(status, stopped, summary)
            progress.close()
            tally.list_failures(where)
            tally.say_notices()
            if stopped is not None:
                raise stopped
    if summary is not None:
        say_end(summary, out, f"model {card.name}, {runtime.name}")
    if tally.failed:
        ctx.exit(1)
