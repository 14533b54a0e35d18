"""The pipeline: every image ends once, a bad one costs itself, and no thread outlives a run."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isicrt.engine import run_threads
from isicrt.engine.errors import DataError, ModelError, SettingsError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.images import Decoded, decode_image, read_mask
from isicrt.engine.masks import restore_mask
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.pipeline import (
    STAGES,
    THREAD_PREFIX,
    FailureLimitError,
    Outcome,
    RunSummary,
    available_cores,
    default_threads,
    run_jobs,
)
from isicrt.engine.sources import Job, find_jobs

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    """No thread of a run may be alive after it, however it ended."""
    yield
    assert [t.name for t in threading.enumerate() if t.name.startswith(THREAD_PREFIX)] == []


class OneThreadRuntime(OnnxRuntime):
    """A runtime that one thread calls, as those on a GPU are: a run on it is one in stages."""

    infer_alone: Any = None


@pytest.fixture(params=[OnnxRuntime, OneThreadRuntime], ids=["blocks", "stages"])
def runtime(darkness_onnx: Path, request: pytest.FixtureRequest) -> Iterator[OnnxRuntime]:
    """Of each kind of run. A test that gives `decode_threads` or `write_threads` has stages with both."""
    with request.param(darkness_onnx, threads=1) as runtime:
        yield runtime


class Watched:
    """A runtime around another one, which sees every batch first. Runs on it are those that they are on the other."""

    def __init__(self, inner: OnnxRuntime, before: Callable[[UInt8Array], None], max_batch: int | None = None) -> None:
        self.card, self.name, self.max_batch = inner.card, inner.name, max_batch
        self._inner, self._before = inner, before
        if inner.infer_alone is not None:
            self.at_once, self.infer_alone = inner.at_once, self.infer

    def infer(self, images: UInt8Array) -> UInt8Array:
        self._before(images)
        return self._inner.infer(images)

    def close(self) -> None:
        pass

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_masks_are_right_and_belong_to_their_images(rendered_pairs: Path, tmp_path: Path, runtime: OnnxRuntime) -> None:
    jobs = find_jobs(rendered_pairs / "images", tmp_path)
    outcomes: list[Outcome] = []
    summary = run_jobs(jobs, runtime, batch_size=5, on_outcome=outcomes.append)
    assert sorted(o.job.image for o in outcomes) == [job.image for job in jobs]
    assert sorted(p.name for p in tmp_path.iterdir()) == [job.mask.name for job in jobs]
    for outcome in outcomes:
        image = decode_image(outcome.job.image, (64, 64))
        (probability,) = runtime.infer(image.pixels[None])
        expected = restore_mask(probability, image.native_size, threshold=0.5, keep_largest=True, fill_holes=True)
        np.testing.assert_array_equal(read_mask(outcome.job.mask), expected)
        assert 0 < expected.mean() == outcome.lesion_fraction
        assert outcome.native_size == image.native_size
        assert outcome.error is None
    assert (summary.images, summary.failed) == (12, 0)
    assert summary.megapixels == pytest.approx(6 * (96 * 128 + 120 * 90) / 1e6)
    assert tuple(summary.stage_seconds) == STAGES
    assert all(value > 0 for value in summary.stage_seconds.values())


@pytest.mark.parametrize("batch_size", [1, 2, 5, 12, 13, 100])
@pytest.mark.parametrize("threads", [(1, 1), (3, 2)])
def test_batches_are_full_except_the_last(
    rendered_pairs: Path, tmp_path: Path, runtime: OnnxRuntime, batch_size: int, threads: tuple[int, int]
) -> None:
    sizes: list[int] = []
    watched = Watched(runtime, lambda images: sizes.append(len(images)))
    jobs = find_jobs(rendered_pairs / "images", tmp_path)
    summary = run_jobs(jobs, watched, batch_size=batch_size, decode_threads=threads[0], write_threads=threads[1])
    full, rest = divmod(12, batch_size)
    assert sizes == [batch_size] * full + [rest] * (rest > 0)
    assert summary.failed == 0
    assert len(list(tmp_path.iterdir())) == 12


def test_an_empty_run(runtime: OnnxRuntime) -> None:
    summary = run_jobs([], runtime)
    assert (summary.images, summary.failed, summary.megapixels) == (0, 0, 0)
    assert summary.images_per_second == 0


def test_a_bad_image_costs_itself(rendered_pairs: Path, tmp_path: Path, runtime: OnnxRuntime) -> None:
    good = find_jobs(rendered_pairs / "images", tmp_path / "out")
    (tmp_path / "bad.jpg").write_bytes(b"rubbish")
    bad = [Job(tmp_path / name, tmp_path / "out" / f"{name}.png") for name in ("bad.jpg", "absent.jpg")]
    outcomes: dict[str, Outcome] = {}
    summary = run_jobs(
        [good[0], bad[0], *good[1:3], bad[1]],
        runtime,
        batch_size=2,
        on_outcome=lambda o: outcomes.update({o.job.image.name: o}),
    )
    assert (summary.images, summary.failed) == (5, 2)
    assert "not a JPEG" in str(outcomes["bad.jpg"].error)
    assert "No such file" in str(outcomes["absent.jpg"].error)
    assert outcomes["bad.jpg"].lesion_fraction is outcomes["bad.jpg"].native_size is None
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_only_bad_images(tmp_path: Path, runtime: OnnxRuntime) -> None:
    jobs = [Job(tmp_path / f"{n}.jpg", tmp_path / f"{n}.png") for n in range(200)]
    summary = run_jobs(jobs, runtime)
    assert (summary.images, summary.failed) == (200, 200)


def test_a_mask_that_cannot_be_written_costs_itself(rendered_pairs: Path, tmp_path: Path, runtime: OnnxRuntime) -> None:
    images = [job.image for job in find_jobs(rendered_pairs / "images", tmp_path)][:4]
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    masks = [tmp_path / "a.png", tmp_path / "file" / "b.png", tmp_path / "folder.png", tmp_path / "x" / "y" / "d.png"]
    errors: dict[Path, str | None] = {}
    summary = run_jobs(
        map(Job, images, masks), runtime, on_outcome=lambda outcome: errors.update({outcome.job.mask: outcome.error})
    )
    assert (summary.images, summary.failed) == (4, 2)
    assert errors[masks[0]] is errors[masks[3]] is None
    assert str(errors[masks[1]]).startswith(f"{masks[1]}: ")
    assert str(errors[masks[2]]).startswith(f"{masks[2]}: ")
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_overlay_that_fails_is_a_failure(rendered_pairs: Path, tmp_path: Path, runtime: OnnxRuntime) -> None:
    jobs = find_jobs(rendered_pairs / "images", tmp_path)

    def overlay(job: Job, mask: np.ndarray) -> None:
        assert read_mask(job.mask).shape == mask.shape
        if job == jobs[3]:
            raise DataError("no pen")

    errors = {}
    run_jobs(jobs, runtime, overlay=overlay, on_outcome=lambda o: errors.update({o.job: o.error}))
    assert {job: error for job, error in errors.items() if error} == {jobs[3]: "no pen"}


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (
            RuntimeError("out of memory"),
            ModelError,
            r"'darkness' failed on a batch of 2 .* and 1 more\): out of memory",
        ),
        (ModelError("bad plan"), ModelError, "^bad plan$"),
    ],
)
def test_a_runtime_that_fails_ends_the_run(
    rendered_pairs: Path, tmp_path: Path, runtime: OnnxRuntime, error: Exception, raised: type, message: str
) -> None:
    calls: list[int] = []

    def fail(images: UInt8Array) -> None:
        calls.append(len(images))
        if len(calls) == 2:
            raise error

    endless = (job for _ in iter(int, 1) for job in find_jobs(rendered_pairs / "images", tmp_path))
    with pytest.raises(raised, match=message):
        run_jobs(endless, Watched(runtime, fail), batch_size=2)
    for path in tmp_path.iterdir():
        read_mask(path)


def test_jobs_that_raise_end_the_run(rendered_pairs: Path, tmp_path: Path, runtime: OnnxRuntime) -> None:
    def jobs() -> Iterator[Job]:
        yield from find_jobs(rendered_pairs / "images", tmp_path)
        raise DataError("the list is torn")

    with pytest.raises(DataError, match="the list is torn"):
        run_jobs(jobs(), runtime)


@pytest.mark.parametrize(("error", "drained"), [(KeyboardInterrupt(), True), (ZeroDivisionError(), False)])
def test_an_exception_in_the_consumer_stops_everything(
    rendered_pairs: Path, tmp_path: Path, runtime: OnnxRuntime, error: BaseException, drained: bool
) -> None:
    endless = (job for _ in iter(int, 1) for job in find_jobs(rendered_pairs / "images", tmp_path))
    seen: list[Outcome] = []

    def interrupt(outcome: Outcome) -> None:
        seen.append(outcome)
        if len(seen) == 20:
            raise error

    with pytest.raises(type(error)):
        run_jobs(endless, runtime, batch_size=3, on_outcome=interrupt)
    assert len(seen) > 20 if drained else len(seen) == 20
    assert not list(tmp_path.glob(".*"))
    for path in tmp_path.iterdir():
        read_mask(path)


def test_a_stage_that_hangs_does_not_hold_an_interrupted_run(
    rendered_pairs: Path, tmp_path: Path, runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_threads, "STOP_SECONDS", 0.4)
    entered, released = threading.Event(), threading.Event()

    def hang(_: UInt8Array) -> None:
        entered.set()
        assert released.wait(60)

    def interrupt(_: Outcome) -> None:
        assert entered.wait(60)
        raise KeyboardInterrupt

    good = find_jobs(rendered_pairs / "images", tmp_path)
    absent = Job(tmp_path / "absent.jpg", tmp_path / "absent.png")
    with pytest.raises(KeyboardInterrupt):
        run_jobs([absent, *good], Watched(runtime, hang), batch_size=2, on_outcome=interrupt)
    hanging = [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_PREFIX)]
    names = [thread.name.removeprefix(THREAD_PREFIX) for thread in hanging]
    assert "infer" in names or "worker-0" in names
    assert not released.is_set()
    released.set()
    for thread in hanging:
        thread.join(60)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("limit", "stops"), [(0, True), (2, True), (3, False), (None, False)])
def test_too_many_failures_end_the_run(
    rendered_pairs: Path, tmp_path: Path, runtime: OnnxRuntime, limit: int | None, stops: bool
) -> None:
    jobs = find_jobs(rendered_pairs / "images", tmp_path)
    bad = [Job(tmp_path / f"{n}.jpg", tmp_path / f"{n}.png", problem=f"no {n}") for n in range(3)]
    seen: list[Outcome] = []
    if stops:
        with pytest.raises(FailureLimitError, match=r"stopped: \d images have failed"):
            run_jobs([*bad, *[*jobs] * 50], runtime, max_failures=limit, on_outcome=seen.append)
        assert 3 <= len(seen) < 603
    else:
        assert run_jobs([*bad, *jobs], runtime, max_failures=limit, on_outcome=seen.append).failed == 3
        assert len(seen) == 15


def test_a_stuck_decode_costs_its_image(rendered_pairs: Path, tmp_path: Path, runtime: OnnxRuntime) -> None:
    released = threading.Event()

    def decode(path: Path, size: tuple[int, int]) -> Decoded:
        if path.stem in ("ISIC_0000003", "ISIC_0000007"):
            assert released.wait(120)
        return decode_image(path, size)

    jobs = find_jobs(rendered_pairs / "images", tmp_path)
    errors: dict[str, str | None] = {}
    summary = run_jobs(
        jobs,
        runtime,
        decode=decode,
        threads=2,
        decode_timeout=2,
        on_outcome=lambda o: errors.update({o.job.image.stem: o.error}),
    )
    stuck = [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_PREFIX)]
    released.set()
    for thread in stuck:
        thread.join(60)
    assert len(stuck) == 2
    assert (summary.images, summary.failed) == (12, 2)
    assert {stem for stem, error in errors.items() if error} == {"ISIC_0000003", "ISIC_0000007"}
    assert "it took more than 2 s (--decode-timeout)" in str(errors["ISIC_0000003"])
    assert len(list(tmp_path.iterdir())) == 10  # what came too late was thrown away


def test_a_request_to_stop_drains(rendered_pairs: Path, tmp_path: Path, runtime: OnnxRuntime) -> None:
    seen: list[Outcome] = []
    endless = (job for _ in iter(int, 1) for job in find_jobs(rendered_pairs / "images", tmp_path))
    with pytest.raises(KeyboardInterrupt):
        run_jobs(endless, runtime, on_outcome=seen.append, should_stop=lambda: len(seen) > 30)
    assert all(outcome.error is None for outcome in seen)


def test_threshold_and_cleaning_come_from_the_card(tmp_path: Path, runtime: OnnxRuntime) -> None:
    pixels = np.full((64, 64, 3), 200, np.uint8)  # a probability of 55
    pixels[10:30, 10:30] = 100  # 155
    pixels[40:44, 40:44] = 0  # 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    job = Job(tmp_path / "a.png", tmp_path / "out" / "a.png")

    def lesion(card_changes: dict[str, object], threshold: float | None = None) -> int:
        watched = Watched(runtime, lambda _: None)
        watched.card = runtime.card.replace(**card_changes)
        run_jobs([job], watched, threshold=threshold)
        return int(read_mask(job.mask).sum())

    assert lesion({}) == 400
    assert lesion({"keep_largest": False}) == 416
    assert lesion({"threshold": 0.7}) == 16
    assert lesion({"threshold": 0.7}, threshold=0.1) == 64 * 64


@pytest.mark.parametrize(("bits", "mode"), [(1, "1"), (8, "L")])
def test_mask_bits(rendered_pairs: Path, tmp_path: Path, runtime: OnnxRuntime, bits: int, mode: str) -> None:
    job = find_jobs(rendered_pairs / "images", tmp_path)[0]
    run_jobs([job], runtime, mask_bits=bits)
    with Image.open(job.mask) as image:
        assert image.mode == mode


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch size 0: model 'darkness' takes 1 to 4"),
        ({"batch_size": 5}, "takes 1 to 4"),
        ({"threshold": 0.0}, "threshold 0.0"),
        ({"threshold": 1.0}, "threshold 1.0"),
        ({"threshold": float("nan")}, "threshold nan"),
        ({"mask_bits": 2}, "mask bits 2"),
        ({"decode_threads": 0}, "at least 1"),
        ({"write_threads": 0}, "at least 1"),
        ({"threads": 0}, "at least 1"),
    ],
)
def test_settings_out_of_range(runtime: OnnxRuntime, options: dict[str, float], message: str) -> None:
    watched = Watched(runtime, lambda _: None, max_batch=4)
    with pytest.raises(SettingsError, match=message):
        run_jobs([], watched, **({"batch_size": 1} | options))


def test_speeds_do_not_count_failures() -> None:
    summary = RunSummary(images=12, failed=2, seconds=5.0, megapixels=20.0, stage_seconds={})
    assert summary.images_per_second == 2
    assert summary.megapixels_per_second == 4


def test_threads_fit_the_cores() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
    assert all(n >= 1 for cores in (1, 2, 64) for n in default_threads(cores))
