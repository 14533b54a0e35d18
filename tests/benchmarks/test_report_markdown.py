"""The report's table as Markdown, and its place in a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from isicrt.benchmarks.report_markdown import BEGIN, END, check_page, render, render_page
from isicrt.benchmarks.report_table import NotRun, ReportTable, read_row, read_table, read_trials
from isicrt.engine.errors import DataError
from tests.benchmarks.report_runs import write_run
from tests.benchmarks.test_report_table import TEST, scored


@pytest.fixture
def table(tmp_path: Path) -> ReportTable:
    row = read_row(write_run(tmp_path / "unet-light"), "unet")
    missing = [NotRun(name, "report", 140_044_625, "no GPU") for name in ("unet", "segnet-attention")]
    return ReportTable(rows=(row,), not_run=tuple(missing))


def test_ours_stands_beside_the_reports(table: ReportTable) -> None:
    text = render(scored(table, 0.8))
    assert "| `unet` | light | frozen | 0.77 / 0.858 | 0.800 (0.790 to 0.810) / 0.900 | 0.800 (0.790" in text
    assert f"Scored on: {TEST.label}" in text
    assert "must not be compared" in text
    assert "| `unet` | light | 1.99 M | 640 + 160 | tuned | 2 | 1e-06, 0.0001 | 2.00 | 12 | 0.700 / 0.800 |" in text
    assert "Seed 7, fold 0. Trained on: 2 cores of Abacus." in text


def test_empty_cells_say_why(table: ReportTable) -> None:
    text = render(table)
    assert "| `unet` | light | tuned | 0.792 / 0.858 | not scored | not scored |" in text
    assert "| `segnet-attention` | report | frozen; tuned | 0.58 / 0.7; 0.7 / 0.79 | not run | not run |" in text
    assert "Not run: `unet` (report, 140 M), `segnet-attention` (report, 140 M): no GPU." in text
    assert "Scored on" not in text


def test_search_and_folds_have_tables_of_their_own(table: ReportTable, tmp_path: Path) -> None:
    folders = [(r, write_run(tmp_path / f"{r}", jaccards=(0.5, j))) for r, j in ((1e-4, 0.6), (1e-5, 0.8))]
    trials = read_trials(folders, "unet")
    text = render(ReportTable(rows=table.rows, search=trials, cross_validation=trials))
    assert "| 1e-05 (chosen) | 0.3000 | 0.8000 | 0.9000 | 1.01 |" in text
    assert "| 0.0001 | 0.3000 | 0.6000 | 0.7000 | 1.01 |" in text
    assert "| mean |  | 0.3000 ± 0.0000 | 0.7000 ± 0.1414 |" in text


def test_the_page_around_the_table_is_kept(table: ReportTable, tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text(f"# Results\n\n{BEGIN}\nan old table\n{END}\n\nmore\n")
    assert check_page(page) == ("# Results\n\n", "\n\nmore\n")
    once = render_page(page, table)
    assert once.startswith(f"# Results\n\n{BEGIN}\n\n| row |")
    assert once.endswith(f"\n{END}\n\nmore\n")
    assert "an old table\n" not in once
    page.write_text(once)
    assert render_page(page, table) == once


def test_a_page_is_made(table: ReportTable, tmp_path: Path) -> None:
    (tmp_path / "new.md").write_text(render_page(tmp_path / "new.md", table))
    assert check_page(tmp_path / "new.md") == ("", "\n")


@pytest.mark.parametrize("text", ["# Results\n", BEGIN, f"{END}\n{BEGIN}\n", f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n"])
def test_a_page_without_its_markers_is_left_alone(table: ReportTable, tmp_path: Path, text: str) -> None:
    page = tmp_path / "results.md"
    page.write_text(text)
    with pytest.raises(DataError, match=r"results\.md: needs one line"):
        render_page(page, table)
    with pytest.raises(DataError, match=r"results\.md: needs one line"):
        check_page(page)
    assert page.read_text() == text


def test_the_page_has_the_table_that_is_committed() -> None:
    repository = Path(__file__).parents[2]
    table = read_table(repository / "benchmarks" / "results" / "report-table.json")
    page = (repository / "docs" / "results.md").read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0].strip() == render(table).strip()
