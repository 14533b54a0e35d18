from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from isicrt.benchmarks.accuracy import Accuracy
from isicrt.benchmarks.comparison import (
    NOISE,
    UNKNOWN,
    Comparison,
    compare,
    comparison_cautions,
    comparison_lines,
    comparison_tables,
    main,
)
from isicrt.benchmarks.latency import QUICK_WINDOW
from isicrt.benchmarks.process import Usage
from isicrt.benchmarks.result import ModelResult, Report
from isicrt.benchmarks.throughput import EndToEnd, TimedRun
from tests.benchmarks.sample_report import BUSY, sample_model, sample_report


def _timed(*seconds: float) -> ModelResult:
    runs = tuple(TimedRun(3, 0, s, 2.4, BUSY) for s in seconds)
    return dataclasses.replace(sample_model(), end_to_end=EndToEnd(8, runs))


def _verdicts(found: Comparison) -> dict[str, str]:
    ((_, changes),) = found.changes
    return {c.name: c.verdict for c in changes}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ((1.0, 1.01, 1.02), (1.2, 1.21, 1.22), "worse"),
        ((1.2, 1.21, 1.22), (1.0, 1.01, 1.02), "better"),
        # They overlap.
        ((1.0, 1.1, 1.2), (1.15, 1.25, 1.3), NOISE),
        # They do not, but the runs of one report differ by more than the reports do.
        ((1.0, 1.01, 1.02), (1.03, 1.15, 1.4), NOISE),
        # A clear change of one per cent is none.
        ((1.0, 1.0, 1.0), (1.01, 1.01, 1.01), NOISE),
        ((1.0,), (2.0, 2.0), UNKNOWN),
    ],
)
def test_the_repeats_decide(old: tuple[float, ...], new: tuple[float, ...], expected: str) -> None:
    found = compare(sample_report(_timed(*old)), sample_report(_timed(*new)))
    assert _verdicts(found)["images_per_second"] == expected
    assert found.changed == (expected in ("better", "worse"))


def test_what_did_not_settle_is_said_before_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calm, noisy = sample_report(_timed(1.0, 1.01, 1.02)), sample_report(_timed(2.0, 2.8, 2.4))
    for old, new, age in ((calm, noisy, "newer"), (noisy, calm, "older")):
        lines = comparison_cautions(compare(old, new))
        assert lines[0].startswith("do not quote what changed")
        assert lines[1].startswith(
            f"the {age} report did not settle: darkness: files to masks: the last 3 of 3 runs differ"
        )
    assert comparison_cautions(compare(calm, calm)) == []

    main([_write(tmp_path / "calm.json", calm), _write(tmp_path / "noisy.json", noisy)])
    output = capsys.readouterr().out
    assert output.startswith("do not quote what changed")
    assert output.index("the newer report did not settle") < output.index("images_per_second")


def test_a_quick_run_is_said_before_what_changed() -> None:
    slow = sample_report()
    quick = dataclasses.replace(slow, protocol=dataclasses.replace(slow.protocol, window=QUICK_WINDOW))
    assert comparison_cautions(compare(quick, slow))[1:] == ["the older report is of a quick run"]
    assert comparison_cautions(compare(slow, quick))[1:] == ["the newer report is of a quick run"]


def test_lower_is_better_for_times_and_higher_for_rates() -> None:
    verdicts = _verdicts(compare(sample_report(), sample_report(sample_model(slower=3))))
    assert verdicts["p50_ms@8"] == verdicts["network_images_per_second@8"] == verdicts["infer_cpu_ms"] == "worse"
    assert verdicts["decode_cpu_ms"] == verdicts["peak_rss_mb"] == NOISE


