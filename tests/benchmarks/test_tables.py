from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path

import pytest
from click.testing import CliRunner

from isicrt.benchmarks.accuracy import Accuracy
from isicrt.benchmarks.gates import figures
from isicrt.benchmarks.latency import QUICK_WINDOW
from isicrt.benchmarks.result import Report
from isicrt.benchmarks.tables import figure, main, tables, to_csv, to_markdown
from isicrt.benchmarks.throughput import EndToEnd
from isicrt.engine.scores import ImageScores
from tests.benchmarks.sample_report import sample_model, sample_report


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((0.0123, "0.0123"), (0.5, "0.500"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (12345.6, "12346")),
        *((0.0004, "0.000400"), (0.0, "0.00"), (-0.0123, "-0.0123"), (9.999, "10.0"), (99.96, "100")),
    ],
)
def test_figure(value: float, expected: str) -> None:
    assert figure(value) == expected


def test_cells() -> None:
    network, pipeline, stages, together, resources, accuracy = tables(sample_report())
    assert network.rows[0] == ("darkness", "onnxruntime-cpu", "1", "1.10", "2.82", "3.00", "0.100", "12", "714")
    assert [row[2] for row in network.rows] == ["1", "8"]
    # 100 ms an image measured; (10 + 80 + 2 + 1) CPU ms on 2 cores are the limit.
    assert pipeline.rows == (("darkness", "8", "10.0", "8.00", "100", "46.5", "2.15", "1.25", "infer"),)
    assert stages.rows == (("darkness", "10.0 (11%)", "80.0 (86%)", "2.00 (2%)", "1.00 (1%)"),)
    assert together.rows == (("darkness", "0.83", "0.83", "0.83", "0.83"),)
    assert resources.rows == (("darkness", "1.50", "150", "93.0", "250", "no GPU", "not readable"),)
    assert accuracy.rows[0][:3] == ("darkness", "3", "0.7000")
    assert accuracy.rows[0][-1] == "1"
    assert all(len(row) == len(t.header) for t in tables(sample_report()) for row in t.rows)


def test_the_report_says_what_the_limit_was_divided_by() -> None:
    model = sample_model()
    few = dataclasses.replace(model, label="few", stages=dataclasses.replace(model.stages, cores=64, threads=8))
    notes = [tables(sample_report(*models))[1].note for models in ((model,), (few,), (model, few))]
    assert "L: CPU time of all stages / 2 cores, each stage" in notes[0]
    assert "L: CPU time of all stages / 8 cores, each stage" in notes[1]
    assert "2 cores (darkness), CPU time of all stages / 8 cores (few), each stage" in notes[2]
    assert [tables(sample_report(m))[4].header[1] for m in (model, few)] == ["Busy of 2 cores", "Busy of 8 cores"]


def test_the_report_says_how_many_runs_its_medians_are_of() -> None:
    """The last three, where they agree, whatever was slower before."""
    model = sample_model()
    run = model.end_to_end.runs[0]
    settled = EndToEnd(8, (dataclasses.replace(run, seconds=9.0), run, run, run))
    other = dataclasses.replace(model, label="other", end_to_end=settled)
    once = dataclasses.replace(model, label="once", end_to_end=EndToEnd(8, (run,)))
    notes = [tables(sample_report(*models))[1].note for models in ((other,), (model, other), (once,))]
    assert "median of 3 runs over" in notes[0]
    assert "median of 2 runs (darkness), 3 runs (other) over" in notes[1]
    assert "median of 1 run over" in notes[2]


def test_memory_of_a_gpu_that_was_not_measured_is_not_no_gpu() -> None:
    report = sample_report(dataclasses.replace(sample_model(), process=None))
    on_gpu = dataclasses.replace(report, environment=dataclasses.replace(report.environment, gpus=("H200",)))
    assert [tables(r)[4].rows[0][5] for r in (report, on_gpu)] == ["no GPU", "not noted"]


