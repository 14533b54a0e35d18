"""A run in shares: processes segment images whole. The same masks and journal as in a run in blocks, and a process that
is lost costs nothing."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from isicrt.engine import pipeline, share_process, share_run
from isicrt.engine.blocks import BlockRun
from isicrt.engine.errors import ModelError
from isicrt.engine.isolation import ImageDecoder
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.outcome import Outcome
from isicrt.engine.output import OutputError
from isicrt.engine.pipeline import run_jobs
from isicrt.engine.pixel_budget import LARGE_PIXELS
from isicrt.engine.share_process import Read, Share, ShareProcess, Unreadable, share_size
from isicrt.engine.sources import find_jobs
from isicrt.engine.task_process import MOST_AT_ONCE
from tests.engine.hostile_files import make_folder
from tests.engine.share_folder import (
    join_threads,
    journal_lines,
    lines_of_masks,
    masks_in,
    pixels_in,
    run_folder,
    share_task,
)

pytestmark = pytest.mark.usefixtures("no_process_is_left")


@pytest.fixture
def runtime(darkness_onnx: Path) -> Iterator[OnnxRuntime]:
    with OnnxRuntime(darkness_onnx, threads=1) as runtime:
        yield runtime


def test_masks_and_journal_are_those_of_a_run_in_blocks(
    many: Path, tmp_path: Path, runtime: OnnxRuntime, shared: list[int]
) -> None:
    run_folder(many, tmp_path / "blocks", runtime, processes=0)
    assert not shared
    summary = run_folder(many, tmp_path / "shares", runtime, processes=2)
    assert (summary.images, summary.failed) == (60, 0)
    assert sum(shared) == 60
    assert max(shared) <= MOST_AT_ONCE
    assert all(summary.stage_seconds[stage] > 0 for stage in pipeline.STAGES)
    assert pixels_in(tmp_path / "blocks") == pixels_in(tmp_path / "shares")
    assert lines_of_masks(tmp_path / "blocks") == lines_of_masks(tmp_path / "shares")
    again = run_folder(many, tmp_path / "shares", runtime, processes=2)
    assert (again.images, again.skipped) == (0, 60)


@pytest.mark.usefixtures("shared")
def test_a_folder_of_strangers(tmp_path: Path, runtime: OnnxRuntime) -> None:
    folder = tmp_path / "in"
    make_folder(folder)
    run_folder(folder, tmp_path / "blocks", runtime, processes=0)
    summary = run_folder(folder, tmp_path / "shares", runtime, processes=2)
    assert summary.failed > 10
    assert summary.images - summary.failed > 10
    assert pixels_in(tmp_path / "blocks") == pixels_in(tmp_path / "shares")
    assert lines_of_masks(tmp_path / "blocks") == lines_of_masks(tmp_path / "shares")
    # Files that failed for what is in them are known again, as they are after any other run.
    runs = [run_folder(folder, tmp_path / name, runtime, processes=0) for name in ("blocks", "shares")]
    assert runs[0].failed == runs[1].failed == summary.failed


def test_large_images_take_turns_in_the_process_of_the_run(
    many: Path, tmp_path: Path, runtime: OnnxRuntime, shared: list[int]
) -> None:
    side = math.isqrt(LARGE_PIXELS) + 1
    (many / "07.jpg").write_bytes(simplejpeg.encode_jpeg(np.full((side, side, 3), 200, np.uint8), quality=50))
    ended: list[Outcome] = []
    summary = run_folder(many, tmp_path / "out", runtime, processes=2, on_outcome=ended.append)
    assert (summary.images, summary.failed, sum(shared)) == (60, 0, 59)
    (large,) = (outcome for outcome in ended if outcome.native_size == (side, side))
    assert large.job.image.name == "07.jpg"


def test_while_a_process_loads_its_network_threads_work(
    many: Path, tmp_path: Path, runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ShareProcess, "is_ready", False)
    monkeypatch.setattr(ShareProcess, "read", lambda *_: pytest.fail("a process was asked"))
    summary = run_folder(many, tmp_path / "out", runtime, processes=2)
    assert (summary.images, summary.failed) == (60, 0)


def test_a_share_is_read_and_then_written(many: Path, tmp_path: Path, runtime: OnnxRuntime) -> None:
    (many / "00.jpg").write_bytes(b"\xff\xd8\xff rubbish")
    (many / "01.webp").write_bytes((many / "01.jpg").read_bytes()[:0] + b"RIFF\0\0\0\0WEBP")
    paths = [many / name for name in ("00.jpg", "01.webp", "02.jpg", "03.jpg")]
    process = ShareProcess(share_task(runtime), 0, 60)
    try:
        while not process.is_ready:
            time.sleep(0.01)
        share = process.read(paths)
        damaged, foreign, *read = share.images
        assert isinstance(damaged, Unreadable)
        assert damaged.reason.startswith(f"{paths[0]}: cannot be decoded")
        assert damaged.damaged is not None
        assert foreign is None
        assert [type(image) for image in read] == [Read, Read]
        assert share.decode_seconds > 0
        assert share.infer_seconds > 0
        assert list(tmp_path.glob("*.png")) == []
        (done,) = process.finish([(3, tmp_path / "3.png")])
        assert done is not None
        assert done.size == (tmp_path / "3.png").stat().st_size
    finally:
        process.close(5)


def test_a_share_of_slow_images_ends_early(many: Path, runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share_process, "_READ_SECONDS", 0)
    task = share_task(runtime, run=os.getppid())
    task([])
    share = task(sorted(many.iterdir())[:9])
    assert isinstance(share, Share)
    assert len(share.images) == runtime.at_once == 2


@pytest.mark.parametrize("change", ["digest", "path"])
def test_another_model_is_not_taken(
    many: Path, tmp_path: Path, darkness_onnx: Path, shared: list[int], change: str
) -> None:
    own = tmp_path / "own.onnx"
    shutil.copy(darkness_onnx, own)
    with OnnxRuntime(own, threads=1) as runtime:
        task = share_task(runtime, run=os.getppid())
        if change == "digest":
            task.open = partial(OnnxRuntime, own, threads=1, digest="0" * 64)
            with pytest.raises(ModelError, match=r"own\.onnx: was changed since it was first read"):
                task([])
        own.unlink()
        summary = run_jobs(find_jobs(many, tmp_path / "out"), runtime, processes=2)
    assert (summary.images, summary.failed) == (60, 0)
    assert not shared


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("when", ["read", "finish"])
def test_a_process_that_is_lost_costs_nothing(
    many: Path, tmp_path: Path, runtime: OnnxRuntime, shared: list[int], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    asked = getattr(ShareProcess, when)
    lost: list[int] = []

    def lose(self: ShareProcess, *question: Any) -> Any:
        if len(lost) < 3 and self.process.pid is not None:
            lost.append(self.process.pid)
            os.kill(self.process.pid, signal.SIGKILL)
        return asked(self, *question)

    monkeypatch.setattr(ShareProcess, when, lose)
    summary = run_folder(many, tmp_path / "out", runtime, processes=2)
    assert lost
    assert (summary.images, summary.failed) == (60, 0)
    assert len(masks_in(tmp_path / "out")) == 60
    assert [line["status"] for line in journal_lines(tmp_path / "out")] == ["done"] * 60


def test_a_process_that_hangs_is_given_up(
    many: Path, tmp_path: Path, runtime: OnnxRuntime, shared: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = share_run.ShareProcess.read

    def hang(self: ShareProcess, paths: Sequence[Path]) -> Share:
        if self.process.pid is not None and len(shared) > 1:
            os.kill(self.process.pid, signal.SIGSTOP)
        return ask(self, paths)

    monkeypatch.setattr(ShareProcess, "read", hang)
    summary = run_folder(many, tmp_path / "out", runtime, processes=2, decode_timeout=1)
    assert (summary.images, summary.failed) == (60, 0)


def test_what_is_no_process_of_ours_leaves_everything_to_the_threads(
    many: Path, tmp_path: Path, runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    summary = run_folder(many, tmp_path / "out", runtime, processes=2)
    assert (summary.images, summary.failed) == (60, 0)


@pytest.mark.usefixtures("shared")
def test_a_run_ends_with_its_folder_and_says_what_was_done(many: Path, tmp_path: Path, runtime: OnnxRuntime) -> None:
    out = tmp_path / "out"

    def move(_: Outcome) -> None:
        if out.is_dir():
            out.rename(tmp_path / "elsewhere")

    with pytest.raises(OutputError, match="cannot be written any more"):
        run_folder(many, out, runtime, processes=2, on_outcome=move)
    assert not out.exists()
    done = [line["mask"] for line in journal_lines(tmp_path / "elsewhere") if line["status"] == "done"]
    assert set(done) == set(masks_in(tmp_path / "elsewhere"))


@pytest.mark.usefixtures("shared")
def test_an_interrupted_run_ends_soon_and_goes_on(many: Path, tmp_path: Path, runtime: OnnxRuntime) -> None:
    interrupted: list[float] = []

    def interrupt(_: Outcome) -> None:
        if not interrupted:
            interrupted.append(time.monotonic())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_folder(many, tmp_path / "out", runtime, processes=2, on_outcome=interrupt)
    assert time.monotonic() - interrupted[0] < 3
    join_threads()
    assert {line["mask"] for line in journal_lines(tmp_path / "out")} == set(masks_in(tmp_path / "out"))
    again = run_folder(many, tmp_path / "out", runtime, processes=2)
    assert (again.images + again.skipped, again.failed) == (60, 0)
    assert again.skipped > 0


@pytest.mark.parametrize("options", [{"isolate": "always"}, {}])
def test_decoders_that_are_this_process_s_alone(
    many: Path, tmp_path: Path, runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch, options: dict[str, str]
) -> None:
    monkeypatch.setattr(pipeline, "ShareRun", lambda *_: pytest.fail("processes were started"))
    with ImageDecoder(**options) as decoder:
        own = decoder if options else (lambda path, size: decoder(path, size))
        summary = run_jobs(find_jobs(many, tmp_path / "out")[:4], runtime, processes=2, decode=own)
    assert (summary.images, summary.failed) == (4, 0)


def test_few_images_are_not_worth_a_process(
    many: Path, tmp_path: Path, runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    for kind in (BlockRun, share_run.ShareRun):

        def noted(self: Any, *arguments: Any, kind: Any = kind, start: Any = kind.__init__) -> None:
            if type(self) is kind:
                used.append(kind.__name__)
            start(self, *arguments)

        monkeypatch.setattr(kind, "__init__", noted)
    jobs = list(find_jobs(many, tmp_path / "out"))
    monkeypatch.setattr(pipeline, "MIN_SHARED_JOBS", 40)
    monkeypatch.setattr(pipeline, "available_cores", lambda: 2)
    run_jobs(jobs, runtime, threads=4)  # more threads than cores are no reason
    monkeypatch.setattr(pipeline, "available_cores", lambda: 4)
    run_jobs(jobs[:39], runtime, threads=4)
    run_jobs(jobs[:40], runtime, threads=4)
    run_jobs(iter(jobs[:2]), runtime, threads=4)  # nobody knows how many
    run_jobs(jobs, runtime, threads=3)
    assert used == ["BlockRun", "BlockRun", "ShareRun", "ShareRun", "BlockRun"]


def test_shares_are_smaller_in_the_end() -> None:
    assert share_size(None, 16, 2) == MOST_AT_ONCE
    assert share_size(10_000, 16, 2) == MOST_AT_ONCE
    assert [share_size(left, 4, 2) for left in (100, 40, 20, 8, 1, 0)] == [14, 6, 4, 2, 2, 2]
    assert share_size(20, 4, 1) == 3
