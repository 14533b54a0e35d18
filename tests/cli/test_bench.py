from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from isicrt.benchmarks.result import read_report
from isicrt.cli.main import group
from tests.benchmarks.sample_report import sample_model, sample_report


def test_rendered_images_and_every_kind_of_report(darkness_onnx: Path, tmp_path: Path) -> None:
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "csv", "markdown", "html")}
    options = [text for kind, path in files.items() for text in (f"--{kind}", str(path))]
    arguments = ["bench", "--model", str(darkness_onnx), "--quick", "--repeats", "1", *options]
    result = CliRunner().invoke(group, arguments)
    assert result.exit_code == 0, result.output
    assert "8 rendered images, 1022 x 767 px" in result.output
    assert "says nothing about patients" in result.output
    for title in ("Network alone", "Files to masks", "Stages, each alone", "Resources", "Accuracy"):
        assert title in result.output
    steps = result.stderr.splitlines()
    assert steps[0] == "[0/4] rendering 8 images"
    assert steps[-1] == "[3/4] darkness: memory and timeline"
    assert not any("\r" in line or "\x1b" in line for line in steps), "no redrawing in a log"
    for path in files.values():
        assert "quote none of its figures" in path.read_text() or path.suffix == ".csv"
        assert path.stat().st_size > 200
        assert str(path) in "".join(result.output.split("\n"))
    report = read_report(files["json"])
    assert "isicrt bench --model " in report.command
    assert report.command.endswith(f"--html {files['html']}")
    assert [x.batch_size for x in report.models[0].latencies] == [1, 8]


@pytest.mark.parametrize(
    ("options", "expected"), [([], (8, 1)), (["--stage-images", "3"], (3, 1)), (["--max-repeats", "2"], (8, 2))]
)
def test_quick_leaves_what_was_given_as_it_is(
    options: list[str], expected: tuple[int, int], darkness_onnx: Path, tmp_path: Path
) -> None:
    report = tmp_path / "r.json"
    arguments = ["bench", "--quick", "--model", str(darkness_onnx), "--repeats", "1", "--batch-size", "1", *options]
    result = CliRunner().invoke(group, [*arguments, "--json", str(report)])
    assert result.exit_code == 0, result.output
    protocol = read_report(report).protocol
    assert (protocol.stage_images, protocol.max_repeats) == expected


def test_real_masks_and_batch_sizes(darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        group,
        ["bench", "--quick", "--model", str(darkness_onnx), "--model", str(darkness_onnx), "--repeats", "1"]
        + ["--images", str(rendered_pairs / "images"), "--masks", str(rendered_pairs / "masks")]
        + ["--batch-size", "3", "--batch-size", "2", "--threads", "1", "--json", str(tmp_path / "r.json")],
    )
    assert result.exit_code == 0, result.output
    assert "says nothing about patients" not in result.output
    data = json.loads((tmp_path / "r.json").read_text())
    assert [x["batch_size"] for x in data["models"][1]["latency"]] == [2, 3]
    assert data["models"][0]["end_to_end"]["batch_size"] == 3
    assert data["protocol"]["threads"] == 1
    assert data["models"][0]["accuracy"]["summary"] == data["models"][1]["accuracy"]["summary"]


