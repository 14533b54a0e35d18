"""Images that were moved or touched since their masks were made: they are known by their bytes, and read once."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from isicrt.benchmarks.rendered import render
from isicrt.engine import journal_fields
from isicrt.engine.errors import DataError
from isicrt.engine.journal import JOURNAL_NAME
from isicrt.engine.ledger import Ledger
from isicrt.engine.outcome import KEPT, KEPT_OUTDATED, Outcome
from isicrt.engine.segmenter import Segmenter
from isicrt.engine.sources import Job
from tests.journal_lines import read_journal

MOVED = "x/b"
"""The image that is looked at: below a folder, as its path is noted in parts."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segmenter: Segmenter) -> Path:
    """Two images in ``in``, and their masks in ``out``."""
    monkeypatch.chdir(tmp_path)
    Path("in/x").mkdir(parents=True)
    for n, name in enumerate(("a", MOVED)):
        Image.fromarray(render(n, (40, 60))[0]).save(f"in/{name}.jpg")
    _run(segmenter)
    return tmp_path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that were read to see whether they are the same."""
    names: list[str] = []
    read_source = journal_fields.read_source

    def spy(path: Path) -> Any:
        names.append(path.name)
        return read_source(path)

    monkeypatch.setattr(journal_fields, "read_source", spy)
    return names


def _run(segmenter: Segmenter, images: str | list[str] = "in", **options: Any) -> dict[str, Outcome]:
    ended: dict[str, Outcome] = {}
    segmenter.segment_folder(
        images, "out", on_outcome=lambda o: ended.update({o.job.mask.stem: o}), processes=0, **options
    )
    return ended


def _move() -> str:
    Path("in").rename("moved")
    return "moved"


def _touch() -> str:
    os.utime(f"in/{MOVED}.jpg", (1, 1))
    return "in"


def _rename() -> str:
    Path(f"in/{MOVED}.jpg").rename(f"in/{MOVED}.jpeg")
    return "in"


@pytest.mark.parametrize(
    ("change", "name", "images"),
    [(_move, "b.jpg", ["a.jpg", "b.jpg"]), (_touch, "b.jpg", ["b.jpg"]), (_rename, "b.jpeg", ["b.jpeg"])],
)
def test_they_are_read_once(
    here: Path, segmenter: Segmenter, read: list[str], change: Callable[[], str], name: str, images: list[str]
) -> None:
    folder = change()
    for _ in range(3):
        assert all(o.skipped and o.kept is None and o.error is None for o in _run(segmenter, folder).values())
    assert sorted(read) == images
    lines = [line for line in read_journal("out") if "status" in line]
    assert [line["status"] for line in lines] == ["done"] * 2 + ["skipped"] * len(images)
    before, after = [line for line in lines if line["mask"] == "x/b.png"]
    status = Path(folder, "x", name).stat()
    assert after == before | {"status": "skipped", "image": f"x/{name}", "image_mtime_ns": status.st_mtime_ns}


def test_copies_do_not_take_masks_from_each_other(here: Path, segmenter: Segmenter, read: list[str]) -> None:
    shutil.copytree("in", "copy")
    journals = []
    for folder in ("copy", "in", "copy"):
        assert all(outcome.skipped for outcome in _run(segmenter, folder).values())
        journals.append([line for line in read_journal("out") if "status" in line])
    assert sorted(read) == ["a.jpg", "a.jpg", "b.jpg", "b.jpg"]
    assert len(journals[-1]) == 2
    Image.fromarray(render(7, (41, 60))[0]).save("copy/a.jpg")
    with pytest.raises(DataError, match=r"out/a.png"):
        _run(segmenter, "copy")
    assert all(outcome.skipped for outcome in _run(segmenter).values())


def test_a_line_that_is_no_json_by_its_numbers_does_no_harm(here: Path, segmenter: Segmenter) -> None:
    journal = Path("out", JOURNAL_NAME)
    journal.write_text(re.sub(r'"lesion_share":[0-9.]+', '"lesion_share":NaN', journal.read_text()))
    folder = _move()
    for _ in range(2):
        assert all(outcome.skipped for outcome in _run(segmenter, folder).values())


@pytest.mark.skipif(sys.platform == "win32", reason="no such errors there")
def test_where_nobody_can_tell_whether_a_mask_stands_one_does(
    here: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    length, folder = Path(f"in/{MOVED}.jpg").stat().st_size, _move()
    Path(folder, f"{MOVED}.jpg").write_bytes(b"another".ljust(length, b"\0"))
    lstat = Path.lstat

    def fail(self: Path) -> os.stat_result:
        if self.name == "b.png":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return lstat(self)

    monkeypatch.setattr(Path, "lstat", fail)
    assert "is the mask of another image" in (_run(segmenter, folder)["b"].error or "")


def test_where_it_lay_below_another_folder_than_the_others_is_forgotten(
    here: Path, segmenter: Segmenter, read: list[str]
) -> None:
    Path("two").mkdir()
    elsewhere, back = Path("two/b.jpg"), Path(f"in/{MOVED}.jpg")
    sources = []
    for place, before in ((elsewhere, back), (back, elsewhere)):
        before.rename(place)
        for _ in range(2):
            jobs = [Job(Path("in/a.jpg"), Path("out/a.png")), Job(place, Path("out/x/b.png"))]
            first = next(read_journal("out"))
            with Ledger("out", jobs, model=first["model"], settings=first["settings"]) as ledger:
                outcome = ledger.check(jobs[1])
                assert outcome is not None
                ledger.record((outcome, None))
        *_, noted = (line for line in read_journal("out") if line.get("mask") == "x/b.png")
        sources.append(noted.get("source"))
    assert read == ["b.jpg", "b.jpg"]
    assert sources == [str(here / elsewhere), None]


@pytest.mark.parametrize("change", [_move, _touch])
def test_then_their_masks_are_of_the_place_where_they_are(
    here: Path, segmenter: Segmenter, change: Callable[[], str]
) -> None:
    """One that is replaced there is done again, as ever; it is not the image of somewhere else."""
    folder = change()
    _run(segmenter, folder)
    Image.fromarray(render(7, (40, 60))[0]).save(Path(folder, f"{MOVED}.jpg"))
    ended = _run(segmenter, folder)
    assert (ended["a"].skipped, ended["b"].skipped, ended["b"].error) == (True, False, None)


def test_another_image_is_done_where_the_mask_was_removed(here: Path, segmenter: Segmenter) -> None:
    """Then nothing is in its way; where it stands, it may be all that is left of the image that was moved."""
    length, folder = Path(f"in/{MOVED}.jpg").stat().st_size, _move()
    Image.fromarray(render(7, (40, 60))[0]).save("other.jpg", quality=20)
    Path(folder, f"{MOVED}.jpg").write_bytes(Path("other.jpg").read_bytes().ljust(length, b"\0"))
    assert "is the mask of another image" in (_run(segmenter, folder)["b"].error or "")
    Path("out/x/b.png").unlink()
    ended = _run(segmenter, folder)["b"]
    assert (ended.error, ended.skipped) == (None, False)


def test_a_corrected_mask_stays_one(here: Path, segmenter: Segmenter, read: list[str]) -> None:
    drawn = Path("out/x/b.png")
    Image.new("1", (60, 40), 1).save(drawn)
    folder = _move()
    data = drawn.read_bytes()
    for _ in range(2):
        assert _run(segmenter, folder)["b"].kept == KEPT
    assert sorted(read) == ["a.jpg", "b.jpg"]
    assert drawn.read_bytes() == data


def test_a_corrected_mask_of_other_settings_does_not_get_those_of_the_run(here: Path, segmenter: Segmenter) -> None:
    Image.new("1", (60, 40), 1).save("out/x/b.png")
    folder = _move()
    for _ in range(2):
        assert _run(segmenter, folder, mask_bits=8)["b"].kept == KEPT_OUTDATED
    assert _run(segmenter, folder)["b"].kept == KEPT


def test_a_corrected_mask_has_one_line_in_a_run(here: Path, segmenter: Segmenter) -> None:
    Image.new("1", (60, 40), 1).save("out/x/b.png")
    _run(segmenter, _move())
    done, kept = [line for line in read_journal("out") if line.get("mask") == "x/b.png"]
    assert kept == done | {"status": "skipped", "kept": KEPT}


@pytest.mark.parametrize("overlays", [None, "drawn"])
def test_a_mask_whose_overlay_failed_is_skipped(
    here: Path, segmenter: Segmenter, read: list[str], overlays: str | None
) -> None:
    Path("drawn/x/b.jpg").mkdir(parents=True)
    Path("drawn/.isicrt-overlays").touch()
    Path("out/x/b.png").unlink()
    assert "overlay" in (_run(segmenter, overlays="drawn")["b"].error or "")
    Path("drawn/x/b.jpg").rmdir()
    folder = _move()
    for _ in range(2):
        assert _run(segmenter, folder, overlays=overlays)["b"].skipped
    assert sorted(read) == ["a.jpg", "b.jpg"]
    last = [line for line in read_journal("out") if line.get("mask") == "x/b.png"][-1]
    assert (last["status"], "reason" in last, "mask_crc" in last) == ("skipped", False, True)
