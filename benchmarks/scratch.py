"""Folders that timed runs write into."""

from __future__ import annotations

import itertools
from pathlib import Path


def fresh(folder: Path) -> Path:
    """An empty `folder`. What a run before has left there is set aside beside it and not deleted.

    ext4 does not give out an inode again for minutes after its file was deleted (``recently_deleted`` in
    fs/ext4/ialloc.c), and looks at all of those in turn whenever a file is made. Runs that delete each other's masks
    time that search too, and a user never pays for it. So the caller deletes, when the last run has ended.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    if folder.exists():
        names = (folder.with_name(f"{folder.name}-used-{n}") for n in itertools.count(1))
        folder.rename(next(name for name in names if not name.exists()))
    folder.mkdir()
    return folder
