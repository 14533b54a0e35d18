"""The table of a GPU, made on the CPU with the light widths and next to no epochs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from isicrt.benchmarks.gpu_training import choose_scratch
from isicrt.benchmarks.report_table import read_table
from isicrt.benchmarks.training_runs import Child, longest_epochs, run_side_by_side, summarise_run
from tests.conftest import make_splits

pytest.importorskip("torch", reason="torch is not installed (extra train)")
pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with a train and a test split."""
    return make_splits(tmp_path_factory.mktemp("isic"))


def start(data: Path, out: Path, scratch: Path, *options: object) -> subprocess.Popen[str]:
    words = ["--data", data, "--out", out, "--layout", "light", "--device", "cpu", "--scratch", scratch, *options]
    command = [sys.executable, "-m", "isicrt.benchmarks.gpu_training", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "training.json").read_text())
    return found


def test_a_row_is_tried_trained_scored_and_packed(data: Path, tmp_path: Path) -> None:
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    process = start(data, out, scratch, "--within", 400, "--rows", "unet", "--epochs", 4, "--recipe-epochs", 0)
    said, errors = process.communicate()
    assert process.returncode == 0, said + errors
    assert "1 of 1 rows are trained and scored" in said
    report = read(out)
    assert report["schema"] == "isicrt-gpu-training/1"
    assert "isicrt.benchmarks.gpu_training --data" in report["command"]
    assert (report["device"], report["layout"], report["within_seconds"]) == ("cpu", "light", 400)
    assert 0 < report["wall_seconds"] < 400
    assert report["training"]["result"]["epochs"] == 4
    row = report["rows"]["unet"]
    assert (row["code"], row["epochs"], row["output"], row["gpu_memory_peak_bytes"]) == (0, 4, [], None)
    assert row["seconds_per_epoch"].keys() == row["images_per_second"].keys() == {"frozen", "tuned"}
    table = read_table(out / "report-table-gpu.json")
    assert [(r.name, r.layout, r.scored) for r in table.rows] == [("unet", "light", True)]
    assert table.not_run == ()
    assert table.test_set is not None
    assert table.test_set.images == 3
    with tarfile.open(out / "runs.tar.gz") as archive:
        names = {Path(name).name for name in archive.getnames()}
        assert names == {"metrics.csv", "config.yaml", "run.json", "curves.png"}
    assert {p.name for p in out.iterdir()} == {"training.json", "report-table-gpu.json", "runs.tar.gz"}


def test_a_trial_chooses_and_a_row_that_fails_costs_itself(data: Path, tmp_path: Path) -> None:
    """There are no weights where it is told to look for them, so every row fails in its trial."""
    out = tmp_path / "out"
    options = ("--within", 200, "--rows", "unet,segnet-attention", "--recipe-epochs", 1, "--recipe-seconds", 60)
    process = start(data, out, tmp_path / "scratch", *options, "--encoder-weights", tmp_path / "none.pth")
    said, _ = process.communicate()
    assert process.returncode == 1
    assert "0 of 2 rows" in said
    report = read(out)
    notes = "\n".join(report["notes"])
    for part in ("default recipe / cache: DataError: no epoch was finished", "unet: its trial failed", "no such file"):
        assert part in notes
    assert "enough for 0 epochs" in notes
    table = json.loads((out / "report-table-gpu.json").read_text())
    assert {row["name"] for row in table["rows"]} == {"unet", "segnet-attention"}
    assert all("its trial failed" in row["reason"] for row in table["rows"])


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_what_is_ended_leaves_what_it_has_and_no_process(data: Path, tmp_path: Path) -> None:
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    process = start(data, out, scratch, "--within", 900, "--rows", "unet", "--epochs", 200, "--recipe-epochs", 0)
    deadline = time.monotonic() + 200
    while not list(scratch.glob("*/rows/unet/unet-light/metrics.csv")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 1, said + errors
    report = read(out)
    assert "stopped" in report["notes"]
    assert report["rows"]["unet"]["epochs"] >= 1
    with tarfile.open(out / "runs.tar.gz") as archive:
        assert "unet-light/metrics.csv" in archive.getnames()
    assert not list(scratch.glob("isicrt-training-*"))


@pytest.mark.parametrize(
    ("costs", "seconds", "expected"),
    [
        ([(10, 1.0)], 111, 100),
        ([(10, 1.0), (20, 2.0)], 111, 44),
        ([(10, 1.0)], 12.9, 2),
        ([(10, 1.0)], 11.9, 0),
        ([(10, 1.0)], 5, 0),
        ([(10, 0.001)], 111, 200),
        ([(10, 0.0)], 111, 200),
    ],
)
def test_as_many_epochs_as_every_run_finishes(costs: list[tuple[float, float]], seconds: float, expected: int) -> None:
    assert longest_epochs(costs, seconds, 200) == expected


def _child(tmp_path: Path, name: str, code: str) -> Child:
    return Child(name, [sys.executable, "-c", code], tmp_path / name, {"SAID": name})


def test_children_run_side_by_side_and_none_outlasts_the_time(tmp_path: Path) -> None:
    ended: list[tuple[str, int | None]] = []
    children = [
        _child(tmp_path, "good", "import os; print(os.environ['SAID'])"),
        _child(tmp_path, "bad", "raise SystemExit('no luck')"),
        _child(tmp_path, "slow", "import time; time.sleep(600)"),
    ]
    begun = time.monotonic()
    run_side_by_side(children, begun + 5, on_end=lambda child: ended.append((child.name, child.code)))
    assert time.monotonic() - begun < 30
    assert sorted(ended, key=str) == [("bad", 1), ("good", 0), ("slow", -signal.SIGKILL)]
    assert children[0].output() == ["good"]
    assert summarise_run(children[0])["output"] == []
    assert summarise_run(children[1])["output"] == ["no luck"]


def test_a_run_is_timed_without_the_first_epoch_of_a_stage(tmp_path: Path) -> None:
    child = _child(tmp_path, "run", "")
    child.folder.mkdir()
    rows = [("frozen", 9.0, 10), ("frozen", 1.0, 90), ("tuned", 8.0, 5), ("tuned", 2.0, 40), ("tuned", 2.5, 30)]
    lines = ["stage,seconds,images_per_second", *(f"{stage},{s},{rate}" for stage, s, rate in rows)]
    (child.folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    (child.folder / "run.json").write_text('{"gpu_memory_peak_bytes": 5}')
    child.code, child.seconds = 0, 30.0
    found = summarise_run(child)
    assert found["seconds_per_epoch"] == {"frozen": 1.0, "tuned": 2.25}
    assert found["images_per_second"] == {"frozen": 90.0, "tuned": 35.0}
    assert found["seconds_beside_epochs"] == pytest.approx(30 - 2 * 1.0 - 3 * 2.25, abs=0.06)
    assert found["hours"] == pytest.approx(22.5 / 3600)
    assert found["gpu_memory_peak_bytes"] == 5


def test_scratch_is_in_memory_only_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert choose_scratch(None, 2**60).parent == tmp_path
    assert choose_scratch(tmp_path / "named", 2**60).parent == tmp_path / "named"
