"""Runs that are cut off at some change to the disk, as a kill or a full disk does."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from isicrt.engine import ledger as ledger_module
from isicrt.engine.journal import Journal
from isicrt.engine.output import OutputError, OutputFolder


@contextmanager
def cut_off(at: int | None, within: bool, refused: Path | None) -> Iterator[None]:
    """Nothing reaches the disk any more from a change on, as where a run is killed; it may reach it in part.

    Args:
        at: the number of the change, from 0; None for never.
        within: whether a part of it arrives.
        refused: a file that may not be written.
    """
    lock, count = threading.Lock(), 0

    def arrives(part: Callable[[], object]) -> None:
        nonlocal count
        with lock:
            count += 1
            if at is None or count <= at:
                return
            if count == at + 1 and within:
                part()
        raise OutputError("cut off")

    write, append = OutputFolder.write, Journal._append
    is_removed, remove_overlay = ledger_module._is_removed, ledger_module.remove_overlay

    def cut_write(self: OutputFolder, path: Path, data: bytes) -> None:
        arrives(lambda: path.parent.is_dir() and path.with_name(f"{self._prefix}000000.tmp").write_bytes(data[:9]))
        if path == refused:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        write(self, path, data)

    def cut_append(self: Journal, lines: bytes) -> None:
        arrives(lambda: append(self, lines[: len(lines) * 2 // 3]))
        append(self, lines)

    def cut_is_removed(file: Path) -> bool:
        arrives(lambda: is_removed(file))
        return is_removed(file)

    def cut_remove_overlay(path: Path, entry: Any) -> None:
        arrives(lambda: remove_overlay(path, entry))
        remove_overlay(path, entry)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OutputFolder, "write", cut_write)
        patch.setattr(Journal, "_append", cut_append)
        patch.setattr(ledger_module, "_is_removed", cut_is_removed)
        patch.setattr(ledger_module, "remove_overlay", cut_remove_overlay)
        yield
