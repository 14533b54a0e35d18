from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

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
from isicrt.benchmarks.gates import figures
from isicrt.benchmarks.latency import QUICK_WINDOW, Latency
from isicrt.benchmarks.process import Usage
from isicrt.benchmarks.result import ModelResult, Report, read_report
from isicrt.benchmarks.throughput import EndToEnd, TimedRun
from isicrt.engine.errors import DataError
from tests.benchmarks.sample_report import BUSY, sample_model, sample_report

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


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


def _printed(*files: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, files)
    assert done.exit_code == code
    return done.output


def test_what_did_not_settle_is_said_before_what_changed(tmp_path: Path) -> None:
    calm, noisy = sample_report(_timed(1.0, 1.01, 1.02)), sample_report(_timed(2.0, 2.8, 2.4))
    for old, new, age in ((calm, noisy, "newer"), (noisy, calm, "older")):
        lines = comparison_cautions(compare(old, new))
        assert lines[0].startswith("do not quote what changed")
        assert lines[1].startswith(
            f"the {age} report did not settle: darkness: files to masks: the last 3 of 3 runs differ"
        )
    assert comparison_cautions(compare(calm, calm)) == []

    output = _printed(_write(tmp_path / "calm.json", calm), _write(tmp_path / "noisy.json", noisy))
    assert output.startswith("do not quote what changed")
    assert output.index("the newer report did not settle") < output.index("images_per_second")


def test_a_quick_run_is_said_before_what_changed() -> None:
    slow = sample_report()
    quick = dataclasses.replace(slow, protocol=dataclasses.replace(slow.protocol, window=QUICK_WINDOW))
    assert comparison_cautions(compare(quick, slow))[1:] == ["the older report is of a quick run"]
    assert comparison_cautions(compare(slow, quick))[1:] == ["the newer report is of a quick run"]


@pytest.mark.parametrize(("load", "busy"), [(1.7, True), (1.0, False)])
def test_a_machine_that_was_busy_before_the_start_is_said_before_what_changed(load: float, busy: bool) -> None:
    calm, other = sample_report(), sample_report(load_average=load)
    for old, new, age in ((calm, other, "newer"), (other, calm, "older")):
        expected = [f"of the {age} report the machine was busy before the start: load average {load} on 2 cores"]
        assert comparison_cautions(compare(old, new))[1:] == (expected if busy else [])
    assert bool(other.warnings) == busy, "as the report itself says"


def test_other_programs_meanwhile_are_said_before_what_changed() -> None:
    run = dataclasses.replace(sample_model().end_to_end.runs[0], other_cpu_seconds=0.3)
    calm, other = (
        sample_report(dataclasses.replace(sample_model(), end_to_end=EndToEnd(8, (each,) * 3)))
        for each in (dataclasses.replace(run, other_cpu_seconds=0.0), run)
    )
    for old, new, age in ((calm, other, "newer"), (other, calm, "older")):
        _, line = comparison_cautions(compare(old, new))
        assert line.startswith(f"the {age} report is of a busy machine: darkness: other programs, the kernel or other")
    assert comparison_cautions(compare(calm, calm)) == []


@pytest.mark.parametrize(
    ("wall_ms", "waited"),
    [
        (27.0, "14%"),  # 93 ms of CPU time in 108 ms
        (25.0, None),  # in 100 ms: within the tolerance
    ],
)
def test_stages_that_waited_are_said_before_what_changed(wall_ms: float, waited: str | None) -> None:
    stages = dataclasses.replace(sample_model().stages, wall_ms=dict.fromkeys(BUSY, (wall_ms, wall_ms)))
    calm, other = sample_report(), sample_report(dataclasses.replace(sample_model(), stages=stages))
    for old, new, age in ((calm, other, "newer"), (other, calm, "older")):
        lines = comparison_cautions(compare(old, new))
        expected = (
            f"the {age} report is of a busy machine: darkness: its stages, each alone, waited for a core {waited}"
        )
        assert lines[1:] == ([f"{expected} of their time"] if waited else [])
    assert any("waited for a core" in line for line in other.warnings) == bool(waited), "as the report itself says"


def _called(*windows_ms: tuple[float, ...]) -> ModelResult:
    return dataclasses.replace(sample_model(), latencies=(Latency(1, windows_ms),))


