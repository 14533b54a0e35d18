"""Files that processes read for the GPU: the same masks and the same journal, whatever becomes of a process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from isicrt.engine import read_process, stages
from isicrt.engine.gpu_batch import SourceView, read_chain_image
from isicrt.engine.images import decode_image
from isicrt.engine.journal import JOURNAL_NAME
from isicrt.engine.ledger import Ledger
from isicrt.engine.outcome import Outcome, RunSummary
from isicrt.engine.pipeline import run_jobs
from isicrt.engine.read_process import ReadAll, ReadFile, ReadProcess
from isicrt.engine.sources import find_jobs
from isicrt.engine.task_process import HAS_TIME_LIMIT, MOST_ON_GPU, TaskProcess
from tests.engine.host_plan import HostPlan
from tests.journal_lines import read_journal

TASK = ReadAll(10**8, 0.0)

pytestmark = pytest.mark.usefixtures("no_process_is_left")


class Hangs(ReadAll):
    """A task that never answers."""

    def __call__(self, paths: Sequence[str]) -> list[ReadFile | None]:
        time.sleep(600)
        return []


@pytest.fixture
def many(rendered_pairs: Path, tmp_path: Path) -> Path:
    """A folder of 60 files: JPEGs, a PNG, and some that are no image."""
    folder = tmp_path / "many"
    folder.mkdir()
    images = sorted((rendered_pairs / "images").glob("*.jpg"))
    for n in range(56):
        shutil.copy(images[n % len(images)], folder / f"{n:02d}.jpg")
    with Image.open(images[0]) as image:
        image.save(folder / "56.png")
    (folder / "57.jpg").write_bytes(images[0].read_bytes()[:900])
    (folder / "58.jpg").write_text("not an image")
    (folder / "59.jpg").touch()
    return folder


def _run(host: HostPlan, images: Path, out: Path, processes: int, **options: Any) -> RunSummary:
    jobs = find_jobs(images, out)
    options = {"batch_size": 4, "decode_threads": 2} | options
    with Ledger(out, jobs, model={"sha256": "0"}, settings={}) as ledger:
        return run_jobs(jobs, host.runtime, chain=host.chain, ledger=ledger, processes=processes, **options)


def _lines(folder: Path) -> list[Any]:
    return sorted((line for line in read_journal(folder) if "status" in line), key=lambda line: str(line["image"]))


@pytest.mark.usefixtures("at_once")
def test_masks_and_journal_are_those_of_the_threads(host: HostPlan, many: Path, tmp_path: Path) -> None:
    _run(host, many, tmp_path / "threads", 0)
    summary = _run(host, many, tmp_path / "processes", 2)
    assert (summary.images, summary.failed) == (60, 3)
    assert summary.stage_seconds["decode"] > 0
    found = [{p.name: p.read_bytes() for p in (tmp_path / n).glob("*.png")} for n in ("threads", "processes")]
    assert found[0] == found[1]
    assert len(found[1]) == 57
    assert _lines(tmp_path / "threads") == _lines(tmp_path / "processes")
    again = _run(host, many, tmp_path / "processes", 2)
    assert (again.images, again.failed, again.skipped) == (3, 3, 57)


def test_what_is_read_is_what_a_thread_reads(many: Path) -> None:
    paths = [many / name for name in ("00.jpg", "56.png", "58.jpg", "59.jpg", "gone.jpg", "01.jpg")]
    process = ReadProcess(TASK, 60, start_after=0)
    try:
        images = process.read(paths)
    finally:
        process.close()
    assert [image is None for image in images] == [False, True, True, True, True, False]
    for path, image in zip(paths, images, strict=True):
        if image is not None:
            assert isinstance(image.source, SourceView)
            assert replace(image, source=image.source.whole()) == read_chain_image(path, (64, 64))


def test_a_share_is_left_to_the_cpu(many: Path) -> None:
    paths = sorted(many.glob("*.jpg"))[:12]
    process = ReadProcess(ReadAll(10**8, 0.5), 60, start_after=0)
    try:
        images = process.read(paths)
    finally:
        process.close()
    expected = [read_chain_image(path, (64, 64), cpu_share=0.5).source is None for path in paths]
    assert [image is None for image in images] == expected
    assert len(set(expected)) == 2


def test_a_process_is_started_when_it_is_worth_it(many: Path) -> None:
    process = ReadProcess(TASK, 60, start_after=2)
    try:
        assert process.read([many / "00.jpg"] * 2) == [None, None]
        assert process.process.pid is None
        assert process.read([many / "00.jpg"])[0] is not None
    finally:
        process.close()


def _until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.mark.skipif(not HAS_TIME_LIMIT, reason="whether a process is there is not known")
def test_a_process_that_is_started_at_once_is_asked_when_it_is_there(many: Path) -> None:
    process = ReadProcess(TASK, 60, at_once=True)
    try:
        assert process.process.pid is not None
        assert process.takes == 1
        assert process.read([many / "00.jpg"]) == [None]
        assert _until(lambda: process.takes == MOST_ON_GPU)
        assert process.read([many / "00.jpg"]) != [None]
        os.kill(process.process.pid, signal.SIGKILL)
        assert process.read([many / "00.jpg"]) == [None]
        assert process.read([many / "00.jpg"]) != [None], "it is started again"
    finally:
        process.close()


def test_a_process_that_cannot_be_started_at_once_holds_nobody(many: Path) -> None:
    process = ReadProcess(TASK, 60, at_once=True, command=["/nonexistent/python"])
    for _ in range(5):
        assert process.read([many / "00.jpg"]) == [None]
    assert process.takes == 1


@pytest.mark.parametrize(("known", "least", "begun"), [(True, 15, 4), (True, 16, 0), (False, 1, 0)])
def test_a_run_of_which_is_known_that_it_is_long_starts_all_processes_at_once(
    host: HostPlan, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool, least: int, begun: int
) -> None:
    monkeypatch.setattr(stages, "START_AFTER", least)  # of each of four threads, of 60 images
    begin, started = TaskProcess._begin, []

    def noted(process: TaskProcess) -> None:
        started.append(process)
        begin(process)

    monkeypatch.setattr(TaskProcess, "_begin", noted)
    jobs = find_jobs(many, tmp_path / "out")
    some = jobs if known else iter(jobs)
    with Ledger(tmp_path / "out", jobs, model={"sha256": "0"}, settings={}) as ledger:
        options: dict[str, Any] = {"batch_size": 4, "decode_threads": 2, "processes": 2}
        summary = run_jobs(some, host.runtime, chain=host.chain, ledger=ledger, **options)
    assert (summary.images, summary.failed) == (60, 3)
    assert len(started) == begun
    with Ledger(tmp_path / "out", jobs, model={"sha256": "0"}, settings={}) as ledger:
        assert ledger.to_do(len(jobs)) == 0
        run_jobs(jobs, host.runtime, chain=host.chain, ledger=ledger, **options)
    assert len(started) == begun, "what is done already needs no process"


@pytest.mark.parametrize("command", [["/nonexistent/python"], [sys.executable, "-c", ""]])
def test_without_a_process_everything_is_left_to_the_caller(many: Path, command: list[str]) -> None:
    process = ReadProcess(TASK, 60, start_after=0, command=command)
    try:
        for _ in range(5):
            assert process.read([many / "00.jpg"]) == [None]
    finally:
        process.close()


@pytest.mark.skipif(os.name != "posix", reason="there is no time limit")
def test_a_process_that_hangs_is_given_up(many: Path) -> None:
    process = ReadProcess(Hangs(10**8, 0.0), 0.5, start_after=0)
    try:
        assert process.read([many / "00.jpg"]) == [None]
        assert process.process.pid is None
    finally:
        process.close()


@pytest.mark.skipif(os.name != "posix", reason="there is no time limit")
def test_not_even_killing_it_holds_the_run(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a dead mount, where a process cannot be killed."""
    real = subprocess.Popen.kill
    hanging: list[Any] = []
    monkeypatch.setattr(subprocess.Popen, "kill", lambda self: hanging.append(self))
    process = ReadProcess(Hangs(10**8, 0.0), 0.3, start_after=0)
    began = time.monotonic()
    assert process.read([many / "00.jpg"]) == [None]
    assert time.monotonic() - began < 30
    assert len(hanging) == 1
    real(hanging[0])
    hanging[0].wait()


