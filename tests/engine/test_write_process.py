"""Masks that processes finish: the same masks, and a process that is lost costs nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isicrt.engine import write_process
from isicrt.engine.errors import SettingsError
from isicrt.engine.finishing import Finishing
from isicrt.engine.gpu_batch import PackedMask
from isicrt.engine.images import read_mask
from isicrt.engine.ledger import Ledger, mask_settings
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.outcome import Outcome, RunSummary
from isicrt.engine.output import OutputError, OutputFolder
from isicrt.engine.pipeline import default_processes, run_jobs
from isicrt.engine.sources import find_jobs
from isicrt.engine.write_process import Todo, WriteProcess

FINISHING = Finishing(0.5, keep_largest=True, fill_holes=True, mask_bits=1, output=None)


@pytest.fixture
def runtime(darkness_onnx: Path) -> Iterator[OnnxRuntime]:
    with OnnxRuntime(darkness_onnx, threads=1) as runtime:
        yield runtime


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes start with the first mask."""
    start = WriteProcess.__init__
    monkeypatch.setattr(WriteProcess, "__init__", lambda self, finishing: start(self, finishing, start_after=0))


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.fixture
def many(rendered_pairs: Path, tmp_path: Path) -> Path:
    """A folder of 60 images."""
    folder = tmp_path / "many"
    folder.mkdir()
    images = sorted((rendered_pairs / "images").iterdir())
    for n in range(60):
        shutil.copy(images[n % len(images)], folder / f"{n:02d}{images[n % len(images)].suffix}")
    return folder


def _run(images: Path, out: Path, runtime: OnnxRuntime, **options: Any) -> RunSummary:
    jobs = find_jobs(images, out)
    settings = mask_settings(runtime.card, None, 1)
    with Ledger(out, jobs, model={"sha256": "0"}, settings=settings) as ledger:
        return run_jobs(jobs, runtime, ledger=ledger, decode_threads=2, write_threads=2, **options)


def _masks(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def _lines(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / ".isicrt-journal.jsonl").read_text().splitlines())
    return sorted((line for line in lines if "status" in line), key=lambda line: str(line["mask"]))


def _todo(tmp_path: Path, count: int, size: tuple[int, int] = (90, 120)) -> list[Todo]:
    maps = np.random.default_rng(0).integers(0, 256, (count, 16, 16), np.uint8)
    return [(tmp_path / f"{n}.png", size, maps[n]) for n in range(count)]


@pytest.mark.usefixtures("at_once")
def test_masks_and_journal_are_those_of_the_threads(many: Path, tmp_path: Path, runtime: OnnxRuntime) -> None:
    _run(many, tmp_path / "threads", runtime, processes=0)
    summary = _run(many, tmp_path / "processes", runtime, processes=2)
    assert (summary.images, summary.failed) == (60, 0)
    assert summary.stage_seconds["restore"] > 0
    assert summary.stage_seconds["write"] > 0
    assert _masks(tmp_path / "threads") == _masks(tmp_path / "processes")
    assert _lines(tmp_path / "threads") == _lines(tmp_path / "processes")
    assert len(_lines(tmp_path / "processes")) == 60
    assert _run(many, tmp_path / "processes", runtime, processes=2).skipped == 60


def test_a_process_is_started_when_it_is_worth_it(tmp_path: Path) -> None:
    process = WriteProcess(FINISHING, start_after=3)
    try:
        assert process.finish(_todo(tmp_path, 3)) == [None, None, None]
        assert [done is None for done in process.finish(_todo(tmp_path, 2))] == [False, False]
    finally:
        process.close()


def test_both_kinds_of_content(tmp_path: Path) -> None:
    mask = np.zeros((50, 61), bool)
    mask[10:30, 20:50] = True
    packed = PackedMask(np.packbits(mask, axis=1), mask.shape)
    probability = np.where(mask, 255, 0).astype(np.uint8)
    process = WriteProcess(FINISHING, start_after=0)
    try:
        todo: list[Todo] = [(tmp_path / "a.png", mask.shape, packed), (tmp_path / "b.png", mask.shape, probability)]
        finished = process.finish(todo)
    finally:
        process.close()
    for path, done in zip((tmp_path / "a.png", tmp_path / "b.png"), finished, strict=True):
        assert done is not None
        assert done.problem is None
        assert done.lesion == pytest.approx(mask.mean())
        assert done.size == path.stat().st_size
        np.testing.assert_array_equal(read_mask(path), mask)


