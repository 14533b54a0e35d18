"""Images that had masks and fail now: only the mask of one that was replaced by a damaged file is removed."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isicrt.benchmarks.rendered import render
from isicrt.engine import segmenter as segmenter_module
from isicrt.engine.isolation import ImageDecoder
from isicrt.engine.journal import JOURNAL_NAME
from isicrt.engine.masks import encode_png
from isicrt.engine.outcome import Outcome
from isicrt.engine.segmenter import Segmenter
from tests.journal_lines import read_journal

MASK = Path("out/a.png")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A TIFF in ``in``."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    Image.fromarray(render(0, (40, 60))[0]).save("in/a.tif")
    return tmp_path


@pytest.fixture
def strict(darkness_onnx: Path) -> Iterator[Segmenter]:
    """With another threshold than `segmenter`."""
    with Segmenter(darkness_onnx, threads=1, threshold=0.4) as segmenter:
        yield segmenter


def _run(segmenter: Segmenter, **options: object) -> Outcome:
    ended: list[Outcome] = []
    segmenter.segment_folder("in", "out", on_outcome=ended.append, **options)
    return ended[0]


def _lose_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a library that was updated, or a memory that is short, does: the same file cannot be decoded any more."""
    command = ["sh", "-c", "exit 1"]
    monkeypatch.setattr(segmenter_module, "ImageDecoder", lambda **options: ImageDecoder(**options, command=command))


@pytest.mark.parametrize("corrected", [False, True])
def test_a_mask_outlives_a_failure_that_is_not_its_images(
    here: Path, segmenter: Segmenter, strict: Segmenter, monkeypatch: pytest.MonkeyPatch, corrected: bool
) -> None:
    first = _run(segmenter)
    assert first.error is None
    if corrected:
        MASK.write_bytes(encode_png(np.eye(40, 60, dtype=bool)))
    mask = MASK.read_bytes()
    with monkeypatch.context() as patched:
        _lose_the_decoder(patched)
        for existing in ("overwrite",) if corrected else ("overwrite", "resume"):
            assert "exit code 1" in (_run(strict, existing=existing).error or "")
            assert MASK.read_bytes() == mask
        if not corrected:
            assert "exit code 1" in (_run(segmenter, overlays="drawn").error or "")
            assert MASK.read_bytes() == mask
    again = _run(segmenter)  # what was noted of the mask still holds
    assert (again.error, again.skipped, again.kept is not None) == (None, True, corrected)
    assert MASK.read_bytes() == mask
    assert not _run(strict, existing="overwrite").skipped
    assert MASK.read_bytes() != mask


@pytest.mark.parametrize("existing", ["resume", "overwrite"])
def test_a_damaged_image_has_no_mask_of_its_better_days(here: Path, segmenter: Segmenter, existing: str) -> None:
    _run(segmenter)
    Path("in/a.tif").write_bytes(b"damaged")
    assert "not a JPEG" in (_run(segmenter, existing=existing).error or "")
    assert not MASK.exists()
    assert _run(segmenter).untried


@pytest.mark.parametrize("killed", [False, True])
def test_a_mask_of_an_images_better_days_that_cannot_be_removed_is_nobodys_drawing(
    here: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """As in a folder without write permission, or on Windows while a viewer has it open."""
    _run(segmenter)
    if killed:
        _announce_again()
    Path("in/a.tif").write_bytes(b"damaged")
    unlink = Path.unlink

    def holds(path: Path, missing_ok: bool = False) -> None:
        if path == MASK:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        unlink(path, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", holds)
        for _ in range(2):
            assert "not a JPEG" in (_run(segmenter).error or "")
            assert MASK.exists()
    ended = _run(segmenter)
    assert "not a JPEG" in (ended.error or "")
    assert (ended.kept, ended.untried, MASK.exists()) == (None, False, False)
    assert _run(segmenter).untried


def _announce_again() -> None:
    """As a run does that is killed then."""
    first = next(iter(read_journal(Path("out"))))
    with Path("out", JOURNAL_NAME).open("a", encoding="utf-8") as journal:
        journal.writelines(f"{json.dumps(line)}\n" for line in (first, {"writing": ["a.png"]}))


def test_a_damaged_image_has_no_mask_that_a_killed_run_had_announced(here: Path, segmenter: Segmenter) -> None:
    """Nobody knows from which bytes that one was made."""
    _run(segmenter, overlays="drawn")
    _announce_again()
    Path("in/a.tif").write_bytes(b"damaged")
    assert not _run(segmenter, overlays="drawn").untried
    assert not MASK.exists()
    assert not Path("drawn/a.jpg").exists()
    assert _run(segmenter, overlays="drawn").untried


def test_a_journal_with_what_is_no_number_costs_its_image_alone(here: Path, segmenter: Segmenter) -> None:
    _run(segmenter)
    journal = Path("out", JOURNAL_NAME)
    text, count = re.subn(r'"mask_crc":\d+', '"mask_crc":NaN', journal.read_text())
    assert count == 1
    journal.write_text(text)
    Path("in/a.tif").write_bytes(Path("in/a.tif").read_bytes()[:60])
    assert _run(segmenter).error is not None
    assert [line.get("status") for line in read_journal("out")][-2:] == ["failed", None]