def test_the_figures_are_those_of_the_report_and_of_the_gates() -> None:
    # Median of all samples 5.1 and 7.1, of the windows' medians 4.3 and 6.3.
    old, new = _called((5.1,) * 9, (4.3,), (4.2,)), _called((7.1,) * 9, (6.3,), (6.2,))
    found = compare(sample_report(old), sample_report(new))
    ((_, changes),) = found.changes
    shown = {c.name: (c.old, c.new) for c in changes}
    assert shown["p50_ms@1"] == (5.1, 7.1)
    gated = {name: value for name, value in figures(old).items() if name in shown}
    assert {"images_per_second", "p50_ms@1", "p99_ms@1", "network_images_per_second@1", "jaccard"} <= gated.keys()
    assert {name: shown[name] for name in gated} == {name: (gated[name], figures(new)[name]) for name in gated}
    assert shown["decode_cpu_ms"] == (old.stages.cpu("decode"), new.stages.cpu("decode"))
    (table,) = comparison_tables(found)
    assert ("p50_ms@1", "5.10", "7.10", "+39.2%", "worse") in table.rows


def test_calls_on_one_batch_and_on_images_in_turn_are_not_the_same() -> None:
    old = _called((1.0,))
    new = dataclasses.replace(old, latencies=(Latency(1, ((1.0,),), 256),))
    line = "the network alone is of: one batch of the smallest files before, 256 images in turn now"
    found = compare(sample_report(old), sample_report(new))
    assert f"not the same: darkness: {line}" in comparison_lines(found)
    assert not [c.name for _, changes in found.changes for c in changes if c.name.endswith("@1")]
    assert comparison_lines(compare(sample_report(new), sample_report(new))) == [
        "3 of 11 figures cannot be judged: too few repeats: measure both sides at least twice (--repeats)",
        "nothing else changed beyond noise",
    ]


def test_repeats_that_do_not_count_have_no_say() -> None:
    def measured(first: float, then: float) -> ModelResult:
        costs = (first, then, then, then)
        stages = dataclasses.replace(
            sample_model().stages, wall_ms=dict.fromkeys(BUSY, costs), cpu_ms=dict.fromkeys(BUSY, costs)
        )
        model = _called(*((ms, ms) for ms in costs))
        return dataclasses.replace(model, stages=stages, end_to_end=_timed(*costs).end_to_end)

    verdicts = _verdicts(compare(sample_report(measured(2.0, 1.0)), sample_report(measured(1.0, 2.0))))
    assert {name for name, verdict in verdicts.items() if verdict == NOISE} == {"peak_rss_mb", "jaccard", "dice"}
    assert len(verdicts) == 11, "runs, three figures of the windows, four stages"


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        # The windows' medians are apart by 20 % in the middle and differ by 10 and 13 %; all samples by 4.5 %.
        ("p50_ms@1", ((1.0,), (1.0,), (1.1,) * 9), ((1.15,) * 9, (1.3,), (1.2,))),
        # Each window's p99 rises, from 81 to 84 ms; that of all samples falls, from 100 to 90.
        ("p99_ms@1", ((*(1.0,) * 19, 100.0),) * 3, ((*(60.0,) * 19, 90.0),) * 3),
    ],
)
def test_repeats_that_do_not_bear_the_figure_out_are_noise(
    name: str, old: tuple[tuple[float, ...], ...], new: tuple[tuple[float, ...], ...]
) -> None:
    assert _verdicts(compare(sample_report(_called(*old)), sample_report(_called(*new))))[name] == NOISE


def test_lower_is_better_for_times_and_higher_for_rates() -> None:
    verdicts = _verdicts(compare(sample_report(), sample_report(sample_model(slower=3))))
    assert verdicts["p50_ms@8"] == verdicts["network_images_per_second@8"] == verdicts["infer_cpu_ms"] == "worse"
    assert verdicts["decode_cpu_ms"] == verdicts["peak_rss_mb"] == NOISE


@pytest.mark.parametrize(("peak", "expected"), [(260.0, NOISE), (270.0, "worse"), (200.0, "better")])
def test_memory_has_one_reading_and_a_bound(peak: float, expected: str) -> None:
    new = dataclasses.replace(sample_model(), process=Usage(1.5, 2.0, peak))
    assert _verdicts(compare(sample_report(), sample_report(new)))["peak_rss_mb"] == expected


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


def _of_images(sha256: str | None, source: str = "images", megabytes: float = 0.4) -> Report:
    report = sample_report()
    workload = dataclasses.replace(report.workload, sha256=sha256, source=source, megabytes=megabytes)
    return dataclasses.replace(report, workload=workload)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            _of_images("aa" * 32),
            _of_images("bb" * 32),
            ["other images: SHA-256 of images: aaaaaaaaaaaa before, bbbbbbbbbbbb now"],
        ),
        (
            _of_images("aa" * 32, "images-512", 9.0),
            _of_images("bb" * 32, "images-1022", 50.0),
            [
                "other images: images: images-512 before, images-1022 now",
                "other images: megabytes of images: 9.0 before, 50.0 now",
                "other images: SHA-256 of images: aaaaaaaaaaaa before, bbbbbbbbbbbb now",
            ],
        ),
        # An older report did not note the contents: what else is known decides.
        (_of_images(None), _of_images("bb" * 32), []),
        (
            _of_images(None),
            _of_images("bb" * 32, megabytes=0.9),
            ["other images: megabytes of images: 0.4 before, 0.9 now"],
        ),
    ],
)
def test_other_images_are_a_caution(old: Report, new: Report, expected: list[str]) -> None:
    found = compare(old, new)
    lines = comparison_cautions(found)
    assert lines[1:] == expected
    assert [line.startswith("the two reports are of other images") for line in lines[:1]] == [True] * bool(expected)
    assert comparison_lines(found) == ["nothing changed beyond noise"], "it is not said twice"


