"""docs/performance.md says what the results beside it say, warnings included."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from isicrt.benchmarks.performance_page import fill, main, sections
from isicrt.engine.errors import DataError

REPOSITORY = Path(__file__).parents[2]
PAGE, RESULTS = REPOSITORY / "docs" / "performance.md", REPOSITORY / "benchmarks" / "results"


def test_the_page_is_that_of_the_results() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == fill(page, sections(RESULTS)), (
        "python -m isicrt.benchmarks.performance_page docs/performance.md benchmarks/results"
    )


def test_a_figure_that_was_typed_in_is_put_right_and_the_rest_is_kept(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = PAGE.read_text(encoding="utf-8")
    begin, end = text.index("<!-- limits:begin -->"), text.index("<!-- limits:end -->")
    page.write_text(text[:begin] + "<!-- limits:begin -->\n| 99,999 images/s |\n" + text[end:], encoding="utf-8")
    done = CliRunner().invoke(main, [str(page), str(RESULTS)])
    assert done.exit_code == 0, done.output
    assert page.read_text(encoding="utf-8") == text


def test_tables_are_put_between_their_markers() -> None:
    page = "a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb\n<!-- y:begin -->\n<!-- y:end -->\n"
    expected = "a\n<!-- x:begin -->\n\nX\n\n<!-- x:end -->\nb\n<!-- y:begin -->\n\nY\n\n<!-- y:end -->\n"
    assert fill(page, {"x": "X", "y": "Y"}) == expected
    assert fill(expected, {"x": "X", "y": "Y"}) == expected


@pytest.mark.parametrize("page", ["", "<!-- x:begin -->\n", "<!-- x:begin -->\n<!-- x:end -->\n" * 2])
def test_a_table_has_one_place(page: str) -> None:
    with pytest.raises(DataError, match="not exactly one place '<!-- x:begin -->'"):
        fill(page, {"x": "X"})


@pytest.mark.parametrize(("text", "message"), [(None, "cannot be read"), ("{", "cannot be read"), ("{}", "no result")])
def test_a_result_that_is_none(tmp_path: Path, text: str | None, message: str) -> None:
    results = shutil.copytree(RESULTS, tmp_path / "results", ignore=shutil.ignore_patterns("runs"))
    (results / "memory.json").unlink()
    if text is not None:
        (results / "memory.json").write_text(text)
    refused = CliRunner().invoke(main, [str(PAGE), str(results)])
    assert refused.exit_code == 1
    assert message in refused.output
