"""A result on the standard output is alone there, also where that is a file."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no /dev/stdout here")

_SEGMENT = ("segment", "in", "--out", "out", "--model", "MODEL")
_PARITY = ("check-parity", "MODEL", "MODEL", "--images", "in")
_BENCH = ("bench", "--quick", "--model", "MODEL", "--repeats", "1", "--batch-size", "1", "--images", "in")


@pytest.fixture(autouse=True)
def here(rendered_pairs: Path, tmp_path: Path, darkness_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for n in range(2):
        shutil.copy(rendered_pairs / "images" / f"ISIC_{n:07d}.jpg", "in")
    Path("link").symlink_to("/dev/stdout")
    shutil.copy(darkness_onnx, "model.onnx")


def _run(arguments: tuple[str, ...], mode: str) -> tuple[str, str]:
    """Its output as a file that had a line, and its messages."""
    Path("result").write_text("a line\n")
    command = [sys.executable, "-m", "isicrt.cli.main"]
    command += ["model.onnx" if argument == "MODEL" else argument for argument in arguments]
    with Path("result").open(mode) as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return Path("result").read_text(), done.stderr


def _rows(text: str) -> list[Mapping[str, str]]:
    return list(csv.DictReader(text.splitlines()))


@pytest.mark.parametrize("place", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_a_list(place: str) -> None:
    if not Path(place).exists():
        pytest.skip(f"no {place} here")
    text, messages = _run((*_SEGMENT, "--csv", place), "wb")
    assert [row["status"] for row in _rows(text)] == ["done", "done"]
    assert "2 masks in out, 0 failed" in messages


def test_behind_what_is_in_a_log() -> None:
    text, _ = _run((*_SEGMENT, "--csv", "/dev/stdout"), "ab")
    first, _, rest = text.partition("\n")
    assert first == "a line"
    assert len(_rows(rest)) == 2


@pytest.mark.parametrize(
    ("arguments", "said", "part"),
    [
        pytest.param((*_SEGMENT, "--json"), "2 masks in out", ("summary", "done"), id="json"),
        pytest.param((*_SEGMENT, "--report"), "2 masks in out", ("model", "name"), id="report"),
        pytest.param((*_PARITY, "--json"), "They agree", ("agreement", "images"), id="parity"),
        pytest.param((*_BENCH, "--json"), "Files to masks", ("workload", "images"), id="bench"),
        pytest.param(
            ("evaluate", "MODEL", "--data", "PAIRS", "--json"), "Jaccard", ("environment", "versions"), id="evaluate"
        ),
    ],
)
@pytest.mark.parametrize("mode", ["wb", "ab"])
def test_json(arguments: tuple[str, ...], said: str, part: tuple[str, str], mode: str, rendered_pairs: Path) -> None:
    arguments = tuple(str(rendered_pairs) if argument == "PAIRS" else argument for argument in arguments)
    text, messages = _run((*arguments, "/dev/stdout"), mode)
    found: Any = json.loads(text.removeprefix("a line\n") if mode == "ab" else text)
    assert part[1] in found[part[0]]
    assert said in messages


def test_what_is_said_is_on_the_standard_output_where_no_result_is() -> None:
    text, messages = _run((*_SEGMENT, "--csv", "list.csv"), "wb")
    assert "2 masks in out, 0 failed" in text
    assert "masks in out" not in messages
