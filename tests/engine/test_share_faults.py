"""A run in shares whose threads are given up, or whose processes hang, end, or are of no use: nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from isicrt.engine import pipeline, share_run
from isicrt.engine.channel import Stopped
from isicrt.engine.finishing import Finished, Finishing
from isicrt.engine.isolation import ImageDecoder
from isicrt.engine.ledger import Ledger
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.outcome import Outcome
from isicrt.engine.routes import BlockRoute, Item
from isicrt.engine.run_threads import StageSettings
from isicrt.engine.share_process import ShareProcess
from isicrt.engine.sources import Job, find_jobs
from tests.engine.share_folder import join_threads, journal_lines, masks_in, run_folder, share_task

pytestmark = pytest.mark.usefixtures("no_process_is_left")


@pytest.fixture
def runtime(darkness_onnx: Path) -> Iterator[OnnxRuntime]:
    with OnnxRuntime(darkness_onnx, threads=1) as runtime:
        yield runtime


@pytest.mark.skipif(os.name != "posix", reason="a process there keeps its parent's number")
def test_a_process_whose_run_is_gone_writes_no_more(
    many: Path, tmp_path: Path, runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = share_task(runtime, run=os.getppid())
    task([])
    task(sorted(many.iterdir())[:4])
    left: list[int] = []

    def leave(code: int) -> None:
        left.append(code)
        raise SystemExit

    def write_and_lose(self: Finishing, mask: Path, *_: Any) -> Finished:
        mask.touch()
        monkeypatch.setattr(os, "getppid", lambda: 1)
        return Finished(None, 0.5, 10, 1, 0.1, 0.1)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(Finishing, "finish", write_and_lose)
    with pytest.raises(SystemExit):
        task([(n, tmp_path / f"{n}.png") for n in range(4)])
    assert left == [1]
    assert sorted(masks_in(tmp_path)) == ["0.png"]


def test_what_a_stuck_thread_had_taken_is_its_successor_s(
    many: Path, tmp_path: Path, runtime: OnnxRuntime, shared: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a mount that dies while the journal is asked."""
    check, released = Ledger.check, threading.Event()

    def hang(self: Ledger, job: Job, draw: Any) -> Outcome | None:
        if job.image.stem == "20":
            assert released.wait(120)
        return check(self, job, draw)

    monkeypatch.setattr(Ledger, "check", hang)
    ended: list[Outcome] = []
    summary = run_folder(many, tmp_path / "out", runtime, processes=2, decode_timeout=0.5, on_outcome=ended.append)
    released.set()
    join_threads()
    assert shared
    assert (summary.images, summary.failed) == (60, 1)
    assert len(masks_in(tmp_path / "out")) == 59
    assert len({outcome.job.image for outcome in ended}) == 60