def test_an_answer_has_a_size(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(many / f"{n:02d}.jpg").stat().st_size for n in range(4)]
    monkeypatch.setattr(read_process, "_MOST_BYTES", max(sizes))
    paths = [many / f"{n:02d}.jpg" for n in range(4)]
    images = TASK([str(path) for path in paths])
    assert 1 <= len(images) <= 2
    monkeypatch.setattr(read_process, "_MOST_BYTES", min(sizes) - 1)
    assert TASK([str(path) for path in paths]) == [None] * 4


def test_where_nothing_is_for_the_gpu_files_are_taken_one_by_one(many: Path) -> None:
    process = ReadProcess(TASK, 60, start_after=0)
    try:
        assert process.takes == MOST_ON_GPU
        assert process.read([many / "56.png"] * 3) == [None] * 3
        assert process.takes == 1
        assert process.read([many / "00.jpg"]) != [None]
        assert process.takes == MOST_ON_GPU
    finally:
        process.close()


@pytest.mark.usefixtures("at_once")
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_process_that_is_lost_costs_nothing(
    host: HostPlan, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[int] = []
    read = ReadProcess.read

    def lose_and_read(self: ReadProcess, paths: Sequence[Path]) -> Any:
        if self.process.pid is not None:
            os.kill(self.process.pid, signal.SIGKILL)
            lost.append(self.process.pid)
        return read(self, paths)

    monkeypatch.setattr(ReadProcess, "read", lose_and_read)
    monkeypatch.setattr(read_process, "MOST_ON_GPU", 8)  # of 60 files: so that there is one to lose
    summary = _run(host, many, tmp_path / "out", 2)
    assert lost
    assert (summary.images, summary.failed) == (60, 3)


@pytest.mark.usefixtures("at_once")
def test_a_stuck_file_costs_itself_and_none_that_was_taken_with_it(
    host: HostPlan, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process leaves it to the thread, which hangs in it; the thread that takes its place goes on with the rest."""
    released = threading.Event()
    os.replace(many / "56.png", many / "03.png")  # noqa: PTH105

    def decode(path: Path, size: tuple[int, int]) -> Any:
        if path.name == "03.png":
            assert released.wait(120)
        return decode_image(path, size)

    (many / "03.jpg").unlink()
    errors: dict[str, str | None] = {}
    summary = _run(
        host,
        many,
        tmp_path / "out",
        2,
        decode=decode,
        decode_timeout=2,
        on_outcome=lambda o: errors.update({o.job.image.name: o.error}),
    )
    released.set()
    for thread in threading.enumerate():
        if thread.name.startswith("isicrt-"):
            thread.join(60)
    assert (summary.images, summary.failed) == (59, 4)
    assert "took more than 2 s" in str(errors["03.png"])
    assert sorted(name for name, error in errors.items() if error) == ["03.png", "57.jpg", "58.jpg", "59.jpg"]


@pytest.mark.usefixtures("at_once")
def test_an_interruption_drains(host: HostPlan, many: Path, tmp_path: Path) -> None:
    endless = (job for _ in iter(int, 1) for job in find_jobs(many / "0*.jpg", tmp_path / "out"))
    seen: list[Outcome] = []
    with pytest.raises(KeyboardInterrupt):
        run_jobs(
            endless,
            host.runtime,
            batch_size=4,
            chain=host.chain,
            processes=2,
            on_outcome=seen.append,
            should_stop=lambda: len(seen) > 20,
        )
    assert len(seen) > 20
    assert all(outcome.error is None for outcome in seen)
    assert not [path for path in (tmp_path / "out").glob(".*") if path.name != JOURNAL_NAME]
    deadline = time.monotonic() + 20
    while [t for t in threading.enumerate() if t.name.startswith("isicrt-")] and time.monotonic() < deadline:
        time.sleep(0.05)
