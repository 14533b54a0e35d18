from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from isicrt.benchmarks.accuracy import Accuracy
from isicrt.benchmarks.latency import QUICK_WINDOW, Latency
from isicrt.benchmarks.result import SCHEMA, ModelResult, Report, read_report
from isicrt.benchmarks.throughput import EndToEnd, TimedRun
from isicrt.engine.errors import DataError
from isicrt.engine.pipeline import STAGES
from tests.benchmarks.sample_report import BUSY, sample_model, sample_report

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize(
    "report",
    [
        sample_report(),
        sample_report(rendered=True),
        sample_report(sample_model(scored=False), sample_model("b", slower=2)),
        sample_report(dataclasses.replace(sample_model(), accuracy=Accuracy({}, ("a.png: no mask",)))),
    ],
)
def test_json_round_trip(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(report.to_json(), encoding="utf-8")
    assert read_report(path) == report


def test_json_holds_what_a_reader_needs() -> None:
    text = sample_report().to_json()
    data = json.loads(text)
    assert data["schema"] == SCHEMA
    assert data["command"] == "isicrt bench --model darkness.onnx"
    model = data["models"][0]
    assert model["sha256"] == "ab" * 32
    assert model["card"]["input_height"] == 64
    assert model["latency"][0]["windows_ms"] == [[1.0, 1.1, 1.2, 1.0, 1.1, 3.0]] * 2
    assert model["latency"][0]["p50_ms"] == pytest.approx(1.1)
    assert model["end_to_end"]["images_per_second"] == pytest.approx(10)
    assert model["stages"]["bottleneck"] == "infer"
    assert model["accuracy"]["summary"]["jaccard"] == pytest.approx(0.7)
    assert model["limit_ratio"] == pytest.approx(100 / 46.5)
    assert model["process"]["peak_rss_mb"] == 250
    assert model["timeline"][0]["starts_ms"] == [0, 12]
    assert "[ 1.0, 1.1, 1.2, 1.0, 1.1, 3.0 ]" in text, "samples stand in one line"


@pytest.mark.parametrize("name", sorted(p.name for p in RESULTS.glob("*.json")))
def test_committed_results_can_be_read(name: str) -> None:
    data = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    if str(data["schema"]).startswith("isicrt-bench/"):
        report = read_report(RESULTS / name)
        assert report.models
        assert report.models[0].stages.limit_ms > 0


def test_text_that_looks_like_numbers_is_kept() -> None:
    report = dataclasses.replace(sample_report(), command="a [\n 1,\n 2\n] b")
    assert json.loads(report.to_json())["command"] == "a [\n 1,\n 2\n] b"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not a JSON file"),
        (b"\xff", "not a JSON file"),
        (b"[]", "names no schema, so no report"),
        (b'"text"', "names no schema, so no report"),
        (b"{}", "names no schema, so no report"),
        (b'{"schema": "isicrt-decoding/1"}', "a result of another kind, 'isicrt-decoding/1'"),
        (b'{"schema": "isicrt-bench/0"}', "'isicrt-bench/0'; this isicrt reads 'isicrt-bench/2'"),
        (b'{"schema": "isicrt-bench/1"}', "not whole: it has no 'command'"),
    ],
)
def test_files_that_are_no_reports(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_report(path)


def test_a_report_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_report(tmp_path / "none.json")


def _with(**changes: object) -> ModelResult:
    return dataclasses.replace(sample_model(), **changes)  # type: ignore[arg-type]


def _runs(*seconds: float) -> tuple[TimedRun, ...]:
    return tuple(TimedRun(3, 0, s, 2.4, BUSY) for s in seconds)


def _each(wall_ms: float) -> dict[str, tuple[float, ...]]:
    return dict.fromkeys(STAGES, (wall_ms,))


def _beside(cores: float) -> tuple[TimedRun, ...]:
    """Runs beside other programs that take so many cores."""
    return tuple(dataclasses.replace(run, other_cpu_seconds=cores * run.seconds) for run in _runs(0.3, 0.3, 0.3))


def _sampled(megapixels: float) -> ModelResult:
    return _with(stages=dataclasses.replace(sample_model().stages, megapixels=megapixels))


@pytest.mark.parametrize(
    ("report", "expected", "failed"),
    [
        (sample_report(), [], False),
        (sample_report(load_average=1.7), ["busy before the start: load average 1.7 on 2 cores"], False),
        (
            sample_report(_with(latencies=(Latency(1, ((10.0,), (11.5,))),))),
            ["the machine is noisy", "batch 1: the last 2 of 2 windows differ by 14%"],
            False,
        ),
        (sample_report(_with(latencies=(Latency(1, ((10.0,), (10.9,))),))), [], False),
        (
            sample_report(_with(end_to_end=EndToEnd(8, _runs(9.0, 1.0, 1.0, 1.2)))),
            ["the machine is noisy", "files to masks: the last 3 of 4 runs differ by 20%"],
            False,
        ),
        (sample_report(_with(end_to_end=EndToEnd(8, _runs(9.0, 1.0, 1.0, 1.05)))), [], False),
        # 0.8 MP an image in all, 1.0 in the sample.
        (sample_report(_sampled(1.0)), ["L is of 3 images with 1.00 MP in the mean; all of them have 0.80"], False),
        (sample_report(_sampled(0.82)), [], False),
        (
            # 93 ms of CPU time in 320 ms.
            sample_report(_with(stages=dataclasses.replace(sample_model().stages, wall_ms=_each(80.0)))),
            ["waited for a core 71% of their time"],
            False,
        ),
        (
            sample_report(_with(stages=dataclasses.replace(sample_model().stages, wall_ms=_each(20.0)))),
            ["a stage, alone on one thread, took 300% more CPU time than wall time: another thread ran beside it"],
            False,
        ),
        (
            sample_report(_with(end_to_end=EndToEnd(8, _beside(0.4)))),
            ["other programs, the kernel or other machines kept 0.4 of 2 cores busy while files to masks were timed"],
            False,
        ),
        (sample_report(_with(end_to_end=EndToEnd(8, _beside(0.09)))), [], False),
        (
            dataclasses.replace(sample_report(), protocol=dataclasses.replace(sample_report().protocol, repeats=2)),
            ["fewer than 3 repeats"],
            False,
        ),
        (
            dataclasses.replace(
                sample_report(), protocol=dataclasses.replace(sample_report().protocol, window=QUICK_WINDOW)
            ),
            ["a quick run shows that it works: quote none of its figures"],
            False,
        ),
        (
            sample_report(_with(end_to_end=EndToEnd(8, _runs(1.0), ("a.jpg: the file is empty",)))),
            ["1 images failed. The first: a.jpg: the file is empty"],
            True,
        ),
        (
            sample_report(_with(accuracy=Accuracy(sample_model().accuracy.per_image, ("b.png: no",)))),  # type: ignore[union-attr]
            ["1 masks not scored. The first: b.png: no"],
            True,
        ),
    ],
)
def test_warnings(report: Report, expected: list[str], failed: bool) -> None:
    assert len(report.warnings) == len(expected)
    for warning, part in zip(report.warnings, expected, strict=True):
        assert part in warning
    assert report.failed == failed


def test_images_without_truth_are_reported() -> None:
    report = sample_report()
    report = dataclasses.replace(report, workload=dataclasses.replace(report.workload, without_truth=("x", "y")))
    assert report.warnings == ["2 of 3 images have no ground truth. The first: x"]
    assert not report.failed