@pytest.mark.usefixtures("shared")
def test_what_a_stuck_thread_has_decoded_its_successor_segments(
    many: Path, tmp_path: Path, runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is ready by then."""
    read, released, is_ready = BlockRoute.read, threading.Event(), ShareProcess.is_ready
    stuck: list[Path] = []

    def hang(self: BlockRoute, job: Job) -> Item:
        # Not the first of a block.
        if not stuck and job.image.stem in ("25", "27"):
            stuck.append(job.image)
            assert released.wait(120)
        return read(self, job)

    class Ready:
        def __get__(self, process: ShareProcess, _: type) -> bool:
            return bool(stuck) and bool(is_ready.fget(process))  # type: ignore[attr-defined]

    monkeypatch.setattr(BlockRoute, "read", hang)
    monkeypatch.setattr(ShareProcess, "is_ready", Ready())
    summary = run_folder(many, tmp_path / "out", runtime, processes=1, decode_timeout=0.5)
    released.set()
    join_threads()
    assert stuck
    assert (summary.images, summary.failed) == (60, 1)
    assert len(masks_in(tmp_path / "out")) == 59


@pytest.mark.usefixtures("shared")
def test_a_mask_of_a_process_that_was_lost_is_nobodys_drawing(
    many: Path, tmp_path: Path, runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its image cannot be read a second time, as where its mount is away for a moment."""
    finish, away, lost = ShareProcess.finish, tmp_path / "away", list[str]()
    images = {path.stem: path for path in many.iterdir()}

    def write_and_lose(self: ShareProcess, places: Sequence[tuple[int, Path]]) -> list[Finished | None]:
        finished = finish(self, places)
        if lost:
            return finished
        lost.append(places[0][1].name)
        images[Path(lost[0]).stem].rename(away)
        return [None, *finished[1:]]

    with monkeypatch.context() as patched:
        patched.setattr(ShareProcess, "finish", write_and_lose)
        assert run_folder(many, tmp_path / "out", runtime, processes=1).failed == 1
    assert [line["mask"] for line in journal_lines(tmp_path / "out") if line["status"] == "failed"] == lost
    assert lost[0] in masks_in(tmp_path / "out")
    away.rename(images[Path(lost[0]).stem])
    again = run_folder(many, tmp_path / "out", runtime, processes=0)
    assert (again.images, again.skipped) == (1, 59)


def test_no_process_is_started_where_every_mask_is_there(
    many: Path, tmp_path: Path, runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder(many, tmp_path / "out", runtime, processes=0)
    monkeypatch.setattr(ShareProcess, "__init__", lambda *_: pytest.fail("a process was started"))
    assert run_folder(many, tmp_path / "out", runtime, processes=2).skipped == 60


def test_what_no_process_takes_goes_through_the_network_together(
    many: Path, tmp_path: Path, runtime: OnnxRuntime, shared: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in many.iterdir():
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    blocks: list[int] = []
    segment = BlockRoute.segment

    def noted(self: BlockRoute, items: list[Item]) -> Any:
        blocks.append(len(items))
        return segment(self, items)

    monkeypatch.setattr(BlockRoute, "segment", noted)
    summary = run_folder(many, tmp_path / "out", runtime, processes=2)
    assert (summary.images, summary.failed, sum(shared), sum(blocks)) == (60, 0, 0, 60)
    assert sum(size == runtime.at_once for size in blocks) > 20


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_processes_that_hang_are_ended_together(many: Path, tmp_path: Path, runtime: OnnxRuntime) -> None:
    jobs = find_jobs(many, tmp_path / "out")
    settings = StageSettings("model", 8, share_task(runtime).finishing, None, None, 60)
    run = share_run.ShareRun(jobs, BlockRoute(runtime, ImageDecoder(), 8), settings, share_task(runtime), 12)
    for number in range(12):
        pid = run._start(number).process.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    run.stop()
    assert time.monotonic() - started < 1


def test_a_run_that_was_stopped_starts_no_process(many: Path, tmp_path: Path, runtime: OnnxRuntime) -> None:
    jobs = find_jobs(many, tmp_path / "out")
    settings = StageSettings("model", 8, share_task(runtime).finishing, None, None, 60)
    run = share_run.ShareRun(jobs, BlockRoute(runtime, ImageDecoder(), 8), settings, share_task(runtime), 2)
    process = run._start(0)
    run.stop()
    assert process.read([many / "00.jpg"]).images == [None]
    assert process.finish([(0, tmp_path / "a.png")]) == [None]
    assert process.process.is_over
    with pytest.raises(Stopped):
        run._start(1)


def test_nobody_waits_for_ever_where_a_process_cannot_be_given_up(
    runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Finishing(0.5, keep_largest=True, fill_holes=True, mask_bits=1, output=None)
    assert pipeline._task(runtime, ImageDecoder(), own, 8) is not None
    monkeypatch.setattr(pipeline, "HAS_TIME_LIMIT", False)
    assert pipeline._task(runtime, ImageDecoder(), own, 8) is None
