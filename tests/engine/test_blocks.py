"""A run in blocks: each thread takes images the whole way."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isicrt.engine import blocks
from isicrt.engine.errors import ModelError
from isicrt.engine.finishing import Finishing
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.images import Decoded, decode_image
from isicrt.engine.ledger import Ledger
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.outcome import Outcome
from isicrt.engine.output import OutputError
from isicrt.engine.pipeline import THREAD_PREFIX, default_workers, run_jobs
from isicrt.engine.runtime import ConcurrentRuntime
from isicrt.engine.sources import Job, find_jobs


class Seen(OnnxRuntime):
    """Notes the thread and the size of each block, and how many are in the network at once."""

    def __init__(self, path: Path, *, threads: int = 1, before: Callable[[], object] = lambda: None) -> None:
        super().__init__(path, threads=threads)
        self.blocks: list[tuple[str, int]] = []
        self.inside = self.most_inside = 0
        self._before, self._lock = before, threading.Lock()

    def infer_alone(self, images: UInt8Array) -> UInt8Array:
        self._before()
        self.blocks.append((threading.current_thread().name.removeprefix(THREAD_PREFIX), len(images)))
        return super().infer_alone(images)

    def _in_parts(self, images: UInt8Array) -> UInt8Array:
        with self._lock:
            self.inside += 1
            self.most_inside = max(self.inside, self.most_inside)
        time.sleep(0.01)
        try:
            return super()._in_parts(images)
        finally:
            with self._lock:
                self.inside -= 1


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are full on a machine that is busy, too."""
    monkeypatch.setattr(blocks, "GATHER_SECONDS", 60)


@pytest.fixture
def jobs(rendered_pairs: Path, tmp_path: Path) -> list[Job]:
    return list(find_jobs(rendered_pairs / "images", tmp_path / "out"))


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("batch_size", [1, 2, 5, 8, 100])
@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_are_as_large_as_asked_for_and_smaller_in_the_end(
    jobs: list[Job], darkness_onnx: Path, batch_size: int, threads: int
) -> None:
    with Seen(darkness_onnx) as runtime:
        summary = run_jobs(jobs, runtime, batch_size=batch_size, threads=threads)
    assert (summary.images, summary.failed) == (12, 0)
    sizes = [size for _, size in runtime.blocks]
    assert sum(sizes) == 12
    assert {name for name, _ in runtime.blocks} <= {f"worker-{n}" for n in range(threads)}
    if threads == 1:  # never an odd number: a call of the network takes two, and of one image as long
        assert sizes == {1: [2] * 6, 2: [2] * 6, 5: [6, 6], 8: [8, 4], 100: [12]}[batch_size]
    else:
        assert max(sizes) <= 4


@pytest.mark.usefixtures("patient")
def test_a_generator_of_jobs_has_no_end_to_prepare_for(jobs: list[Job], darkness_onnx: Path) -> None:
    with Seen(darkness_onnx) as runtime:
        run_jobs((job for job in jobs), runtime, batch_size=8, threads=1)
    assert [size for _, size in runtime.blocks] == [8, 4]


def test_images_that_take_long_are_not_gathered(jobs: list[Job], darkness_onnx: Path) -> None:
    def slow(path: Path, size: tuple[int, int]) -> Decoded:
        time.sleep(0.03)
        return decode_image(path, size)

    with Seen(darkness_onnx) as runtime:
        run_jobs(jobs, runtime, batch_size=12, threads=1, decode=slow)
    assert [size for _, size in runtime.blocks] == [2] * 6


@pytest.mark.usefixtures("patient")
def test_no_more_calls_at_once_than_the_network_has_threads(jobs: list[Job], darkness_onnx: Path) -> None:
    with Seen(darkness_onnx, threads=2) as runtime:
        run_jobs(jobs, runtime, batch_size=2, threads=6)
    assert len(runtime.blocks) >= 6
    assert runtime.most_inside == 2


def test_a_call_that_fails_gives_its_turn_back(darkness_onnx: Path) -> None:
    class Broken(OnnxRuntime):
        def _in_parts(self, images: UInt8Array) -> UInt8Array:
            raise ZeroDivisionError

    images = np.zeros((1, 64, 64, 3), np.uint8)
    with Broken(darkness_onnx, threads=1) as runtime:
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                runtime.infer_alone(images)


