"""What a journal says, line by line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from isicrt.engine.journal import JOURNAL_NAME, parse_line


def read_journal(folder: str | os.PathLike[str]) -> Iterator[Mapping[str, Any]]:
    """Every whole line of a folder's journal, also of one that is being written."""
    with Path(folder, JOURNAL_NAME).open("rb") as file:
        for line in file:
            if line.endswith(b"\n") and (entry := parse_line(line)):
                yield entry
