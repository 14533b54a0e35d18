"""The report's table: from run folders to JSON and back, and what is kept when it is made again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isicrt.benchmarks.report_table import (
    PUBLISHED,
    NotRun,
    ReportTable,
    Row,
    TestSet,
    merge,
    read_row,
    read_table,
    read_trials,
    with_scores,
)
from isicrt.engine.errors import DataError
from tests.benchmarks.report_runs import write_run

TEST = TestSet("ISIC 2016 test, 339 images", 339, "e" * 64)


def summary(jaccard: float) -> dict[str, Any]:
    return {"jaccard": jaccard, "jaccard_low": jaccard - 0.01, "jaccard_high": jaccard + 0.01, "dice": jaccard + 0.1}


def scored(table: ReportTable, jaccard: float = 0.8) -> ReportTable:
    """Every cell with the same scores by both protocols."""
    scores = {c.sha256: {p: summary(jaccard) for p in ("official", "report")} for r in table.rows for c in r.cells}
    return with_scores(table, TEST, scores)


@pytest.fixture
def row(tmp_path: Path) -> Row:
    return read_row(write_run(tmp_path / "unet-light"), "unet")


def test_a_run_folder_becomes_a_row(row: Row) -> None:
    assert (row.layout, row.parameters, row.seed, row.device, row.machine["cpu"]) == (
        "light",
        1_987_113,
        7,
        "cpu",
        "Abacus",
    )
    frozen, tuned = row.cells
    assert (frozen.epochs, frozen.encoder_lr, frozen.images_per_second) == (1, 0.0, 100)
    assert (tuned.epochs, tuned.encoder_lr, tuned.images_per_second) == (2, 1e-6, 11.5)
    assert (frozen.hours, tuned.hours) == (pytest.approx(0.01), pytest.approx(2))
    # The last epoch of each stage, not the best.
    assert (frozen.validation["jaccard"], tuned.validation["jaccard"]) == (0.5, 0.7)
    assert tuned.sha256 == hashlib.sha256(b"tuned weights").hexdigest()
    assert not row.scored


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "run.json", "frozen.pt", "tuned.pt"])
def test_a_folder_with_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "unet-light")
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"unet-light.*{name}"):
        read_row(folder, "unet")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.csv", "epoch,stage\n1,frozen\n2,tuned\n"),
        ("run.json", "{}"),
        ("config.yaml", "recipe: {stages: []}"),
        ("config.yaml", "a: [1"),
    ],
)
def test_a_folder_with_odd_content_is_named(tmp_path: Path, name: str, content: str) -> None:
    folder = write_run(tmp_path / "unet-light")
    (folder / name).write_text(content)
    with pytest.raises(DataError, match="unet-light: not a"):
        read_row(folder, "unet")


def test_trials_have_a_best_and_a_spread(tmp_path: Path) -> None:
    folders = [(rate, write_run(tmp_path / f"{rate}", jaccards=(0.5, j))) for rate, j in ((1e-4, 0.6), (1e-5, 0.8))]
    trials = read_trials(folders, "unet")
    assert trials.best.setting == 1e-5
    assert trials.epochs == {"frozen": 1, "tuned": 1}
    assert trials.spread("jaccard") == (pytest.approx(0.7), pytest.approx(0.1414, abs=1e-4))
    assert read_trials(folders[:1], "unet").spread("jaccard") == (0.6, 0.0)


def test_json_round_trip(row: Row, tmp_path: Path) -> None:
    trials = read_trials([(0, write_run(tmp_path / "fold0"))], "unet")
    table = scored(
        ReportTable(
            rows=(row,),
            not_run=(NotRun("segnet-attention", "report", 110_500_000, "no GPU"),),
            search=trials,
            cross_validation=trials,
            command="isicrt reproduce",
            date="2026-11-22T00:00:00+00:00",
        )
    )
    path = tmp_path / "table.json"
    path.write_text(table.to_json())
    assert read_table(path) == table
    data = json.loads(path.read_text())
    done, missing = data["rows"]
    assert [cell["report"] for cell in done["cells"]] == [{"iou": 0.77, "dice": 0.858}, {"iou": 0.792, "dice": 0.858}]
    assert (missing["status"], missing["reason"]) == ("not run", "no GPU")
    assert missing["report"]["tuned"] == {"iou": 0.7, "dice": 0.79}
    assert data["learning_rate_search"]["chosen"] == 0
    assert data["cross_validation"]["jaccard"] == {"mean": 0.7, "standard_deviation": 0.0}


def test_without_a_file_the_table_is_empty(tmp_path: Path) -> None:
    assert read_table(tmp_path / "none.json") == ReportTable()


@pytest.mark.parametrize("content", ["", "[]", '{"schema": "isicrt-bench/1"}', '{"schema": "isicrt-report-table/1"}'])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"t\.json: not a table of `isicrt reproduce`.*--table"):
        read_table(path)


def test_merging_keeps_scores_of_the_same_checkpoint(row: Row) -> None:
    old = scored(ReportTable(rows=(row,)))
    merged = merge(old, ReportTable(rows=(row,), date="later"))
    assert merged.rows == old.rows
    assert (merged.test_set, merged.date) == (TEST, "later")


def test_another_run_takes_the_place_and_has_no_scores(row: Row, tmp_path: Path) -> None:
    other = read_row(write_run(tmp_path / "again", weights=b"other"), "unet")
    (merged,) = merge(scored(ReportTable(rows=(row,))), ReportTable(rows=(other,))).rows
    assert merged == other
    assert not merged.scored


def test_rows_outlive_their_folders_and_stand_in_the_reports_order(row: Row) -> None:
    names = list(PUBLISHED)
    old = ReportTable(rows=(replace(row, name=names[2]), replace(row, layout="report")))
    new = ReportTable(
        rows=(replace(row, name=names[1]),),
        not_run=(NotRun(names[2], "light", 1, "deleted"), NotRun(names[3], "light", 1, "not trained yet")),
    )
    merged = merge(old, new)
    assert [(r.name, r.layout) for r in merged.rows] == [(names[1], "light"), (names[2], "light"), ("unet", "report")]
    assert [r.reason for r in merged.not_run] == ["not trained yet"]


def test_a_finished_row_is_no_longer_missing(row: Row) -> None:
    old = ReportTable(not_run=(NotRun("unet", "light", 1, "not trained yet"),))
    assert merge(old, ReportTable(rows=(row,))).not_run == ()


def test_rows_of_other_data_are_refused(row: Row) -> None:
    other = replace(row, name="segnet-attention", data_sha256="f" * 64)
    with pytest.raises(DataError, match=r"other data.*--table"):
        merge(ReportTable(rows=(row,)), ReportTable(rows=(other,)))
    with pytest.raises(DataError, match=r"different data.*--out"):
        merge(ReportTable(), ReportTable(rows=(row, other)))


def test_scores_are_never_replaced(row: Row) -> None:
    first = scored(ReportTable(rows=(row,)), 0.8)
    assert first.rows[0].scored
    assert scored(first, 0.9).rows == first.rows
