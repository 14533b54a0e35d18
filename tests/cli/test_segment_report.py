"""The JSON files of a run: what they replace, and what they write to."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import pytest

from isicrt.cli.outcome_file import OutcomeJson
from isicrt.cli.segment_report import write_report
from isicrt.engine.errors import DataError
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


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")
def test_a_full_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = tmp_path / "full"  # a link: the device itself would not come back
    device.symlink_to("/dev/full")
    _report(device)
    assert "--report" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"cannot be written: No space left on device.*run the same command again"):
        _json(device)
    assert Path("/dev/full").is_char_device()
    assert device.is_symlink()
