"""Rows of a CSV file, for spreadsheets: RFC 4180, but for the line's end."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def csv_row(values: Iterable[Any]) -> str:
    r"""One row, with ``\n`` behind it; None is an empty cell.

    >>> csv_row(["a\rb", None, 1.5])
    '"a\rb",,1.5\n'
    """
    text = io.StringIO()
    # Quoted is what holds a character of the line's end, and a name may hold a carriage return.
    csv.writer(text, lineterminator="\r\n").writerow(values)
    return text.getvalue().removesuffix("\r\n") + "\n"


def csv_table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """The columns' names and a row for each mapping, whose keys are among them; what one lacks is an empty cell."""
    return csv_row(columns) + "".join(csv_row(row.get(name) for name in columns) for row in rows)
