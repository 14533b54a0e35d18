"""A run in shares for the tests of it: a folder of 60 images, and what a run makes of it."""

from __future__ import annotations

import io
import json
import threading
import zlib
from pathlib import Path
from typing import Any

from PIL import Image

from isicrt.engine import pipeline
from isicrt.engine.finishing import Finishing
from isicrt.engine.isolation import ImageDecoder
from isicrt.engine.journal import JOURNAL_NAME, read_name
from isicrt.engine.ledger import Ledger
from isicrt.engine.model_identity import mask_settings
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


def pixels_in(folder: Path) -> dict[str, tuple[str, tuple[int, int], bytes]]:
    """Mode, size and pixels of the masks, by name. Their files may differ: once, in a run that had the cores to share
    with another, four of 61 were packed in other ways than their like."""
    pixels = {}
    for name, data in masks_in(folder).items():
        with Image.open(io.BytesIO(data)) as mask:
            pixels[name] = (mask.mode, mask.size, mask.tobytes())
    return pixels


def journal_lines(folder: Path) -> list[dict[str, Any]]:
    """Of images, by mask."""
    lines = map(json.loads, (folder / JOURNAL_NAME).read_text().splitlines())
    return sorted((line for line in lines if "status" in line), key=lambda line: str(line["mask"]))


def lines_of_masks(folder: Path) -> list[dict[str, Any]]:
    """The journal's lines of images, without what they say of the masks' files, which is true."""
    lines = journal_lines(folder)
    for line in lines:
        if line["status"] == "done":
            data = (folder / str(read_name(line["mask"]))).read_bytes()
            assert (line.pop("mask_size"), line.pop("mask_crc")) == (len(data), zlib.crc32(data))
    return lines


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
