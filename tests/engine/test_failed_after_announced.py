"""Images that failed once their masks were announced: what stands there then, and what somebody draws there, is kept.

It is left open whose a mask is where a run was killed or cut off, or does not say that it wrote none.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isicrt.benchmarks.rendered import render
from isicrt.engine.blocks import BlockRun
from isicrt.engine.journal import JOURNAL_NAME, JournalIndex
from isicrt.engine.masks import encode_png
from isicrt.engine.outcome import KEPT, KEPT_DRAWN, KEPT_OUTDATED, Outcome
from isicrt.engine.output import OVERLAYS_NAME, OutputError, OutputFolder
from isicrt.engine.routes import Item
from isicrt.engine.segmenter import Segmenter
from tests.journal_lines import read_journal

SIZE = (40, 60)
MASK = Path("out/x/a.png")
OVERLAY = Path("drawn/x/a.jpg")
DRAWN = encode_png(np.eye(*SIZE, dtype=bool))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image in ``in/x``."""
    monkeypatch.chdir(tmp_path)
    Path("in/x").mkdir(parents=True)
    Image.fromarray(render(0, SIZE)[0]).save("in/x/a.jpg")
    return tmp_path


def _run(segmenter: Segmenter, **options: object) -> Outcome:
    ended: list[Outcome] = []
    segmenter.segment_folder("in", "out", on_outcome=ended.append, **options)
    return ended[0]


def _block_the_overlay() -> None:
    OVERLAY.mkdir(parents=True)
    Path("drawn", OVERLAYS_NAME).touch()


def _fail_on_the_overlay(segmenter: Segmenter, **options: object) -> None:
    ended = _run(segmenter, overlays="drawn", **options)
    assert (ended.error or "").startswith(f"{OVERLAY}: the overlay cannot be written: ")
    assert (ended.lesion_fraction, ended.confidence, ended.skipped) == (None, None, False)


@pytest.mark.parametrize("options", [{}, {"mask_bits": 8}])
@pytest.mark.parametrize("again", [{}, {"overlays": "drawn"}, {"mask_bits": 8}])
def test_a_mask_that_was_corrected_after_its_overlay_had_failed(
    here: Path, segmenter: Segmenter, options: dict, again: dict
) -> None:
    """Whether the mask is of the run whose overlay failed, or of the one before it."""
    _block_the_overlay()
    for first in (lambda: _fail_on_the_overlay(segmenter, **options), lambda: _run(segmenter, **options)):
        first()
        _fail_on_the_overlay(segmenter)
        MASK.write_bytes(DRAWN)
        for _ in range(2):
            ended = _run(segmenter, **again)
            assert (ended.error, ended.skipped) == (None, True)
            assert ended.kept == (KEPT_OUTDATED if "mask_bits" in again else KEPT)
            assert MASK.read_bytes() == DRAWN
        MASK.unlink()


