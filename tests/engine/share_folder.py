"""A run in shares for the tests of it: a folder of 60 images, and what a run makes of it."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from isicrt.engine import pipeline
from isicrt.engine.finishing import Finishing
from isicrt.engine.isolation import ImageDecoder
from isicrt.engine.journal import JOURNAL_NAME
from isicrt.engine.ledger import Ledger, mask_settings
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.outcome import RunSummary
from isicrt.engine.pipeline import THREAD_PREFIX, run_jobs
from isicrt.engine.share_process import SegmentAll
from isicrt.engine.sources import find_jobs


def run_folder(images: Path, out: Path, runtime: OnnxRuntime, **options: Any) -> RunSummary:
    """Segment a folder with a journal."""
    jobs = find_jobs(images, out, on_clash="extension")
    settings = mask_settings(runtime.card, None, 1)
    with Ledger(out, jobs, model={"sha256": "0"}, settings=settings) as ledger:
        return run_jobs(jobs, runtime, ledger=ledger, **options)


def masks_in(folder: Path) -> dict[str, bytes]:
    """Files by name."""
    return {path.name: path.read_bytes() for path in folder.rglob("*.png")}


def journal_lines(folder: Path) -> list[dict[str, Any]]:
    """Of images, by mask."""
    lines = map(json.loads, (folder / JOURNAL_NAME).read_text().splitlines())
    return sorted((line for line in lines if "status" in line), key=lambda line: str(line["mask"]))


def share_task(runtime: OnnxRuntime, finishing: Finishing | None = None, **changes: Any) -> SegmentAll:
    """What the processes of a run do."""
    own = finishing or Finishing(0.5, keep_largest=True, fill_holes=True, mask_bits=1, output=None)
    task = pipeline._task(runtime, ImageDecoder(), own, 8)
    assert task is not None
    for name, value in changes.items():
        setattr(task, name, value)
    return task


def join_threads() -> None:
    """Wait for what a run that was cut off has left."""
    for thread in threading.enumerate():
        if thread.name.startswith(THREAD_PREFIX):
            thread.join(20)