@pytest.mark.usefixtures("patient")
def test_what_a_stuck_thread_has_decoded_its_successor_segments(jobs: list[Job], darkness_onnx: Path) -> None:
    released = threading.Event()

    def decode(path: Path, size: tuple[int, int]) -> Decoded:
        if path.stem == "ISIC_0000003":  # the fourth: three are decoded and wait for it
            assert released.wait(120)
        return decode_image(path, size)

    errors: dict[str, str | None] = {}
    with Seen(darkness_onnx) as runtime:
        run_jobs(
            jobs,
            runtime,
            decode=decode,
            threads=1,
            decode_timeout=1,
            on_outcome=lambda o: errors.update({o.job.image.stem: o.error}),
        )
        stuck = [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_PREFIX)]
        released.set()
        for thread in stuck:
            thread.join(60)
    assert len(stuck) == 1
    assert [stem for stem, error in errors.items() if error] == ["ISIC_0000003"]
    assert len(errors) == 12
    assert [size for _, size in runtime.blocks] == [8, 3]


def test_jobs_are_taken_as_they_are_needed(jobs: list[Job], darkness_onnx: Path) -> None:
    taken = ended = most = 0
    lock = threading.Lock()

    def endless() -> Iterator[Job]:
        nonlocal taken, most
        for job in jobs * 30:
            with lock:
                taken += 1
                most = max(most, taken - ended)
            yield job

    def written(job: Job, mask: np.ndarray) -> None:
        nonlocal ended
        with lock:
            ended += 1

    with OnnxRuntime(darkness_onnx, threads=1) as runtime:
        run_jobs(endless(), runtime, batch_size=4, threads=3, overlay=written)
    assert ended == 360
    assert most <= 3 * 4  # what the threads have in their hands


@pytest.mark.usefixtures("patient")
def test_an_error_of_the_network_names_the_block(jobs: list[Job], darkness_onnx: Path) -> None:
    def fail() -> None:
        raise ZeroDivisionError("out of luck")

    with (
        Seen(darkness_onnx, before=fail) as runtime,
        pytest.raises(ModelError, match=r"failed on a batch of 6 \(.*ISIC_0000000.jpg and 5 more\): out of luck"),
    ):
        run_jobs(jobs, runtime, batch_size=5, threads=1)


