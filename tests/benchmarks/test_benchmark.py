from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
import pytest

from isicrt.benchmarks.accuracy import score_masks
from isicrt.benchmarks.benchmark import run_benchmark
from isicrt.benchmarks.latency import QUICK_WINDOW, Latency, Window, measure_latency
from isicrt.benchmarks.result import ModelResult, Protocol
from isicrt.benchmarks.throughput import TimedRun
from isicrt.benchmarks.workload import how_many_in_turn, open_workload, readable_sample
from isicrt.engine.errors import DataError, ModelError, SettingsError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.images import decode_image
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.pipeline import STAGES, run_jobs
from isicrt.engine.sources import Job, find_jobs
from tests.tiny_models import write_darkness_model


def _protocol(batch_sizes: tuple[int, ...] = (1, 4), repeats: int = 2) -> Protocol:
    return Protocol(batch_sizes, repeats, 1, QUICK_WINDOW, 4)


def test_the_masks_of_the_timed_run_are_scored(darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    images, masks = rendered_pairs / "images", rendered_pairs / "masks"
    report = run_benchmark([str(darkness_onnx)], _protocol(), images=images, masks=masks)

    (model,) = report.models
    assert model.label == "darkness"
    assert [x.batch_size for x in model.latencies] == [1, 4]
    assert [len(x.windows_ms) for x in model.latencies] == [2, 2]
    assert [(r.images, r.failed) for r in model.end_to_end.runs] == [(12, 0)] * 2
    assert model.end_to_end.batch_size == 4
    assert report.workload.images == 12
    assert report.workload.sha256 == open_workload(images, None, tmp_path / "none").read_ahead()
    assert not report.workload.rendered

    assert model.process is not None
    assert model.process.peak_rss_mb is None or model.process.peak_rss_mb > 20
    assert model.stages.images == 4
    assert {lane.stage for lane in model.timeline} == set(STAGES)
    assert sum(len(lane.starts_ms) for lane in model.timeline if lane.stage == "decode") == 12

    with OnnxRuntime(darkness_onnx) as runtime:
        jobs = find_jobs(images, tmp_path)
        run_jobs(jobs, runtime, batch_size=1)
    truths = {PurePath(j.mask.name): masks / f"{j.mask.stem}_Segmentation.png" for j in jobs}
    assert model.accuracy == score_masks(tmp_path, truths)
    assert model.accuracy is not None
    assert model.accuracy.summary["images"] == 12


def test_without_images_they_are_rendered_and_said_to_be(darkness_onnx: Path) -> None:
    report = run_benchmark([str(darkness_onnx)], _protocol((2,), 1), rendered=2)
    assert report.workload.rendered
    assert report.workload.source == "2 rendered images, 1022 x 767 px, JPEG quality 90"
    assert report.models[0].end_to_end.runs[0].megapixels == pytest.approx(2 * 1.022 * 0.767)
    assert report.models[0].accuracy is not None
    assert report.to_dict()["workload"]["note"] == "rendered images: says nothing about patients"


def test_without_masks_there_are_no_scores(darkness_onnx: Path, rendered_pairs: Path) -> None:
    report = run_benchmark([str(darkness_onnx)], _protocol((1,), 1), images=rendered_pairs / "images")
    assert report.models[0].accuracy is None


def test_models_are_told_apart(darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    write_darkness_model(other, size=(32, 32))
    steps: list[tuple[str, int, int]] = []
    report = run_benchmark(
        [str(darkness_onnx), str(other), str(other)],
        _protocol((1,), 2),
        images=rendered_pairs / "images",
        on_step=lambda *step: steps.append(step),
    )
    labels = ["darkness (darkness.onnx)", "darkness (other.onnx) #1", "darkness (other.onnx) #2"]
    assert [m.label for m in report.models] == labels
    assert report.models[1].card.input_size == (32, 32)
    assert report.models[0].sha256 != report.models[1].sha256 == report.models[2].sha256
    # Repeats are interleaved: a machine that slows down slows all of them.
    assert [s[0] for s in steps] == [
        f"{name}: {run}" for run in ("warming up", "run 1 of 2", "run 2 of 2", "memory and timeline") for name in labels
    ]
    assert [s[1] for s in steps] == sorted(s[1] for s in steps)
    assert max(s[1] for s in steps) < steps[0][2]


def test_the_network_alone_takes_a_sample_in_turn_and_not_the_smallest_files(
    darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[list[UInt8Array]] = []

    def measured(runtime: OnnxRuntime, batches: list[UInt8Array], window: Window) -> tuple[float, ...]:
        rounds.append(batches)
        return measure_latency(runtime, batches, window)

    monkeypatch.setattr("isicrt.benchmarks.benchmark.measure_latency", measured)
    protocol = dataclasses.replace(_protocol((1, 5)), stage_images=12)
    models = [str(darkness_onnx)] * 2
    report = run_benchmark(models, protocol, images=rendered_pairs / "images")
    files = readable_sample(open_workload(rendered_pairs / "images", None, tmp_path), (64, 64), 12)
    by_bytes = [decode_image(f, (64, 64)).pixels.tobytes() for f in files]
    singles = [image.tobytes() for (image,) in rounds[0]]
    assert sorted(singles) == sorted(by_bytes)
    assert singles != by_bytes, "not the smallest first"
    fives = [image.tobytes() for batch in rounds[1] for image in batch]
    assert fives == [*singles, *singles[:3]]
    assert [[len(b) for b in batches] for batches in rounds[:2]] == [[1] * 12, [5] * 3]
    for n, batches in enumerate(rounds):
        assert all(map(np.array_equal, batches, rounds[n % 2])), "every model and window"
    for model in report.models:
        assert [x.images for x in model.latencies] == [12, 12]
        assert [len(w) % 12 for w in model.latencies[0].windows_ms] == [0, 0]
        assert [len(w) % 3 for w in model.latencies[1].windows_ms] == [0, 0]
    assert report.to_dict()["models"][0]["latency"][0]["images"] == 12


@pytest.mark.parametrize(
    ("sizes", "count"), [([(192, 192)], 256), ([(192, 192), (1024, 1024)], 21), ([(9999, 9999)], 1)]
)
def test_the_images_taken_in_turn_have_a_bound_of_memory(sizes: list[tuple[int, int]], count: int) -> None:
    assert how_many_in_turn(sizes) == count


class SlowStart(OnnxRuntime):
    """A runtime whose first call takes 3 s."""

    slow = 1

    def infer(self, images: UInt8Array) -> UInt8Array:
        if self.slow:
            self.slow -= 1
            time.sleep(3)
        return super().infer(images)


def test_what_is_slow_at_first_is_in_no_figure(
    darkness_onnx: Path, rendered_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[SlowStart] = []

    def open_slowly(path: Path, *, threads: int | None) -> SlowStart:
        opened.append(SlowStart(path, threads=threads))
        return opened[-1]

    monkeypatch.setattr("isicrt.benchmarks.benchmark.open_runtime", open_slowly)
    report = run_benchmark([str(darkness_onnx)], _protocol((1, 4), 1), images=rendered_pairs / "images")
    (model,) = report.models
    # Two: the stages have the network on one thread.
    assert [runtime.slow for runtime in opened] == [0, 0]
    assert max(x.samples_ms.max() for x in model.latencies) < 3000
    assert model.end_to_end.runs[0].seconds < 3
    assert model.stages.wall("infer") * 4 < 3000


@pytest.mark.parametrize(("most", "spreads", "expected"), [(5, [1.0, 3.0, 1.0, 1.0, 1.0], 5), (4, [1.0] * 4, 2)])
def test_it_goes_on_until_the_runs_agree(
    most: int,
    spreads: list[float],
    expected: int,
    darkness_onnx: Path,
    rendered_pairs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = iter([1.0, *spreads])  # the first is the warm-up

    def timed(jobs: Sequence[Job], *_: object) -> tuple[TimedRun, tuple[str, ...]]:
        return TimedRun(len(jobs), 0, next(seconds), 1.0, dict.fromkeys(STAGES, 0.1)), ()

    monkeypatch.setattr("isicrt.benchmarks.benchmark.run_once", timed)
    monkeypatch.setattr("isicrt.benchmarks.benchmark.record_timeline", lambda *_: ())
    monkeypatch.setattr(Latency, "settled", True)
    monkeypatch.setattr("isicrt.benchmarks.benchmark.settled", lambda _: True)  # of the passes through the stages
    protocol = dataclasses.replace(_protocol((1,), 2), max_repeats=most)
    report = run_benchmark([str(darkness_onnx)], protocol, images=rendered_pairs / "images")
    assert len(report.models[0].end_to_end.runs) == expected


def test_a_batch_size_above_the_models_is_lowered(
    darkness_onnx: Path, rendered_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a plan has a limit, whose runtime needs a GPU.
    monkeypatch.setattr(OnnxRuntime, "max_batch", 1)
    report = run_benchmark([str(darkness_onnx)], _protocol((1, 8), 1), images=rendered_pairs / "images")
    assert [x.batch_size for x in report.models[0].latencies] == [1]
    assert report.models[0].end_to_end.batch_size == 1


def test_contents_and_names_of_images_are_told_apart_and_their_folder_is_not(
    rendered_pairs: Path, tmp_path: Path
) -> None:
    def digest(folder: Path) -> str:
        return open_workload(folder, None, tmp_path / "masks").read_ahead()

    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(rendered_pairs / "images", first)
    shutil.copytree(first, second)
    before = digest(first)
    assert digest(second) == before
    file = second / "ISIC_0000003.jpg"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1  # of the same size
    file.write_bytes(content)
    assert digest(second) != before
    shutil.copy(first / file.name, file)
    assert digest(second) == before
    file.rename(second / "other.jpg")
    assert digest(second) != before


def test_another_truth_of_the_same_images_is_told_apart(rendered_pairs: Path, tmp_path: Path) -> None:
    def digest(masks: Path | None) -> str | None:
        return open_workload(rendered_pairs / "images", masks, tmp_path / "none").describe().truth_sha256

    other = tmp_path / "other"
    shutil.copytree(rendered_pairs / "masks", other)
    assert digest(None) is None
    before = digest(rendered_pairs / "masks")
    assert before is not None
    assert digest(other) == before
    shutil.copy(other / "ISIC_0000004_Segmentation.png", other / "ISIC_0000003_Segmentation.png")
    assert digest(other) != before


def test_a_bad_image_costs_that_image(darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(rendered_pairs / "images", images)
    (images / "ISIC_0000003.jpg").write_bytes(b"not an image")
    (images / "ISIC_0000004.jpg").unlink()
    (images / "ISIC_0000004.jpg").symlink_to("gone.jpg")
    report = run_benchmark([str(darkness_onnx)], _protocol(), images=images, masks=rendered_pairs / "masks")
    (model,) = report.models
    assert model.end_to_end.runs[0].failed == 2
    assert len(model.end_to_end.failures) == 2
    assert "ISIC_0000003.jpg" in model.end_to_end.failures[0]
    assert model.accuracy is not None
    assert model.accuracy.summary["images"] == 10
    assert report.failed


@pytest.mark.parametrize(
    ("code", "broken", "message"),
    [
        (1, False, "ended with exit code 1"),  # as of an exception that nobody caught
        (0, False, "wrote 0 masks where the timed runs wrote 12"),
        (1, True, "wrote 0 masks where the timed runs wrote 11"),
    ],
)
def test_memory_is_not_that_of_a_process_that_crashed(
    code: int,
    broken: bool,
    message: str,
    darkness_onnx: Path,
    rendered_pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = tmp_path / "images"
    shutil.copytree(rendered_pairs / "images", images)
    if broken:
        (images / "ISIC_0000003.jpg").write_bytes(b"not an image")
    command = [sys.executable, "-S", "-c", f"import sys; sys.exit({code})"]
    monkeypatch.setattr("isicrt.benchmarks.benchmark.isicrt_command", lambda *_: command)
    report = run_benchmark([str(darkness_onnx)], _protocol((4,), 1), images=images)
    (model,) = report.models
    assert model.process is None
    assert message in str(model.process_note)
    assert f"darkness: {model.process_note}" in report.warnings
    assert ModelResult.from_dict(json.loads(json.dumps(model.to_dict()))).process_note == model.process_note


def test_truth_in_sub_folders_and_images_without_truth(
    darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path
) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "b").mkdir()
    (tmp_path / "truth" / "a").mkdir(parents=True)
    (tmp_path / "truth" / "b").mkdir()
    pairs = [("a/1", 0), ("b/1", 1), ("b/2", 2)]
    for name, n in pairs:
        shutil.copy(rendered_pairs / "images" / f"ISIC_{n:07d}.jpg", tmp_path / "images" / f"{name}.jpg")
        if name != "b/2":
            shutil.copy(rendered_pairs / "masks" / f"ISIC_{n:07d}_Segmentation.png", tmp_path / "truth" / f"{name}.png")
    report = run_benchmark(
        [str(darkness_onnx)], _protocol((1,), 1), images=tmp_path / "images", masks=tmp_path / "truth"
    )
    assert report.models[0].accuracy is not None
    assert sorted(report.models[0].accuracy.per_image) == ["a/1.png", "b/1.png"]
    assert report.models[0].accuracy.problems == ()
    assert report.workload.without_truth == ("b/2",)


def test_bad_arguments(darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    model, images = str(darkness_onnx), rendered_pairs / "images"
    with pytest.raises(SettingsError, match="--masks needs --images"):
        run_benchmark([model], _protocol(), masks=images)
    with pytest.raises(ModelError, match="no-such-model"):
        run_benchmark(["no-such-model"], _protocol())
    with pytest.raises(DataError, match="no ground truth"):
        run_benchmark([model], _protocol(), images=images, masks=tmp_path)
    with pytest.raises(DataError, match="no image"):
        run_benchmark([model], _protocol(), images=tmp_path)
    (tmp_path / "bad.jpg").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"can be decoded.*bad\.jpg"):
        run_benchmark([model], _protocol(), images=tmp_path)