def test_a_failed_image_is_exit_code_1(darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(rendered_pairs / "images" / "ISIC_0000000.jpg", images)
    (images / "broken.jpg").write_bytes(b"")
    result = CliRunner().invoke(
        group, ["bench", "--quick", "--model", str(darkness_onnx), "--repeats", "1", "--images", str(images)]
    )
    assert result.exit_code == 1
    assert "1 images failed" in result.output
    assert "images/s" in result.output, "what was measured is printed all the same"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "none.onnx"], 1, "none.onnx: no such model file"),
        (["--masks", "."], 2, "--masks needs --images"),
        (["--images", "nowhere"], 1, "nowhere: no such file or folder"),
        (["--masks", "nowhere"], 2, "does not exist"),
        (["--batch-size", "0"], 2, "not in the range"),
        (["--repeats", "0"], 2, "not in the range"),
        (["--json", "no-folder/report.json"], 2, "there is no folder no-folder"),
        (["--json", "a", "--html", "a"], 2, "one would overwrite the other"),
        (["--compare", "none.json"], 2, "does not exist"),
        (["--fail-under", "jacard=0.8"], 2, "no figure has that name. There are images_per_second"),
        (["--fail-under", "p99_ms=40"], 2, "lower is better; use --fail-over"),
        (["--fail-over", "images_per_second=4"], 2, "higher is better; use --fail-under"),
        (["--fail-under", "images_per_second"], 2, "expected NAME=VALUE"),
        (["--fail-under-ratio", "images_per_second=0.9"], 2, "needs --compare"),
        (["--images", ".", "--fail-under", "jaccard=0.8"], 2, "--masks: there is no score without ground truth"),
        (["--fail-under", "dice=0.8"], 2, "dice needs --images and --masks: a score on rendered images says nothing"),
    ],
)
def test_bad_arguments(
    arguments: list[str], code: int, message: str, darkness_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--model" not in arguments:
        arguments = ["--model", str(darkness_onnx), *arguments]
    result = CliRunner().invoke(group, ["bench", "--quick", *arguments])
    assert result.exit_code == code, result.output
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--json", "--csv", "--markdown", "--html"])
def test_a_report_that_cannot_be_written(darkness_onnx: Path, rendered_pairs: Path, option: str) -> None:
    arguments = ["bench", "--quick", "--model", str(darkness_onnx), "--repeats", "1", "--batch-size", "1"]
    images = str(rendered_pairs / "images" / "ISIC_0000000.jpg")
    result = CliRunner().invoke(group, [*arguments, "--images", images, option, "/dev/full"])
    assert result.exit_code == 1
    assert "/dev/full: cannot be written: No space left" in result.output
    assert "Files to masks" in result.output


def test_a_temporary_folder_that_is_gone(darkness_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    result = CliRunner().invoke(group, ["bench", "--quick", "--model", str(darkness_onnx)])
    assert result.exit_code == 1
    assert "set TMPDIR" in result.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_benchmark_leaves_nothing_behind(number: signal.Signals, darkness_onnx: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "isicrt.cli.main", "bench", "--model", str(darkness_onnx)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as process:
        # Not before all are rendered: the Cython code of numpy.random may swallow a KeyboardInterrupt.
        while len(list(tmp_path.glob("isicrt-bench-*/images/*.jpg"))) < 48 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert b"Traceback" not in output
    assert list(tmp_path.glob("isicrt-bench-*")) == []


def test_compare_and_gates(darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    base = ["bench", "--quick", "--model", str(darkness_onnx), "--batch-size", "1"]
    base += ["--images", str(rendered_pairs / "images"), "--masks", str(rendered_pairs / "masks"), "--repeats"]
    first = CliRunner().invoke(group, [*base, "1", "--json", str(tmp_path / "old.json")])
    assert first.exit_code == 0, first.output
    compared = [*base, "2", "--threads", "1", "--compare", str(tmp_path / "old.json")]
    passed = CliRunner().invoke(
        group, [*compared, "--fail-under", "jaccard=0.1", "--fail-over", "p99_ms@1=1e6", "--fail-under-ratio", "dice=1"]
    )
    assert passed.exit_code == 0, passed.output
    text = " ".join(passed.output.split())
    assert "not the same: threads: one a core before, 1 now" in text
    assert "darkness: against the older report" in text
    assert "too few repeats" in text

    failed = CliRunner().invoke(group, [*compared, "--fail-under", "jaccard=0.999", "--fail-over", "peak_rss_mb=1"])
    assert failed.exit_code == 1
    assert "Failed: darkness: jaccard is" in failed.output
    assert "Failed: darkness: peak_rss_mb is" in failed.output
    assert "Files to masks" in failed.output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "names no schema, so no report of isicrt"),
        ('{"schema": "isicrt-decoding/1"}', "a result of another kind, 'isicrt-decoding/1'"),
    ],
)
def test_a_file_that_cannot_be_compared_is_said_before_anything_is_measured(
    darkness_onnx: Path, tmp_path: Path, content: str, message: str
) -> None:
    old = tmp_path / "old.json"
    old.write_text(content)
    result = CliRunner().invoke(group, ["bench", "--quick", "--model", str(darkness_onnx), "--compare", str(old)])
    assert result.exit_code == 1
    text = " ".join(result.output.split())
    assert f"Error: {old}: " in text
    assert message in text
    assert "KeyError" not in text
    assert "rendering" not in text


def test_no_model_in_common_is_an_error_after_the_report(
    darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(sample_report(sample_model("a"), sample_model("b")).to_json())
    images = str(rendered_pairs / "images" / "ISIC_0000000.jpg")
    arguments = ["bench", "--quick", "--model", str(darkness_onnx), "--repeats", "1", "--batch-size", "1"]
    result = CliRunner().invoke(group, [*arguments, "--images", images, "--compare", str(old), "--json", str(new)])
    assert result.exit_code == 1
    assert "no model is in both reports. The older has a, b; the newer has darkness" in " ".join(result.output.split())
    assert "nothing changed" not in result.output
    assert read_report(new).models, "what was measured is kept"


def test_help() -> None:
    result = CliRunner().invoke(group, ["bench", "--help"])
    assert result.exit_code == 0
    for option in ("--model", "--images", "--masks", "--batch-size", "--repeats", "--threads", "--quick", "--html"):
        assert option in result.output
