"""Masks that processes finish: the same masks, and a process that is lost costs nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isicrt.engine import task_process, write_process
from isicrt.engine.errors import SettingsError
from isicrt.engine.finishing import Finished, Finishing
from isicrt.engine.gpu_batch import PackedMask
from isicrt.engine.images import read_mask
from isicrt.engine.ledger import Ledger
from isicrt.engine.model_identity import mask_settings
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.outcome import Outcome, RunSummary
from isicrt.engine.output import OutputError, OutputFolder, is_leftover
from isicrt.engine.pipeline import THREAD_PREFIX, default_processes, run_jobs
from isicrt.engine.sources import find_jobs
from isicrt.engine.write_process import Todo, WriteProcess

FINISHING = Finishing(0.5, keep_largest=True, fill_holes=True, mask_bits=1, output=None)

pytestmark = pytest.mark.usefixtures("no_process_is_left")


@pytest.fixture
def runtime(darkness_onnx: Path) -> Iterator[OnnxRuntime]:
    with OnnxRuntime(darkness_onnx, threads=1) as runtime:
        yield runtime


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


def test_a_folder_that_is_gone_is_the_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    process = WriteProcess(Finishing(0.5, True, True, 1, OutputFolder(out, "0" * 12)), start_after=0)
    try:
        assert process.finish(_todo(out, 1))[0] is not None
        out.rename(tmp_path / "elsewhere")
        assert process.finish(_todo(out, 1)) == [None]
        assert "cannot be written any more" in str(process.error)
    finally:
        process.close()


def test_what_was_finished_before_the_end_counts(tmp_path: Path) -> None:
    class Fills:
        """A disk with room for two masks."""

        room = 2

        def finish(self, *_: object) -> Finished:
            if not self.room:
                raise OutputError("full")
            self.room -= 1
            return Finished(None, 0.5, 10, 1, 0.1, 0.1)

    sent = [write_process._sent(*one) for one in _todo(tmp_path, 4)]
    finished, problem = write_process._FinishAll(Fills(), os.getppid())(sent)  # type: ignore[arg-type]
    assert len(finished) == 2
    assert problem == "full"


@pytest.mark.usefixtures("at_once")
def test_a_run_ends_with_its_folder_and_says_what_was_done(many: Path, tmp_path: Path, runtime: OnnxRuntime) -> None:
    out = tmp_path / "out"

    def move(_: Outcome) -> None:
        if out.is_dir():
            out.rename(tmp_path / "elsewhere")

    with pytest.raises(OutputError, match="cannot be written any more"):
        _run(many, out, runtime, processes=2, on_outcome=move)
    assert not out.exists()
    done = [line["mask"] for line in _lines(tmp_path / "elsewhere") if line["status"] == "done"]
    assert set(done) == set(_masks(tmp_path / "elsewhere"))


@pytest.mark.skipif(os.name != "posix", reason="a process there keeps its parent's number")
def test_a_process_whose_run_is_gone_writes_no_more() -> None:
    ask = "_FinishAll(None, 1)([('a.png', (1, 1), None, None)])"
    code = f"from isicrt.engine.write_process import _FinishAll; {ask}; print('wrote')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize("processes", [0, 2])
def test_a_run_that_is_cut_off_writes_nothing_afterwards(
    many: Path, tmp_path: Path, runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    finish = Finishing.finish

    def slowly(self: Finishing, *todo: Any) -> Any:
        time.sleep(0.4)
        return finish(self, *todo)

    monkeypatch.setattr(Finishing, "finish", slowly)
    until = time.monotonic() + 1
    with pytest.raises(KeyboardInterrupt):
        _run(many, tmp_path / "out", runtime, processes=processes, should_stop=lambda: time.monotonic() > until)
    assert len(_masks(tmp_path / "out")) < 30
    for thread in threading.enumerate():
        if thread.name.startswith(THREAD_PREFIX):
            thread.join(20)
    # Each thread ends after the mask that it had begun, and all but those are in the journal.
    done = [line["mask"] for line in _lines(tmp_path / "out") if line["status"] == "done"]
    assert 0 <= len(_masks(tmp_path / "out")) - len(done) <= 4


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
    [
        ["/nonexistent/python"],
        [sys.executable, "-c", ""],
        [sys.executable, "-c", "print('noise'); input()"],
        [sys.executable, "-c", "print('Info: a line that pickle takes for a number'); input()"],
    ],
)
def test_what_is_no_process_of_ours_leaves_everything_to_the_caller(tmp_path: Path, command: list[str]) -> None:
    process = WriteProcess(FINISHING, start_after=0, command=command)
    try:
        for _ in range(5):
            assert process.finish(_todo(tmp_path, 2)) == [None, None]
    finally:
        process.close()


def test_what_a_lost_process_left_behind_is_removed(tmp_path: Path) -> None:
    process = WriteProcess(
        Finishing(0.5, True, True, 1, OutputFolder(tmp_path, "0" * 12)), 4, start_after=0, command=[sys.executable]
    )
    own, another = (tmp_path / f".isicrt-{'0' * 12}-{owner}abcdef.tmp" for owner in ("05", "00"))
    for path in (own, another):
        path.touch()
    assert process.finish(_todo(tmp_path, 2)) == [None, None]
    assert (own.exists(), another.exists()) == (False, True)
    assert is_leftover(own.name, {"0" * 12})


def test_a_question_that_cannot_be_sent_is_for_the_caller(tmp_path: Path) -> None:
    process = WriteProcess(FINISHING, start_after=0)
    try:
        assert process.finish([(tmp_path / "a.png", (9, 9), lambda: None)]) == [None]  # type: ignore[list-item]
    finally:
        process.close()


def test_nothing_is_imported_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("json", "pickle", "isicrt", "numpy"):
        (tmp_path / f"{name}.py").write_text("open('taken', 'w'); raise SystemExit")
    monkeypatch.chdir(tmp_path)
    process = WriteProcess(FINISHING, start_after=0)
    try:
        assert process.finish(_todo(tmp_path, 1)) != [None]
    finally:
        process.close()
    assert not (tmp_path / "taken").exists()


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


def test_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [default_processes(cores, on_gpu=True) for cores in (1, 2, 7, 16)] == [0, 0, 0, 8]
    assert [default_processes(cores) for cores in (1, 3, 4, 16)] == [0, 0, 4, 16]
    assert default_processes(1024) == default_processes(1024, on_gpu=True) == 255
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert default_processes(16) == default_processes(16, on_gpu=True) == 0


@pytest.mark.parametrize("number", [-1, 256])
def test_not_fewer_than_none_or_more_than_names(
    rendered_pairs: Path, tmp_path: Path, runtime: OnnxRuntime, number: int
) -> None:
    with pytest.raises(SettingsError, match=rf"processes \({number}\): must be 0 to 255"):
        run_jobs(find_jobs(rendered_pairs / "images", tmp_path / "out"), runtime, processes=number)


@pytest.mark.skipif(sys.platform != "linux", reason="pipes have a size on Linux")
def test_masks_go_through_a_wide_pipe_and_results_through_an_ordinary_one(tmp_path: Path) -> None:
    import fcntl

    process = WriteProcess(FINISHING, start_after=0)
    mask = PackedMask(np.full((9, 2), 255, np.uint8), (9, 16))
    assert process.finish([(tmp_path / "a.png", (9, 16), mask)])[0] is not None
    running = process.process._process
    assert running is not None
    assert running.stdin is not None
    assert running.stdout is not None
    sizes = [fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) for pipe in (running.stdin, running.stdout)]
    process.close()
    assert sizes[0] >= 4 * sizes[1]


@pytest.mark.skipif(sys.platform != "linux", reason="pipes have a size on Linux")
def test_a_pipe_that_cannot_be_wider_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_process, "_PIPE_BYTES", 1 << 31)  # more than the system knows
    process = WriteProcess(FINISHING, start_after=0)
    mask = PackedMask(np.full((9, 2), 255, np.uint8), (9, 16))
    assert process.finish([(tmp_path / "a.png", (9, 16), mask)])[0] is not None
    process.close()
