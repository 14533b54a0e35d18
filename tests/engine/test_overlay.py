"""Overlays are of the masks that stand there, and come into no folder of photographs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isicrt.benchmarks.rendered import render
from isicrt.engine.errors import DataError
from isicrt.engine.journal import JOURNAL_NAME
from isicrt.engine.masks import encode_png
from isicrt.engine.outcome import KEPT, Outcome
from isicrt.engine.output import OVERLAYS_NAME
from isicrt.engine.segmenter import Segmenter


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image in ``in``."""
    monkeypatch.chdir(tmp_path)
    _photograph("in/a.png", 0)
    return tmp_path


def _photograph(path: str, seed: int) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(render(seed, (40, 60))[0]).save(path)


def _run(segmenter: Segmenter, images: str = "in", out: str = "out", **options: object) -> dict[str, Outcome]:
    ended: dict[str, Outcome] = {}
    segmenter.segment_folder(images, out, on_outcome=lambda o: ended.update({o.job.image.stem: o}), **options)
    return ended


@pytest.mark.parametrize("existing", ["resume", "overwrite"])
@pytest.mark.parametrize(
    ("images", "overlays", "photograph"),
    [
        pytest.param("photos/new", "photos", "photos/a.jpg", id="above_the_images"),
        pytest.param("in", "batch1", "batch1/a.jpg", id="another_batch"),
        pytest.param("in", "batch1", "batch1/z.TIFF", id="another_batch_with_other_names"),
        pytest.param("photos/new/*.png", "photos/new", "photos/new/a.jpg", id="beside_them"),
        pytest.param("trees", "batch1", "batch1/x/y/a.jpg", id="deeper"),
        pytest.param("in", "batch1", "batch1/old/z.jpg", id="below"),
        pytest.param("photos/new", "photos", "photos/old/z.jpg", id="in_a_folder_beside_theirs"),
        pytest.param("photos/new", "photos", "photos/new/z.jpg", id="those_that_are_segmented"),
    ],
)
def test_photographs_are_not_replaced(
    here: Path, segmenter: Segmenter, existing: str, images: str, overlays: str, photograph: str
) -> None:
    for folder in ("photos/new", "trees/x/y"):
        Path(folder).mkdir(parents=True)
        shutil.copy("in/a.png", folder)
    _photograph(photograph, 1)
    before = Path(photograph).read_bytes()
    with pytest.raises(DataError, match=r"isicrt drew them, such as .*Choose another folder for --overlay"):
        _run(segmenter, images, overlays=overlays, existing=existing)
    assert Path(photograph).read_bytes() == before
    assert not Path(overlays, OVERLAYS_NAME).exists()
    assert not Path("out").exists()


def test_what_lies_in_a_marked_folder_is_replaced(here: Path, segmenter: Segmenter) -> None:
    Path("drawn").mkdir()
    Path("drawn/notes.txt").touch()
    assert _run(segmenter, overlays="drawn")["a"].error is None
    _photograph("in/a.png", 1)
    before = Path("drawn/a.jpg").read_bytes()
    assert _run(segmenter, overlays="drawn")["a"].error is None
    assert Path("drawn/a.jpg").read_bytes() != before


def test_masks_below_are_no_photographs(here: Path, segmenter: Segmenter) -> None:
    _run(segmenter, out="results/masks")
    assert _run(segmenter, out="results/masks", overlays="results")["a"].skipped
    assert Path("results/a.jpg").is_file()


@pytest.mark.parametrize("below", ["", "x/y"])
def test_masks_below_that_lost_their_journal_are_no_photographs(here: Path, segmenter: Segmenter, below: str) -> None:
    """As where a shell copied them. That they stand where this run's go, --overwrite is told."""
    Path("in", below).mkdir(parents=True, exist_ok=True)
    Path("in/a.png").rename(Path("in", below, "a.png"))
    _run(segmenter, out="results/masks")
    Path("results/masks", JOURNAL_NAME).unlink()
    _photograph("results/masks/older/b.png", 1)
    assert _run(segmenter, out="results/masks", overlays="results", existing="overwrite")["a"].error is None
    assert Path("results", below, "a.jpg").is_file()