def test_energy_of_the_gpu_has_columns_where_it_was_read() -> None:
    model = sample_model()
    runs = tuple(dataclasses.replace(r, gpu_joules=60.0) for r in model.end_to_end.runs)
    on_gpu = dataclasses.replace(model, label="b", end_to_end=dataclasses.replace(model.end_to_end, runs=runs))
    resources = tables(sample_report(model, on_gpu))[4]
    assert resources.header[-2:] == ("GPU J/image", "GPU W")
    # 60 J in 0.3 s, for three images.
    assert [row[-2:] for row in resources.rows] == [("-", "-"), ("20.0", "200")]
    assert "mean power of all GPUs" in resources.note
    assert figures(on_gpu)["gpu_joules_per_image"] == pytest.approx(20)
    assert on_gpu.end_to_end.to_dict()["gpu_watts"] == pytest.approx(200)
    assert EndToEnd.from_dict(on_gpu.end_to_end.to_dict()) == on_gpu.end_to_end
    (row,) = {r["gpu_watts"] for r in csv.DictReader(io.StringIO(to_csv(sample_report(on_gpu))))}
    assert float(row) == pytest.approx(200)


@pytest.mark.parametrize(("values", "cell"), [([0.6, 0.8], "0.600-0.800"), ([0.9578], "-")])
def test_one_image_has_no_interval(values: list[float], cell: str) -> None:
    scores = {str(n): ImageScores(*[j] * 6) for n, j in enumerate(values)}
    report = sample_report(dataclasses.replace(sample_model(), accuracy=Accuracy(scores)))
    accuracy = tables(report)[-1]
    assert accuracy.rows[0][accuracy.header.index("Interval")] == cell
    summary = report.to_dict()["models"][0]["accuracy"]["summary"]
    row = next(csv.DictReader(io.StringIO(to_csv(report))))
    for name, value in (("jaccard_low", min(values)), ("jaccard_high", max(values))):
        assert summary[name] == (None if cell == "-" else value)
        assert row[name] == ("" if cell == "-" else str(value))
    assert Report.from_dict(report.to_dict()).models[0].accuracy == Accuracy(scores)


def test_no_accuracy_without_scores_and_only_for_those_who_have_them() -> None:
    assert len(tables(sample_report(sample_model(scored=False)))) == 5
    mixed = tables(sample_report(sample_model("a", scored=False), sample_model("b")))
    assert [row[0] for row in mixed[-1].rows] == ["b"]


def test_rendered_images_are_labelled() -> None:
    assert "says nothing about patients" in to_markdown(sample_report(rendered=True))
    assert "says nothing about patients" not in to_markdown(sample_report())


def test_markdown() -> None:
    text = to_markdown(sample_report(sample_model("a|b_c*<i>")))
    assert r"| a\|b\_c\*\<i> | 8 | 10.0 |" in text
    assert "| :-- | :-- | --: |" in text
    assert "Measured 2026-01-02 on Some CPU (2 cores), Python 3.11.7" in text
    assert "``isicrt bench --model darkness.onnx``" in text


def test_markdown_begins_with_the_warnings() -> None:
    report = sample_report(load_average=1.7)
    quick = dataclasses.replace(report, protocol=dataclasses.replace(report.protocol, window=QUICK_WINDOW))
    lines = to_markdown(quick).splitlines()
    assert lines[0].startswith("> - a quick run shows that it works: quote none of its figures")
    assert lines[1].startswith("> - the machine was busy")
    assert not to_markdown(sample_report()).startswith(">")


def test_csv_has_a_row_for_each_model_and_batch_size() -> None:
    report = sample_report(sample_model('odd, "name"'), sample_model("unscored", scored=False))
    rows = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert [(r["model"], r["batch_size"]) for r in rows] == [
        ('odd, "name"', "1"),
        ('odd, "name"', "8"),
        ("unscored", "1"),
        ("unscored", "8"),
    ]
    assert float(rows[0]["p50_ms"]) == pytest.approx(1.1)
    assert float(rows[1]["jaccard"]) == pytest.approx(0.7)
    assert rows[2]["jaccard"] == ""
    assert rows[0]["bottleneck"] == "infer"
    assert float(rows[0]["limit_ratio"]) == pytest.approx(100 / 46.5)
    assert (rows[0]["peak_rss_mb"], rows[0]["joules_per_image"]) == ("250.0", "")


def test_a_committed_result_becomes_markdown(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(dataclasses.replace(sample_report(), command="x").to_json())
    done = CliRunner().invoke(main, [str(path)])
    assert done.output == to_markdown(dataclasses.replace(sample_report(), command="x"))
    path.write_text("{}")
    refused = CliRunner().invoke(main, [str(path)])
    assert refused.exit_code == 1
    assert "Error: " in refused.output
