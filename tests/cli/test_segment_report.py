"""The JSON files of a run: what they replace, and what they write to."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from isicrt.cli.main import group
from isicrt.cli.outcome_file import OutcomeCsv, OutcomeJson
from isicrt.cli.progress import Progress
from isicrt.cli.segment_report import write_report
from isicrt.engine import output, run_threads
from isicrt.engine.errors import DataError
from isicrt.engine.journal import JOURNAL_NAME
from isicrt.engine.outcome import Outcome
from isicrt.engine.sources import Job

OUTCOME = Outcome(Job(Path("a.jpg"), Path("a.png")), "a.jpg: the file is empty", None, None)


def _report(path: Path) -> None:
    write_report(path, {"done": 1})


def _json(path: Path) -> None:
    with OutcomeJson(path, {"format": 1}) as file:
        file.add(OUTCOME)
        file.finish({"done": 1})


WRITERS = pytest.mark.parametrize("write", [_report, _json])


@WRITERS
def test_a_file_is_replaced_also_behind_a_link(tmp_path: Path, write) -> None:
    (tmp_path / "there.json").write_text("old")
    (tmp_path / "link.json").symlink_to("there.json")
    write(tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert "done" in (tmp_path / "there.json").read_text()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs there")
@WRITERS
def test_a_pipe_is_written_to_and_stays(tmp_path: Path, write) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write(pipe)
    reader.join(30)
    assert "done" in json.dumps(json.loads(read[0]))
    assert pipe.is_fifo()


needs_full = pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")


@needs_full
def test_a_full_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = tmp_path / "full"  # a link: the device itself would not come back
    device.symlink_to("/dev/full")
    _report(device)
    assert "--report" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"cannot be written: No space left on device.*run the same command again"):
        _json(device)
    assert Path("/dev/full").is_char_device()
    assert device.is_symlink()


@pytest.mark.parametrize("name", ["a\rb.jpg", "a\nb.jpg", "a\r\nb.jpg", 'a",b.jpg', "a\r"])
def test_a_row_is_one_image_whatever_its_name(tmp_path: Path, name: str) -> None:
    with OutcomeCsv(tmp_path / "list.csv") as table:
        table.add(Outcome(Job(Path(name), Path("a.png")), None, (4, 5), 0.5, note=name))
        table.add(OUTCOME)
        table.finish({})
    with (tmp_path / "list.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [name, "a.jpg"]
    assert rows[0]["note"] == name
    assert (tmp_path / "list.csv").read_bytes().endswith(b"the file is empty,,\n")


def _segment(model: Path, folder: Path, results: Mapping[str, Path | str]) -> Result:
    options = [part for pair in results.items() for part in pair]
    command = ["segment", folder / "in", "--out", folder / "out", "--model", model, *options]
    return CliRunner().invoke(group, [str(part) for part in command])


@needs_full
@pytest.mark.parametrize(("full", "whole"), [("--json", "--csv"), ("--csv", "--json")])
def test_a_list_that_cannot_be_written_at_the_end_costs_no_other_and_is_said(
    rendered_pairs: Path, darkness_onnx: Path, tmp_path: Path, full: str, whole: str
) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(rendered_pairs / "images" / "ISIC_0000000.jpg", tmp_path / "in")
    (tmp_path / "in" / "bad.jpg").touch()
    places = {full: "/dev/full", whole: tmp_path / "list", "--report": tmp_path / "r.json"}
    result = _segment(darkness_onnx, tmp_path, places)
    assert result.exit_code == 1
    assert f"{full} /dev/full: cannot be written: No space left on device" in result.stderr
    assert f"1 of 2 images failed:\n  {tmp_path / 'in' / 'bad.jpg'}: the file is empty" in result.stderr
    assert "bad.jpg" in (tmp_path / "list").read_text()
    report = json.loads((tmp_path / "r.json").read_text())
    ended = json.loads((tmp_path / "out" / JOURNAL_NAME).read_text().splitlines()[-1])
    assert (report["status"], ended["result"]) == ("stopped", "stopped")
    assert (report["exit_code"], ended["exit_code"]) == (1, 1)
    assert f"{full} /dev/full: cannot be written" in report["reason"]
    assert (report["done"], report["failed"]) == (1, 1)
    if whole == "--json":
        assert json.loads((tmp_path / "list").read_text())["summary"]["status"] == "stopped"


@needs_full
@pytest.mark.parametrize(("full", "whole"), [("--json", "--csv"), ("--csv", "--json")])
def test_where_a_list_cannot_be_written_on_the_run_stops_and_the_rest_says_what_happened(
    darkness_onnx: Path, tmp_path: Path, full: str, whole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_threads, "_WATCH_SECONDS", 0)  # no more are done than fit between the threads
    (tmp_path / "in").mkdir()
    for n in range(1000):
        (tmp_path / "in" / f"{n}.jpg").touch()
    places = {full: "/dev/full", whole: tmp_path / "list", "--report": tmp_path / "r.json"}
    result = _segment(darkness_onnx, tmp_path, places)
    assert result.exit_code == 1
    assert f"{full} /dev/full: cannot be written: No space left on device" in result.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    journal = list(map(json.loads, (tmp_path / "out" / JOURNAL_NAME).read_text().splitlines()))
    failed = sum(line.get("status") == "failed" for line in journal)
    assert 0 < failed < 1000
    assert (report["status"], report["failed"], report["not_reached"]) == ("stopped", failed, 1000 - failed)
    assert (tmp_path / "list").read_text().count("the file is empty") == failed


@needs_full
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--csv", "/dev/full"], "(--csv FILE or --json FILE lists all)"),
        (["--csv", "/dev/full", "--json", "LIST"], "(all in LIST)"),
        (["--csv", "LIST", "--json", "/dev/full"], "(all in LIST)"),
    ],
)
def test_a_list_that_is_not_whole_is_not_named(
    darkness_onnx: Path, tmp_path: Path, options: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # short names: all of it stays in a file's buffer until the end
    for n in range(23):
        Path(f"{n}.jpg").touch()
    command = ["segment", ".", "--out", "out", "--model", str(darkness_onnx), *options]
    result = CliRunner().invoke(group, command)
    assert result.exit_code == 1
    assert "23 of 23 images failed:" in result.stderr
    assert f"... and 3 more {said}" in result.stderr


def test_what_was_there_before_is_no_speed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("isicrt.cli.progress._PLAIN_SECONDS", 0.0)
    with Progress(1000) as progress:
        for n in range(4):
            progress.advance(computed=False)
            assert capsys.readouterr().err == f"{n + 1} of 1000 images, 0.0 images/s\n"
        progress.advance()
        speed = capsys.readouterr().err.removeprefix("5 of 1000 images, ")
        assert float(speed.removesuffix(" images/s\n")) > 0


def test_no_list_says_done_of_what_did_not_reach_the_disk(
    darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(_: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(output, "sync_file_system", sync)
    results = ["--json", str(tmp_path / "list.json"), "--report", str(tmp_path / "report.json")]
    command = ["segment", str(rendered_pairs / "images"), "--out", str(tmp_path / "out"), "--model", str(darkness_onnx)]
    result = CliRunner().invoke(group, [*command, *results])
    assert result.exit_code == 1
    for name in ("list.json", "report.json"):
        said = json.loads((tmp_path / name).read_text())
        counts = said.get("summary", said)
        assert (counts["status"], counts["exit_code"], counts["done"]) == ("stopped", 1, 12)
    assert os.strerror(errno.EIO) in json.loads((tmp_path / "report.json").read_text())["reason"]
