"""Overlays are of the masks that stand there, and come into no folder of photographs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from isicrt.benchmarks.rendered import render
from isicrt.engine.errors import DataError
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


def _run(segmenter: Segmenter, images: str = "in", **options: object) -> dict[str, Outcome]:
    ended: dict[str, Outcome] = {}
    segmenter.segment_folder(images, "out", on_outcome=lambda o: ended.update({o.job.image.stem: o}), **options)
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
        assert not _run(strict, overlays="drawn")["a"].skipped
        assert drawn.read_bytes() != before
        assert _run(strict, overlays="drawn")["a"].skipped
        assert _run(strict)["a"].skipped


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