@pytest.mark.parametrize(("peak", "expected"), [(260.0, NOISE), (270.0, "worse"), (200.0, "better")])
def test_memory_has_one_reading_and_a_bound(peak: float, expected: str) -> None:
    new = dataclasses.replace(sample_model(), process=Usage(1.5, 2.0, peak))
    assert _verdicts(compare(sample_report(), sample_report(new)))["peak_rss_mb"] == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ((0.0, 0.0, 0.0), NOISE),
        ((-0.02, -0.02, -0.02), "worse"),
        ((0.02, 0.03, 0.01), "better"),
        # Better in the mean, by one image.
        ((0.1, -0.01, -0.01), NOISE),
    ],
)
def test_scores_are_compared_image_by_image(changes: tuple[float, ...], expected: str) -> None:
    old = sample_model()
    assert old.accuracy is not None
    scores = {
        name: dataclasses.replace(s, jaccard=s.jaccard + change)
        for (name, s), change in zip(old.accuracy.per_image.items(), changes, strict=True)
    }
    new = dataclasses.replace(old, accuracy=Accuracy(scores))
    assert _verdicts(compare(sample_report(old), sample_report(new)))["jaccard"] == expected
    fewer = dataclasses.replace(old, accuracy=Accuracy(dict(list(scores.items())[:2])))
    assert "jaccard" not in _verdicts(compare(sample_report(old), sample_report(fewer)))


def test_what_is_not_the_same_is_said() -> None:
    old, new = sample_report(), sample_report(dataclasses.replace(sample_model(), sha256="cd" * 32))
    new = dataclasses.replace(
        new,
        environment=dataclasses.replace(
            new.environment, cpu="Other CPU", versions={"python": "3.11.7", "isicrt": "9", "onnxruntime": "2"}
        ),
        protocol=dataclasses.replace(new.protocol, threads=1),
    )
    lines = comparison_lines(compare(old, new))
    assert lines == [
        "not the same: CPU: Some CPU before, Other CPU now",
        "not the same: threads: one a core before, 1 now",
        "not the same: onnxruntime: 1.20.0 before, 2 now",
        "not the same: darkness: file: abababababab before, cdcdcdcdcdcd now",
        "nothing changed beyond noise",
    ]
    assert comparison_lines(compare(old, old)) == ["nothing changed beyond noise"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("aa" * 32, "bb" * 32, ["not the same: SHA-256 of images: aaaaaaaaaaaa before, bbbbbbbbbbbb now"]),
        ("aa" * 32, "aa" * 32, []),
        (None, "bb" * 32, []),  # an older report did not note it
    ],
)
def test_images_of_other_contents_are_said(old: str | None, new: str, expected: list[str]) -> None:
    report = sample_report()
    sides = [
        dataclasses.replace(report, workload=dataclasses.replace(report.workload, sha256=sha256))
        for sha256 in (old, new)
    ]
    assert comparison_lines(compare(*sides)) == [*expected, "nothing changed beyond noise"]


@pytest.mark.parametrize(
    ("old", "new", "paired", "alone"),
    [
        (["a", "b"], ["b", "c"], ["b"], ["c"]),
        (["a"], ["b"], ["b"], []),
        (["a"], ["b", "c"], [], ["b", "c"]),
    ],
)
def test_models_are_paired_by_label_or_because_there_is_no_other(
    old: list[str], new: list[str], paired: list[str], alone: list[str]
) -> None:
    found = compare(sample_report(*map(sample_model, old)), sample_report(*map(sample_model, new)))
    assert [label for label, _ in found.changes] == paired
    assert list(found.alone) == alone


def test_the_table_shows_what_changed() -> None:
    (table,) = comparison_tables(compare(sample_report(_timed(1, 1, 1)), sample_report(_timed(2, 2, 2))))
    assert table.rows == (("images_per_second", "3.00", "1.50", "-50.0%", "worse"),)
    assert "within noise and not shown" in table.note


def _write(path: Path, report: Report) -> str:
    path.write_text(report.to_json(), encoding="utf-8")
    return str(path)


def test_two_saved_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [_write(tmp_path / f"{s}.json", sample_report(_timed(s, s, s))) for s in (1, 2)]
    main(files)
    output = capsys.readouterr().out
    assert "images_per_second" in output
    assert "worse" in output
    with pytest.raises(SystemExit, match="Usage"):
        main(files[:1])
    with pytest.raises(SystemExit, match="cannot be read"):
        main([files[0], str(tmp_path / "none.json")])