@pytest.mark.usefixtures("patient")
def test_what_is_done_of_a_block_is_noted_where_the_rest_fails(
    jobs: list[Job], darkness_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Finishing.finish

    def full_disk(self: Finishing, path: Path, *arguments: Any) -> Any:
        if path.stem == "ISIC_0000002":
            raise OutputError("the disk is full")
        return finish(self, path, *arguments)

    monkeypatch.setattr(Finishing, "finish", full_disk)
    folder = jobs[0].mask.parent
    with (
        Seen(darkness_onnx) as runtime,
        Ledger(folder, jobs, model={}, settings={}) as ledger,
        pytest.raises(OutputError, match="the disk is full"),
    ):
        run_jobs(jobs, runtime, batch_size=5, threads=1, ledger=ledger)
    assert _done(folder) == {"ISIC_0000000.png", "ISIC_0000001.png"}


@pytest.mark.usefixtures("patient")
def test_a_slow_mask_is_told_before_its_block_ends(jobs: list[Job], darkness_onnx: Path) -> None:
    ended: list[float] = []

    def slow(job: Job, mask: np.ndarray) -> None:
        time.sleep(0.15)

    with Seen(darkness_onnx) as runtime:
        run_jobs(
            jobs[:4],
            runtime,
            batch_size=4,
            threads=1,
            overlay=slow,
            on_outcome=lambda _: ended.append(time.monotonic()),
        )
    assert [size for _, size in runtime.blocks] == [4]
    assert ended[0] < ended[-1] - 0.2


def test_runs_in_blocks_and_in_stages(jobs: list[Job], darkness_onnx: Path) -> None:
    with Seen(darkness_onnx) as runtime:
        assert isinstance(runtime, ConcurrentRuntime)
        for options in ({"decode_threads": 1}, {"write_threads": 1}):
            run_jobs(jobs, runtime, **options)
            assert runtime.blocks == []
        run_jobs(jobs, runtime, threads=2)
        assert runtime.blocks != []


def test_workers_fit_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isicrt.engine.pipeline.available_cores", lambda: 4)
    assert [default_workers(n) for n in (None, 1, 3, 4, 6)] == [7, 1, 3, 4, 6]


def test_a_worker_that_stands_in_the_network_ends_there_after_an_error(jobs: list[Job], darkness_onnx: Path) -> None:
    """It says nothing of masks that it will not write, closes no folder and begins nothing."""
    entered, failed = threading.Event(), threading.Event()
    begun: list[str] = []

    def network() -> None:
        if not entered.is_set():
            entered.set()
            assert failed.wait(60)
            time.sleep(0.2)
            return
        failed.set()
        raise ZeroDivisionError

    def decode(path: Path, size: tuple[int, int]) -> Decoded:
        begun.append(path.stem)
        return decode_image(path, size)

    folder = jobs[0].mask.parent
    with (
        Seen(darkness_onnx, threads=2, before=network) as runtime,
        Ledger(folder, jobs, model={}, settings={}) as ledger,
        pytest.raises(ModelError, match="failed on a batch"),
    ):
        run_jobs(jobs, runtime, batch_size=2, threads=2, ledger=ledger, decode=decode)
    assert len(begun) <= 6
    assert "writing" not in (folder / ".isicrt-journal.jsonl").read_text()
    assert not list(folder.glob("*.png"))


def test_a_runtime_is_closed_when_the_last_call_has_ended(darkness_onnx: Path) -> None:
    entered = threading.Event()
    inside: list[int] = []

    class Slow(OnnxRuntime):
        def _in_parts(self, images: UInt8Array) -> UInt8Array:
            entered.set()
            time.sleep(0.3)
            inside.append(1)
            return super()._in_parts(images)

    errors: list[Exception] = []

    def call() -> None:
        try:
            runtime.infer_alone(np.zeros((2, 64, 64, 3), np.uint8))
        except ModelError as error:
            errors.append(error)

    runtime = Slow(darkness_onnx, threads=1)
    thread = threading.Thread(target=call)
    thread.start()
    assert entered.wait(60)
    runtime.close()
    assert inside == [1]
    thread.join(60)
    assert "is closed" in str(errors[0])  # it begins no other call


def test_what_other_workers_wrote_is_noted_where_one_fails(
    jobs: list[Job], darkness_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, full = Finishing.finish, threading.Event()

    def full_disk(self: Finishing, path: Path, *arguments: Any) -> Any:
        if path.stem == "ISIC_0000000":
            time.sleep(0.1)  # the others have written a mask of their blocks
            full.set()
            raise OutputError("the disk is full")
        finished = finish(self, path, *arguments)
        assert full.wait(60)
        return finished

    monkeypatch.setattr(Finishing, "finish", full_disk)
    folder = jobs[0].mask.parent
    with (
        OnnxRuntime(darkness_onnx, threads=3) as runtime,
        Ledger(folder, jobs, model={}, settings={}) as ledger,
        pytest.raises(OutputError, match="the disk is full"),
    ):
        run_jobs(jobs, runtime, batch_size=4, threads=3, ledger=ledger)
    assert _done(folder) == {path.name for path in folder.glob("*.png")} != set()


def test_lines_are_not_written_twice_where_the_journal_fails(
    jobs: list[Job], darkness_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OutputError("the disk is gone")

    folder = jobs[0].mask.parent
    monkeypatch.setattr(blocks, "_RECORD_SECONDS", -1)
    with OnnxRuntime(darkness_onnx, threads=1) as runtime, Ledger(folder, jobs, model={}, settings={}) as ledger:
        monkeypatch.setattr(ledger._sync, "now_and_then", fail)
        with pytest.raises(OutputError, match="the disk is gone"):
            run_jobs(jobs, runtime, threads=1, ledger=ledger)
    assert len(_lines(folder)) == len(_done(folder)) == 1


def test_a_slow_list_does_not_hold_back_what_is_decoded(jobs: list[Job], darkness_onnx: Path) -> None:
    """Of two workers each has an image. One stands in the list, which gives no other one for long; the other does not
    wait behind it."""
    ended: list[str] = []
    one_each, told = threading.Barrier(2), threading.Event()

    def listing() -> Iterator[Job]:
        yield from jobs[:2]
        assert told.wait(60), "nothing has ended while the list was slow"
        yield jobs[2]

    def decode(path: Path, size: tuple[int, int]) -> Decoded:
        if path != jobs[2].image:
            one_each.wait(60)
        return decode_image(path, size)

    def outcome(outcome: Outcome) -> None:
        ended.append(outcome.job.image.stem)
        told.set()

    with OnnxRuntime(darkness_onnx, threads=2) as runtime:
        run_jobs(listing(), runtime, threads=2, decode=decode, on_outcome=outcome)
    assert len(ended) == 3


def test_a_list_that_ends_in_an_error_loses_nothing_before_it(jobs: list[Job], darkness_onnx: Path) -> None:
    def listing() -> Iterator[Job]:
        yield from jobs[:5]
        raise ZeroDivisionError

    ended: list[Outcome] = []
    with OnnxRuntime(darkness_onnx, threads=1) as runtime, pytest.raises(ZeroDivisionError):
        run_jobs(listing(), runtime, threads=1, on_outcome=ended.append)
    assert len(ended) == 5


def _lines(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / ".isicrt-journal.jsonl").read_text().splitlines())
    return [line for line in lines if line.get("status") == "done"]


def _done(folder: Path) -> set[str]:
    return {line["mask"] for line in _lines(folder)}