def test_an_overlay_is_that_of_the_mask_that_stands_there(
    here: Path, segmenter: Segmenter, darkness_onnx: Path
) -> None:
    drawn = Path("drawn/a.jpg")
    _run(segmenter, overlays="drawn")
    before = drawn.read_bytes()
    assert _run(segmenter, overlays="./drawn")["a"].skipped
    with Segmenter(darkness_onnx, threads=1, threshold=0.95) as strict:
        assert not _run(strict)["a"].skipped
        assert drawn.read_bytes() == before
        mask = Path("out/a.png").stat()
        assert _run(strict, overlays="drawn")["a"].skipped
        assert Path("out/a.png").stat() == mask
        after = drawn.read_bytes()
        assert after != before
        _run(strict, overlays="drawn", existing="overwrite")
        assert drawn.read_bytes() == after


@pytest.mark.parametrize("images", ["in", "other"])
def test_two_folders_of_masks_may_share_one_of_overlays(
    here: Path, segmenter: Segmenter, darkness_onnx: Path, images: str
) -> None:
    """They draw in turns. Of two images without a lesion the masks are the same, and the photographs are not."""
    _photograph("other/a.png", 1)
    threshold = 0.95 if images == "in" else 0.999
    with Segmenter(darkness_onnx, threads=1, threshold=threshold) as strict:
        ours, theirs = (strict if images == "other" else segmenter, "in", "out"), (strict, images, "out2")
        drawn = []
        for _ in range(2):
            for run in ours, theirs:
                assert _run(*run, overlays="drawn")["a"].error is None
                drawn.append(Path("drawn/a.jpg").read_bytes())
    assert drawn[0] == drawn[2] != drawn[1] == drawn[3]
    same_masks = Path("out/a.png").read_bytes() == Path("out2/a.png").read_bytes()
    assert same_masks == (images == "other")


def test_a_run_removes_no_overlay_of_anothers_mask(here: Path, segmenter: Segmenter, darkness_onnx: Path) -> None:
    _run(segmenter, overlays="drawn")
    with Segmenter(darkness_onnx, threads=1, threshold=0.95) as strict:
        _run(strict, "in", "out2", overlays="drawn")
        theirs = Path("drawn/a.jpg").read_bytes()
        with Image.open("out/a.png") as mask:
            Path("out/a.png").write_bytes(encode_png(np.ones((mask.height, mask.width), bool)))  # by hand
        assert _run(segmenter, overlays="drawn")["a"].kept
        assert Path("drawn/a.jpg").read_bytes() == theirs


@pytest.mark.parametrize("damaged_before", [False, True])
def test_an_image_that_never_had_a_mask_costs_no_overlay_of_anothers(
    here: Path, segmenter: Segmenter, damaged_before: bool
) -> None:
    """Whether the failure is found, or taken from the journal."""
    Path("other").mkdir()
    Path("other/a.png").write_bytes(b"damaged")
    if damaged_before:
        assert _run(segmenter, "other", "out2")["a"].error is not None
    _run(segmenter, overlays="drawn")
    drawn = Path("drawn/a.jpg").read_bytes()
    assert _run(segmenter, "other", "out2", overlays="drawn")["a"].untried == damaged_before
    assert Path("drawn/a.jpg").read_bytes() == drawn
    _as_before_labels(Path("drawn/a.jpg"))
    _run(segmenter, "other", "out2", overlays="drawn")
    assert not Path("drawn/a.jpg").exists()