def test_the_same_images_elsewhere_are_no_caution() -> None:
    found = compare(_of_images("aa" * 32, "here"), _of_images("aa" * 32, "there"))
    assert comparison_cautions(found) == []
    assert comparison_lines(found)[0] == "not the same: images: here before, there now"


def test_other_images_are_said_before_the_table(tmp_path: Path) -> None:
    old = dataclasses.replace(_of_images("aa" * 32), models=(_timed(1, 1, 1),))
    new = dataclasses.replace(_of_images("bb" * 32), models=(_timed(2, 2, 2),))
    output = _printed(_write(tmp_path / "old.json", old), _write(tmp_path / "new.json", new))
    assert output.startswith("the two reports are of other images")
    assert output.index("SHA-256 of images") < output.index("worse")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (["a"], ["b", "c"], "The older has a; the newer has b, c"),
        (["a", "b"], ["c"], "The older has a, b; the newer has c"),
    ],
)
def test_no_model_in_common_is_an_error(old: list[str], new: list[str], said: str, tmp_path: Path) -> None:
    reports = [
        sample_report(*(dataclasses.replace(sample_model(label), sha256=label * 64) for label in labels))
        for labels in (old, new)
    ]
    with pytest.raises(DataError, match=f"no model is in both reports. {said}"):
        compare(*reports)
    output = _printed(*(_write(tmp_path / f"{n}.json", report) for n, report in enumerate(reports)), code=1)
    assert re.match(f"Error: nothing to compare: .*{said}", output)
    assert "nothing changed" not in output


def test_a_report_of_no_model_is_an_error() -> None:
    empty = dataclasses.replace(sample_report(), models=())
    with pytest.raises(DataError, match="The older has none; the newer has darkness"):
        compare(empty, sample_report())


def test_the_table_shows_what_changed() -> None:
    (table,) = comparison_tables(compare(sample_report(_timed(1, 1, 1)), sample_report(_timed(2, 2, 2))))
    assert table.rows == (("images_per_second", "3.00", "1.50", "-50.0%", "worse"),)
    assert "within noise and not shown" in table.note


def _write(path: Path, report: Report) -> str:
    path.write_text(report.to_json(), encoding="utf-8")
    return str(path)


def test_two_saved_reports(tmp_path: Path) -> None:
    files = [_write(tmp_path / f"{s}.json", sample_report(_timed(s, s, s))) for s in (1, 2)]
    output = _printed(*files)
    assert "images_per_second" in output
    assert "worse" in output
    assert "Usage" in _printed(files[0], code=2)
    assert "cannot be read" in _printed(files[0], str(tmp_path / "none.json"), code=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "a JSON file that names no schema, so no report of isicrt. What is read here is what `isicrt bench"),
        ("[1]", "names no schema"),
        ('{"schema": 2}', "names no schema"),
        ("{", "not a JSON file .*What is read here is what `isicrt bench --json FILE` wrote"),
        ('{"schema": "isicrt-bench/0"}', "its schema is 'isicrt-bench/0'; this isicrt reads 'isicrt-bench/2'"),
        (
            '{"schema": "isicrt-bench/2"}',
            r"a report of `isicrt bench` \(isicrt-bench/2\) that is not whole: it has no 'c",
        ),
    ],
)
def test_a_file_that_is_no_report_is_told_what_it_is(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as found:
        read_report(path)
    assert str(found.value).startswith(f"{path}: ")
    assert "Error(" not in str(found.value), "no exception of Python's"


def test_a_report_that_was_edited_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "edited.json"
    path.write_text(json.dumps({**sample_report().to_dict(), "models": 3}), encoding="utf-8")
    with pytest.raises(DataError, match="not whole: 'int' object is not iterable"):
        read_report(path)


def test_a_result_of_another_kind_is_not_to_be_measured_again() -> None:
    with pytest.raises(DataError) as found:
        read_report(RESULTS / "decoding.json")
    assert "decoding.json: a result of another kind, 'isicrt-decoding/1', and no report of `isicrt bench`" in str(
        found.value
    )
    assert "Run bench again" not in str(found.value)


def test_a_report_is_read(tmp_path: Path) -> None:
    assert read_report(Path(_write(tmp_path / "report.json", sample_report()))) == sample_report()
