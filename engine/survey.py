"""What lies where masks go before a run starts: what killed runs left is removed, what is not isicrt's is refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from isicrt.engine.corrections import stands
from isicrt.engine.errors import DataError
from isicrt.engine.journal import JournalIndex, write_name
from isicrt.engine.journal_fields import source_of
from isicrt.engine.names import KeySet, name_key
from isicrt.engine.output import clean_names
from isicrt.engine.sources import Job, overlay_folder

_SHOWN = 10


def survey(
    jobs: Sequence[Job],
    known: JournalIndex,
    name: Callable[[Path], str],
    *,
    out: Path,
    root: str,
    overlays: Path | None,
    refuse: bool,
) -> None:
    """Remove temporary files of the runs in the journal, and look at the files at the places of masks.

    Args:
        jobs: of the run.
        known: what the journal of the folder says.
        name: a mask's name in the journal.
        out: the folder of the masks.
        root: of the run, as in the journal.
        overlays: their folder, if there are to be any.
        refuse: whether a file is in the way of which the journal does not say that isicrt made it from this image.

    Raises:
        DataError: such files.
        OutputError: a folder cannot be read.
    """
    runs = {str(run["run"]) for run in known.runs}
    moved = any(run.get("root") != write_name(root) for run in known.runs)

    # Jobs come folder by folder, and a folder may hold a million: hashes of its names tell which are not there.
    @lru_cache(maxsize=64)
    def there(folder: Path) -> KeySet:
        found = KeySet(name_key(name) for name in clean_names(folder, runs))
        if overlays is not None:
            for _ in clean_names(overlay_folder(folder, out, overlays), runs):
                pass
        return found

    foreign, count = [], 0
    for job in jobs:
        if job.problem is not None or not (names := there(job.mask.parent)) or not refuse:
            continue
        if names.may_hold(name_key(job.mask.name)) and stands(job.mask):
            if _is_known(job, name(job.mask), known, moved):
                continue
            count += 1
            if count <= _SHOWN:
                foreign.append(str(job.mask))
    if count:
        shown = "".join(f"\n  {path}" for path in foreign)
        more = f"\n  ... and {count - _SHOWN} more" if count > _SHOWN else ""
        raise DataError(
            f"{count} files stand where masks go, and the journal of {out} does not say that isicrt "
            f"made them from these images:{shown}{more}\n"
            "Move them away or choose another --out. --overwrite replaces them, and corrected masks with them."
        )


def _is_known(job: Job, name: str, known: JournalIndex, moved: bool) -> bool:
    """Whether a run here made the file from this image, or failed to: then `Ledger.check` says whose it is."""
    if not moved and known.wrote(name):
        return True
    found = known.find(name)
    if found is None:
        return False
    entry, run = found
    if "status" not in entry or source_of(entry, run) == os.path.abspath(job.image):  # noqa: PTH100 (links stay)
        return True
    with suppress(OSError):  # another path: the same image where size and time agree; its CRC is looked at later
        return job.image.stat().st_size == entry.get("image_size")
    return False