def _as_before_labels(overlay: Path) -> None:
    jpeg = overlay.read_bytes()
    start = jpeg.index(b"\xff\xfe")
    overlay.write_bytes(jpeg[:start] + jpeg[start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big") :])


def test_overlays_are_drawn_from_the_masks_that_are_there(
    here: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where an older isicrt drew them, or none: no mask is made again."""
    assert not _run(segmenter, overlays="drawn")["a"].skipped
    before = Path("drawn/a.jpg").read_bytes()
    _as_before_labels(Path("drawn/a.jpg"))
    monkeypatch.setattr(type(segmenter.runtime), "infer", None)
    for overlays in "drawn", "elsewhere":
        assert _run(segmenter, overlays=overlays)["a"].skipped
        assert Path(overlays, "a.jpg").read_bytes() == before
    Path("link").symlink_to("drawn")
    there = Path("drawn/a.jpg").stat()
    for overlays in "link", "out/../drawn", str(here / "drawn"):
        assert _run(segmenter, overlays=overlays)["a"].skipped
        assert Path("drawn/a.jpg").stat() == there


def test_an_overlay_that_cannot_be_drawn_fails_its_image(here: Path, segmenter: Segmenter) -> None:
    _run(segmenter)
    mask = Path("out/a.png").read_bytes()
    Path("drawn/a.jpg").mkdir(parents=True)
    Path("drawn", OVERLAYS_NAME).touch()
    assert "a.jpg: the overlay cannot be written: " in (_run(segmenter, overlays="drawn")["a"].error or "")
    assert Path("out/a.png").read_bytes() == mask
    Path("drawn/a.jpg").rmdir()
    assert _run(segmenter, overlays="drawn")["a"].error is None
    assert Path("drawn/a.jpg").is_file()


def test_overlays_that_lost_their_mark(here: Path, segmenter: Segmenter) -> None:
    """As where a shell copied them, which leaves dot files behind."""
    _run(segmenter, overlays="drawn")
    mark = Path("drawn", OVERLAYS_NAME)
    mark.unlink()
    assert _run(segmenter, overlays="drawn")["a"].skipped
    assert mark.exists()
    mark.unlink()
    _as_before_labels(Path("drawn/a.jpg"))
    with pytest.raises(DataError, match=rf"If isicrt drew them, .* make an empty file drawn/{OVERLAYS_NAME}\."):
        _run(segmenter, overlays="drawn")
    mark.touch()
    assert _run(segmenter, overlays="drawn")["a"].skipped


def test_a_run_that_was_moved_with_its_overlays_draws_none_again(
    here: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("first").mkdir()
    shutil.copytree("in", "first/in")
    monkeypatch.chdir("first")
    _run(segmenter, overlays="drawn")
    monkeypatch.chdir(here)
    Path("first").rename("second")
    monkeypatch.chdir("second")
    assert _run(segmenter, overlays="drawn")["a"].skipped


def test_no_overlay_outlives_its_mask(here: Path, segmenter: Segmenter) -> None:
    _run(segmenter, overlays="drawn")
    _photograph("out/a.png", 1)  # as a program that saves a mask does: of this size, whatever is in it
    assert _run(segmenter)["a"].kept == KEPT
    assert Path("drawn/a.jpg").exists()
    assert _run(segmenter, overlays="drawn")["a"].kept == KEPT
    assert not Path("drawn/a.jpg").exists()
    _run(segmenter, overlays="drawn", existing="overwrite")
    assert Path("drawn/a.jpg").exists()
    Path("in/a.png").write_bytes(b"damaged")
    for _ in range(2):
        assert _run(segmenter, overlays="drawn")["a"].error is not None
        assert not Path("drawn/a.jpg").exists()
        Path("drawn/a.jpg").touch()


@pytest.mark.parametrize("meanwhile", ["nothing", "unreadable", "retried", "drawn"])
def test_no_overlay_outlives_a_mask_that_a_run_without_overlays_removed(
    here: Path, segmenter: Segmenter, meanwhile: str
) -> None:
    _run(segmenter, overlays="drawn")
    mask = Path("out/a.png").read_bytes()
    Path("in/a.png").write_bytes(b"damaged")
    assert _run(segmenter)["a"].error is not None
    assert not Path("out/a.png").exists()
    if meanwhile == "unreadable":
        Path("in/a.png").rename("away")
        Path("in/a.png").symlink_to("a.png")
        assert _run(segmenter)["a"].error is not None
        Path("away").replace("in/a.png")
    elif meanwhile == "retried":
        assert not _run(segmenter, retry_failed=True)["a"].untried
    elif meanwhile == "drawn":
        Path("out/a.png").write_bytes(mask)
    assert Path("drawn/a.jpg").exists()
    assert (_run(segmenter, overlays="drawn")["a"].kept is None) == (meanwhile != "drawn")
    assert not Path("drawn/a.jpg").exists()


@pytest.mark.parametrize("end", ["damaged", "corrected"])
def test_no_overlay_outlives_a_mask_that_a_run_without_overlays_replaced(
    here: Path, segmenter: Segmenter, end: str
) -> None:
    _run(segmenter, overlays="drawn")
    for bits in (8, 1):
        assert not _run(segmenter, mask_bits=bits)["a"].skipped
    _photograph("in/a.png", 2)
    assert not _run(segmenter)["a"].skipped
    if end == "damaged":
        Path("in/a.png").write_bytes(b"damaged")
    else:
        _photograph("out/a.png", 1)
    assert Path("drawn/a.jpg").exists()
    assert (_run(segmenter, overlays="drawn")["a"].kept == KEPT) == (end == "corrected")
    assert not Path("drawn/a.jpg").exists()