def test_large_images_are_left_to_the_run_where_they_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_process, "LARGE_PIXELS", 100 * 100)
    process = WriteProcess(FINISHING, start_after=0)
    try:
        todo = _todo(tmp_path, 2) + _todo(tmp_path, 1, size=(100, 100)) + _todo(tmp_path, 1)
        assert [done is None for done in process.finish(todo)] == [True, True, True, True]
        assert process.finish(_todo(tmp_path, 1, size=(100, 99)))[0] is not None
    finally:
        process.close()


@pytest.mark.usefixtures("at_once")
def test_a_mask_that_cannot_be_written_costs_itself(many: Path, tmp_path: Path, runtime: OnnxRuntime) -> None:
    (tmp_path / "out" / "07.png").mkdir(parents=True)
    failed: list[Outcome] = []
    jobs = find_jobs(many, tmp_path / "out")
    summary = run_jobs(
        jobs, runtime, processes=2, on_outcome=lambda o: failed.append(o) if o.error is not None else None
    )
    assert (summary.images, summary.failed) == (60, 1)
    assert "07.png" in str(failed[0].error)


def test_a_folder_that_is_gone_ends_the_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    process = WriteProcess(Finishing(0.5, True, True, 1, OutputFolder(out, "0" * 12)), start_after=0)
    try:
        assert process.finish(_todo(out, 1))[0] is not None
        out.rename(tmp_path / "elsewhere")
        with pytest.raises(OutputError, match="cannot be written any more"):
            process.finish(_todo(out, 1))
    finally:
        process.close()


def _killing(lose: Callable[[int], None]) -> Callable[[WriteProcess, Any], Any]:
    finish = WriteProcess.finish

    def kill_then_finish(self: WriteProcess, todo: Any) -> Any:
        if self.process.pid is not None:
            lose(self.process.pid)
        return finish(self, todo)

    return kill_then_finish


@pytest.mark.usefixtures("at_once")
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_process_that_is_lost_costs_nothing(
    many: Path, tmp_path: Path, runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[int] = []

    def lose(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        lost.append(pid)

    monkeypatch.setattr(WriteProcess, "finish", _killing(lose))
    summary = _run(many, tmp_path / "out", runtime, processes=2)
    assert lost
    assert (summary.images, summary.failed) == (60, 0)
    assert len(_masks(tmp_path / "out")) == 60
    assert [line["status"] for line in _lines(tmp_path / "out")] == ["done"] * 60


@pytest.mark.parametrize(
    "command",
    [["/nonexistent/python"], [sys.executable, "-c", ""], [sys.executable, "-c", "print('noise'); input()"]],
)
def test_what_is_no_process_of_ours_leaves_everything_to_the_caller(tmp_path: Path, command: list[str]) -> None:
    process = WriteProcess(FINISHING, start_after=0, command=command)
    try:
        for _ in range(5):
            assert process.finish(_todo(tmp_path, 2)) == [None, None]
    finally:
        process.close()


@pytest.mark.usefixtures("at_once")
def test_an_interrupted_run_leaves_no_process(many: Path, tmp_path: Path, runtime: OnnxRuntime) -> None:
    def interrupt(_: Outcome) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(many, tmp_path / "out", runtime, processes=2, on_outcome=interrupt)
    deadline = time.monotonic() + 10
    while [t for t in threading.enumerate() if "write-" in t.name] and time.monotonic() < deadline:
        time.sleep(0.05)
    again = _run(many, tmp_path / "out", runtime, processes=2)
    assert (again.images + again.skipped, again.failed) == (60, 0)


@pytest.mark.usefixtures("at_once")
def test_overlays_are_drawn_here_and_so_are_their_masks(
    rendered_pairs: Path, tmp_path: Path, runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WriteProcess, "finish", lambda *_: pytest.fail("a process was asked"))
    drawn: list[str] = []
    jobs = find_jobs(rendered_pairs / "images", tmp_path / "out")
    run_jobs(jobs, runtime, processes=2, overlay=lambda job, mask: drawn.append(job.mask.name))
    assert len(drawn) == len(jobs)


def test_how_many() -> None:
    assert [default_processes(cores) for cores in (1, 2, 7)] == [0, 0, 0]
    assert (default_processes(16), default_processes(16, on_gpu=True)) == (4, 8)


def test_not_fewer_than_none(rendered_pairs: Path, tmp_path: Path, runtime: OnnxRuntime) -> None:
    with pytest.raises(SettingsError, match="processes"):
        run_jobs(find_jobs(rendered_pairs / "images", tmp_path / "out"), runtime, processes=-1)
