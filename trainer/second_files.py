"""Two files of one id in a folder of a data set, of which isicrt itself may have written one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_JOURNAL = ".isicrt-journal.jsonl"
"""See `isicrt.engine.journal`; it lies among the masks of a run."""

SecondFile = tuple[str, Path, Path]
"""An id, a file of it, and another."""


def say_second_files(folder: Path, kind: str, found: Sequence[SecondFile]) -> list[str]:
    """A line for each, with what to do: a prediction takes the image's own name, so that it stands first, and the truth
    must not be taken for what is too many."""
    written = _written_names(folder / _JOURNAL) if found else set()
    lines = []
    for name, path, other in found:
        line = f"{path}: a second {kind} of {name} beside {other.name}"
        if own := [file.name for file in (other, path) if file.name in written]:
            what, it = ("a prediction", "it") if len(own) == 1 else ("predictions", "them")
            may = f"{' and '.join(own)} may be {what} of isicrt"
            lines.append(f"{line}. {may}, whose journal there names {it}: move {it} elsewhere")
        else:
            lines.append(f"{line}; remove one")
    return lines


def _written_names(journal: Path) -> set[str]:
    """Masks that a run has written; none without a journal, or where it cannot be read."""
    with suppress(OSError):
        if journal.is_file():
            with journal.open("rb") as lines:
                return {_mask_of(line) for line in lines} - {""}
    return set()


def _mask_of(line: bytes) -> str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):  # torn
        return ""
    if not isinstance(entry, dict) or (entry.get("status") != "done" and "mask_crc" not in entry):
        return ""  # of a failure that has a CRC only the overlay has failed
    mask = entry.get("mask")
    return mask if isinstance(mask, str) else ""
