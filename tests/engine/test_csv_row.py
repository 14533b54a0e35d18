"""Rows of CSV files come back as they were, whatever is in them."""

from __future__ import annotations

import csv
import io

import pytest

from isicrt.engine.csv_row import csv_row, csv_table

NAMES = ["a", "a,b", 'a"b', "a\rb", "a\nb", "a\r\nb", " a ", "é", ""]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_comes_back(name: str) -> None:
    text = csv_row(["first", name, None, 0.25])
    assert text.endswith("\n")
    assert not text.endswith("\r\n")
    assert list(csv.reader(io.StringIO(text, newline=""))) == [["first", name, "", "0.25"]]


def test_names_of_a_table_come_back() -> None:
    text = csv_table(["model", "image", "error"], [{"image": name, "model": "m"} for name in NAMES])
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert rows == [{"model": "m", "image": name, "error": ""} for name in NAMES]