def test_a_mask_is_not_made_again_because_its_overlay_failed(
    here: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    _block_the_overlay()
    _fail_on_the_overlay(segmenter)
    mask, noted = MASK.stat(), [line for line in read_journal(Path("out")) if "status" in line]
    assert [(line["status"], line["mask_size"]) for line in noted] == [("failed", mask.st_size)]
    monkeypatch.setattr(type(segmenter.runtime), "infer", None)
    _fail_on_the_overlay(segmenter)
    first = _run(segmenter)
    assert (first.error, first.skipped, first.kept) == (None, True, None)
    assert first.lesion_fraction == noted[0]["lesion_share"]
    OVERLAY.rmdir()
    assert _run(segmenter, overlays="drawn").skipped
    assert OVERLAY.is_file()
    assert MASK.stat() == mask


def test_a_damaged_image_has_no_mask_of_before_its_overlay_failed(here: Path, segmenter: Segmenter) -> None:
    _block_the_overlay()
    _fail_on_the_overlay(segmenter)
    good = Path("in/x/a.jpg").read_bytes()
    Path("in/x/a.jpg").write_bytes(b"damaged")
    assert _run(segmenter).error is not None
    assert not MASK.exists()
    Path("in/x/a.jpg").write_bytes(good)
    assert not _run(segmenter).skipped


@pytest.mark.parametrize("options", [{}, {"retry_failed": True}, {"mask_bits": 8}])
def test_a_mask_that_was_drawn_where_none_could_be_written(here: Path, segmenter: Segmenter, options: dict) -> None:
    Path("out").mkdir()
    Path("out/x").touch()
    for _ in range(2):
        assert "Not a directory" in (_run(segmenter).error or "")
    Path("out/x").unlink()
    Path("out/x").mkdir()
    MASK.write_bytes(DRAWN)
    for _ in range(2):
        ended = _run(segmenter, **options)
        assert (ended.error, ended.skipped, ended.kept) == (None, True, KEPT_DRAWN)
        assert MASK.read_bytes() == DRAWN
    MASK.unlink()
    assert (_run(segmenter).error, _run(segmenter).kept) == (None, None)


def _fail_to_write(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
    def write(self: OutputFolder, path: Path, _: bytes) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patched:
        patched.setattr(OutputFolder, "write", write)
        assert _run(segmenter, **options).error == f"{MASK}: Permission denied"


@pytest.mark.parametrize("corrected", [False, True])
def test_a_mask_that_could_not_be_replaced_is_still_what_it_was(
    here: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch, corrected: bool
) -> None:
    _run(segmenter)
    before = MASK.read_bytes()
    _fail_to_write(segmenter, monkeypatch, mask_bits=8)
    assert MASK.read_bytes() == before
    if corrected:
        MASK.write_bytes(DRAWN)
        assert _run(segmenter, mask_bits=8).kept == KEPT_OUTDATED
        assert _run(segmenter).kept == KEPT
        assert MASK.read_bytes() == DRAWN
    else:
        assert (_run(segmenter).skipped, _run(segmenter).kept) == (True, None)
        assert (_run(segmenter, mask_bits=8).skipped, _run(segmenter, mask_bits=8).kept) == (False, None)


@pytest.mark.parametrize("overlay", [True, False])
def test_a_run_that_is_cut_off_says_what_became_of_the_masks_that_it_had_announced(
    here: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch, overlay: bool
) -> None:
    """Once a mask was written and its overlay was not, or the mask was not."""
    finish = BlockRun._finish

    def finish_and_cut_off(self: BlockRun, item: Item) -> object:
        ended = finish(self, item)
        self._fail(OutputError("the disk is full"))
        return ended

    blocked = OVERLAY if overlay else MASK
    blocked.mkdir(parents=True)
    Path("drawn").mkdir(exist_ok=True)
    Path("drawn", OVERLAYS_NAME).touch()
    with monkeypatch.context() as patched:
        patched.setattr(BlockRun, "_finish", finish_and_cut_off)
        with pytest.raises(OutputError, match="the disk is full"):
            _run(segmenter, overlays="drawn", existing="overwrite")
    blocked.rmdir()
    MASK.write_bytes(DRAWN)
    assert _run(segmenter, overlays="drawn").kept == (KEPT if overlay else KEPT_DRAWN)
    assert MASK.read_bytes() == DRAWN


@pytest.mark.parametrize("images", ["in", "moved"])
def test_a_mask_whose_overlay_failed_before_it_was_noted_is_made_again(
    here: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch, images: str
) -> None:
    """As in a folder that isicrt began when a line of such a failure said nothing of the mask."""
    _block_the_overlay()
    _fail_on_the_overlay(segmenter)
    _as_before_masks_of_failures()
    OVERLAY.rmdir()
    Path("in").rename(images)
    ended: list[Outcome] = []
    segmenter.segment_folder(images, "out", overlays="drawn", on_outcome=ended.append)
    assert [(o.error, o.skipped, o.kept) for o in ended] == [(None, False, None)]
    assert OVERLAY.is_file()


def _as_before_masks_of_failures() -> None:
    lines = list(read_journal(Path("out")))
    kept = [{n: v for n, v in x.items() if x.get("status") != "failed" or n in FAILED_BEFORE} for x in lines]
    Path("out", JOURNAL_NAME).write_text("".join(f"{json.dumps(line)}\n" for line in kept))


FAILED_BEFORE = ("status", "image", "mask", "reason")
RUN = {"run": "0" * 12, "format": 1}
DONE = {"status": "done", "mask": "a.png", "mask_crc": 1}
WRITING = {"writing": ["a.png"]}
FAILED = {"status": "failed", "mask": "a.png", "reason": "in/a.jpg: a time-out"}
UNWRITTEN = FAILED | {"unwritten": True}
DAMAGED = FAILED | {"image_crc": 1}
OVERLAY_FAILED = FAILED | {"image_crc": 1, "mask_crc": 2}


@pytest.mark.parametrize(
    ("lines", "counts", "wrote"),
    [
        pytest.param([RUN, WRITING], 1, True, id="killed"),
        pytest.param([RUN, WRITING, UNWRITTEN], 2, False, id="unwritten"),
        pytest.param([RUN, WRITING, FAILED], 1, True, id="lost_and_failed"),
        pytest.param([RUN, WRITING, DAMAGED], 1, True, id="lost_and_damaged"),
        pytest.param([RUN, WRITING, WRITING, UNWRITTEN], 1, True, id="lost_and_unwritten"),
        pytest.param([RUN, FAILED, RUN, WRITING, UNWRITTEN], 4, False, id="failed_unwritten"),
        pytest.param([RUN, WRITING, OVERLAY_FAILED], 2, True, id="overlay_failed"),
        pytest.param([RUN, DONE, RUN, FAILED], 1, True, id="done_failed"),
        pytest.param([RUN, DONE, RUN, WRITING, UNWRITTEN], 1, True, id="done_not_replaced"),
        pytest.param([RUN, DONE, RUN, WRITING, FAILED], 3, True, id="done_lost_and_failed"),
        pytest.param([RUN, DONE, RUN, WRITING, WRITING, UNWRITTEN], 3, True, id="done_lost_and_unwritten"),
        pytest.param([RUN, DONE, RUN, WRITING, WRITING, DONE], 5, True, id="done_lost_and_done"),
        pytest.param([RUN, DONE, RUN, WRITING, DONE], 4, True, id="done_again"),
        pytest.param([RUN, DONE, RUN, WRITING, OVERLAY_FAILED], 4, True, id="done_again_without_overlay"),
        pytest.param([RUN, OVERLAY_FAILED, RUN, WRITING, UNWRITTEN], 1, True, id="without_overlay_not_replaced"),
        pytest.param([RUN, DONE, RUN, DAMAGED, RUN, WRITING, UNWRITTEN], 6, False, id="removed_and_unwritten"),
        pytest.param([RUN, WRITING, RUN, FAILED], 1, True, id="killed_failed"),
        pytest.param([RUN, WRITING, RUN, WRITING, UNWRITTEN], 1, True, id="killed_not_replaced"),
    ],
)
def test_whose_a_mask_is_after_a_failure(tmp_path: Path, lines: list[dict], counts: int, wrote: bool) -> None:
    """`counts`: which line is the one about the mask."""
    numbered = [line | {"n": n} for n, line in enumerate(lines)]
    (tmp_path / JOURNAL_NAME).write_text("".join(f"{json.dumps(line)}\n" for line in numbered))
    index = JournalIndex(tmp_path)
    found = index.find("a.png")
    assert found is not None
    assert (found[0]["n"], index.wrote("a.png")) == (counts, wrote)
    assert found[1]["n"] == max(n for n in range(counts) if lines[n] is RUN)
    index.close()
