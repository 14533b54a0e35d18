"""A run says that it is done when everything is on the disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from isicrt.engine import output
from isicrt.engine.ledger import Ledger
from isicrt.engine.output import OutputError
from tests.journal_lines import read_journal


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has come to the disk: the last lines of the journal by their first names, or ``sync`` of everything."""
    names: list[str] = []

    def last_line(folder: Path) -> str:
        return next(iter(list(read_journal(folder))[-1]))

    monkeypatch.setattr(output, "sync_file_system", lambda folder: names.append(f"all after {last_line(folder)}"))
    monkeypatch.setattr(os, "fsync", lambda file: names.append("journal"))
    return names


@pytest.mark.parametrize(
    ("options", "sync", "expected"),
    [
        ({"fsync": "batch"}, True, ["all after run", "journal"]),
        ({"fsync": "always"}, True, ["all after run", "journal"]),
        ({"fsync": "batch"}, False, []),
        ({"fsync": "never"}, True, []),
        ({}, True, []),
    ],
)
def test_the_last_line_follows_what_it_speaks_of(
    tmp_path: Path, reached: list[str], options: dict[str, str], sync: bool, expected: list[str]
) -> None:
    with Ledger(tmp_path, [], model={}, settings={}, **options) as ledger:
        ledger.finish({"done": 0}, sync=sync)
    assert reached == expected
    assert [next(iter(line)) for line in read_journal(tmp_path)] == ["run", "end"]


def test_what_is_on_the_disk_is_not_brought_there_again(tmp_path: Path, reached: list[str]) -> None:
    with Ledger(tmp_path, [], model={}, settings={}, fsync="batch") as ledger:
        for _ in range(2):
            ledger.sync()
        ledger.announce([])
        for _ in range(2):
            ledger.sync()
        ledger.finish({"done": 0})
    assert reached == ["all after run", "all after writing", "journal"]


def test_what_a_sync_in_between_could_not_write_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system tells of it once: the sync at the end hears nothing of it any more."""
    failures = [OSError(errno.EIO, os.strerror(errno.EIO))]

    def sync(_: Path) -> None:
        if failures:
            raise failures.pop()

    monkeypatch.setattr(output, "sync_file_system", sync)
    with Ledger(tmp_path, [], model={}, settings={}, fsync="batch") as ledger:
        monkeypatch.setattr(ledger._sync, "_next", 0.0)
        ledger.record()
        with pytest.raises(OutputError, match=os.strerror(errno.EIO)):
            ledger.finish({"done": 0})
    assert not any("end" in line for line in read_journal(tmp_path))


@pytest.mark.skipif(not Path("/dev").is_dir(), reason="/dev, which is another file system than a temporary folder's")
def test_overlays_on_another_file_system_come_to_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(output, "sync_file_system", synced.append)
    out, overlays = tmp_path / "out", tmp_path / "overlays"
    for beside, folders in (
        (None, [out]),
        (overlays, [out]),
        (Path("/dev"), [out, Path("/dev")]),
    ):
        for _ in ("missing", "there"):
            with Ledger(out, [], model={}, settings={}, fsync="batch", overlays=beside) as ledger:
                ledger.sync()
            assert synced == folders
            synced.clear()
            overlays.mkdir(exist_ok=True)


def test_a_disk_of_overlays_that_cannot_be_written_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path("/dev")
    if not other.is_dir():
        pytest.skip("/dev, which is another file system than a temporary folder's")

    def sync(folder: Path) -> None:
        if folder == other:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(output, "sync_file_system", sync)
    with (
        Ledger(tmp_path, [], model={}, settings={}, fsync="batch", overlays=other) as ledger,
        pytest.raises(OutputError, match=f"{other}.*{os.strerror(errno.EIO)}"),
    ):
        ledger.sync()


def test_overlays_whose_file_system_is_lost_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "sync_file_system", lambda _: None)
    with Ledger(tmp_path / "out", [], model={}, settings={}, fsync="batch", overlays=tmp_path / "file" / "x") as ledger:
        (tmp_path / "file").write_bytes(b"")  # ENOTDIR, as ESTALE and EIO: neither there nor missing
        with pytest.raises(OutputError, match="file"):
            ledger.sync()
