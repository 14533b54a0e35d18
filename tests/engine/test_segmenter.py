"""The public API: arrays and files in, masks out."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import isicrt
from isicrt.benchmarks.rendered import render
from isicrt.engine import pipeline, shipped
from isicrt.engine import segmenter as segmenter_module
from isicrt.engine.errors import DataError, ImageError, ModelError, SettingsError
from isicrt.engine.images import Decoded, read_mask
from isicrt.engine.journal import JOURNAL_NAME
from isicrt.engine.masks import restore_mask
from isicrt.engine.overlay import MAX_SIDE, OverlayFolder, draw_outline
from isicrt.engine.scores import score_mask
from isicrt.engine.segmenter import Segmenter
from isicrt.engine.sources import Job
from tests.tiny_models import write_darkness_model


@pytest.fixture
def segmenter(darkness_onnx: Path):
    with Segmenter(darkness_onnx, threads=1) as segmenter:
        yield segmenter


def test_it_is_public() -> None:
    assert isicrt.Segmenter is Segmenter


@pytest.mark.parametrize("size", [(64, 64), (96, 128), (500, 400)])
def test_an_array(segmenter: Segmenter, size: tuple[int, int]) -> None:
    image, truth = np.full((*size, 3), 220, np.uint8), np.zeros(size, np.uint8)
    centre, axes = (size[1] // 2, size[0] // 3), (size[1] // 4, size[0] // 5)
    cv2.ellipse(truth, centre, axes, 0, 0, 360, 255, cv2.FILLED)
    image[truth > 0] = 60
    mask = segmenter.segment(image)
    assert mask.shape == size
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 255}
    assert score_mask(mask, truth).jaccard > 0.95


def test_a_file_gives_the_mask_of_its_array(segmenter: Segmenter, tmp_path: Path) -> None:
    image = render(4, (96, 128))[0]
    Image.fromarray(image).save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(segmenter.segment(path), segmenter.segment(image))
        np.testing.assert_array_equal(segmenter.probability(path), segmenter.probability(image))


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_the_mask_is_where_the_probability_is_above_the_threshold(darkness_onnx: Path, threshold: float) -> None:
    image = render(4, (96, 128))[0]
    with Segmenter(darkness_onnx, threads=1, threshold=threshold) as segmenter:
        probability, mask = segmenter.probability(image), segmenter.segment(image)
        clean_up = segmenter.card.clean_up
    assert probability.dtype == np.uint8
    assert probability.shape == image.shape[:2]
    assert len(np.unique(probability)) > 2
    above = restore_mask(probability, image.shape[:2], threshold=threshold, **clean_up)
    np.testing.assert_array_equal(mask > 0, above)


def test_any_memory_layout(segmenter: Segmenter) -> None:
    image = render(4, (96, 128))[0]
    strided = np.repeat(image, 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(segmenter.segment(strided), segmenter.segment(image))
    np.testing.assert_array_equal(segmenter.segment(np.asfortranarray(image)), segmenter.segment(image))
    square = render(4, (64, 64))[0]  # the model's own size, which no resize copies
    np.testing.assert_array_equal(segmenter.segment(np.asfortranarray(square)), segmenter.segment(square))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "got float32 of 4 x 4 x 3"),
        (np.zeros((4, 4), np.uint8), "got uint8 of 4 x 4"),
        (np.zeros((4, 4, 4), np.uint8), "got uint8 of 4 x 4 x 4"),
        (np.zeros((3, 8, 8), np.uint8), "got uint8 of 3 x 8 x 8"),
        (np.zeros((0, 4, 3), np.uint8), "got uint8 of 0 x 4 x 3"),
        ([[1, 2, 3]], "got list"),
        (None, "got NoneType"),
    ],
)
def test_what_is_no_image(segmenter: Segmenter, image, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        segmenter.segment(image)


def test_a_bad_file(segmenter: Segmenter, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"absent\.jpg"):
        segmenter.segment(tmp_path / "absent.jpg")


def test_threshold(darkness_onnx: Path) -> None:
    image = np.full((8, 8, 3), 100, np.uint8)  # a probability of 155
    for threshold, level in ((None, 255), (0.6, 255), (0.61, 0)):
        with Segmenter(darkness_onnx, threshold=threshold) as segmenter:
            assert (segmenter.segment(image) == level).all()


@pytest.mark.parametrize("value", [0, -1, 2.5, "2"])
@pytest.mark.parametrize("setting", ["batch_size", "threads"])
def test_settings_out_of_range(darkness_onnx: Path, setting: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=rf"{setting} \({value!r}\) must be a whole number"):
        Segmenter(darkness_onnx, **{setting: value})


@pytest.mark.parametrize("threshold", [0.0, 1.5, float("nan"), "0.5"])
def test_thresholds_out_of_range(darkness_onnx: Path, threshold: Any) -> None:
    with pytest.raises(SettingsError, match="threshold"):
        Segmenter(darkness_onnx, threshold=threshold)


def test_settings_may_be_numpys(darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"batch_size": np.int64(2), "threads": np.int32(1), "threshold": np.float32(0.5)}
    folder: dict[str, Any] = {"mask_bits": np.int64(8), "processes": np.int64(0), "max_pixels": np.int64(10**8)}
    with Segmenter(darkness_onnx, **settings) as segmenter:
        assert segmenter.segment_folder(rendered_pairs / "images", tmp_path / "out", **folder).failed == 0


@pytest.mark.parametrize(
    "setting", [{"mask_bits": 4}, {"mask_bits": "8"}, {"max_pixels": 0}, {"processes": 300}, {"processes": -1}], ids=str
)
def test_settings_of_a_folder_are_looked_at_before_it_is_made(
    segmenter: Segmenter, rendered_pairs: Path, tmp_path: Path, setting: dict[str, Any]
) -> None:
    with pytest.raises(SettingsError, match=rf"{next(iter(setting))} \("):
        segmenter.segment_folder(rendered_pairs / "images", tmp_path / "out", **setting)
    assert not (tmp_path / "out").exists()


def test_no_such_model() -> None:
    with pytest.raises(ModelError, match="nobody"):
        Segmenter("nobody")


def test_a_folder(segmenter: Segmenter, rendered_pairs: Path, tmp_path: Path) -> None:
    ended = []
    summary = segmenter.segment_folder(
        rendered_pairs / "images", tmp_path / "masks", overlays=tmp_path / "drawn", on_outcome=ended.append
    )
    assert (summary.images, summary.failed, len(ended)) == (12, 0, 12)
    for image in (rendered_pairs / "images").iterdir():
        mask = read_mask(tmp_path / "masks" / f"{image.stem}.png")
        np.testing.assert_array_equal(mask * np.uint8(255), segmenter.segment(image))
        with Image.open(tmp_path / "drawn" / image.name) as overlay:
            assert overlay.format == "JPEG"
            assert overlay.size == mask.shape[::-1]


def test_a_folder_of_a_closed_segmenter(darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    with Segmenter(darkness_onnx, threads=1) as segmenter:
        pass
    with pytest.raises(ModelError, match="closed"):
        segmenter.segment_folder(rendered_pairs / "images", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_an_image_without_lesion(segmenter: Segmenter, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (64, 48), "white").save(tmp_path / "in" / "a.png")
    Image.fromarray(render(4, (96, 128))[0]).save(tmp_path / "in" / "b.png")
    for done in (2, 0):
        summary = segmenter.segment_folder(tmp_path / "in", tmp_path / "out")
        assert (summary.images, summary.without_lesion) == (done, 1)


def test_a_folder_with_images_that_fail(segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "FAILURES_NAMED", 2)
    (tmp_path / "in").mkdir()
    Image.fromarray(render(4, (96, 128))[0]).save(tmp_path / "in" / "a.png")
    for name in "bcd":
        (tmp_path / "in" / f"{name}.png").touch()
    summary = segmenter.segment_folder(tmp_path / "in", tmp_path / "out")
    assert (summary.images, summary.failed, len(summary.failures)) == (4, 3, 2)
    for image, reason in summary.failures:
        assert image.parent == tmp_path / "in"
        assert reason == f"{image}: the file is empty"


def test_a_folder_whose_images_would_share_a_mask(segmenter: Segmenter, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "a.jpg"):
        Image.fromarray(render(4, (96, 128))[0]).save(tmp_path / "in" / name)
    with pytest.raises(DataError, match=r"on_clash in Python"):
        segmenter.segment_folder(tmp_path / "in", tmp_path / "out")
    summary = segmenter.segment_folder(tmp_path / "in", tmp_path / "out", on_clash="extension")
    assert (summary.images, summary.failed) == (2, 0)
    with pytest.raises(SettingsError, match="on_clash 'both'"):
        segmenter.segment_folder(tmp_path / "in", tmp_path / "other", on_clash="both")


def test_what_was_found_and_not_taken_is_in_the_summary(segmenter: Segmenter, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(render(4, (96, 128))[0]).save(tmp_path / "in" / "a.png")
    for name in ("b.heic", "c.heic", "d.dcm"):
        (tmp_path / "in" / name).write_bytes(b"x")
    segmenter.segment_folder(tmp_path / "in", tmp_path / "in" / "masks")
    summary = segmenter.segment_folder(tmp_path / "in", tmp_path / "out")
    assert summary.images == 1
    left_out, passed_over = summary.left_out.lines()
    assert left_out == f"left out {tmp_path / 'in' / 'masks'}: masks of an earlier run"
    assert "3 files that isicrt does not read: 2 .heic, 1 .dcm" in passed_over


def test_large_overlays_are_reduced(segmenter: Segmenter, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(render(0, (600, 1500))[0]).save(tmp_path / "in" / "a.jpg")
    segmenter.segment_folder(tmp_path / "in", tmp_path / "out", overlays=tmp_path / "drawn")
    with Image.open(tmp_path / "drawn" / "a.jpg") as overlay:
        assert overlay.size == (MAX_SIDE, round(600 * MAX_SIDE / 1500))


def test_images_of_too_many_pixels(segmenter: Segmenter, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, width in ("a", 200), ("b", 201):
        Image.fromarray(render(0, (100, width))[0]).save(tmp_path / "in" / f"{name}.jpg")
    drawn = tmp_path / "drawn"
    summary = segmenter.segment_folder(tmp_path / "in", tmp_path / "out", overlays=drawn, max_pixels=20_000)
    ((image, reason),) = summary.failures
    assert image.name == "b.jpg"
    assert "201 x 100 is more than 0.02 megapixels" in reason
    assert [path.name for path in drawn.glob("*.jpg")] == ["a.jpg"]


def test_an_overlay_is_decoded_as_its_image_was(tmp_path: Path) -> None:
    def decode(path: Path, size: tuple[int, int]) -> Decoded:
        assert (path, size) == (job.image, (100, 200))
        return Decoded(np.full((*size, 3), 77, np.uint8), (100, 200))

    job = Job(tmp_path / "not-there.jpg", tmp_path / "out" / "a.png")
    OverlayFolder(tmp_path / "out", tmp_path / "drawn", decode=decode)(job, np.zeros((100, 200), bool))
    with Image.open(tmp_path / "drawn" / "a.jpg") as overlay:
        assert np.asarray(overlay).min() == np.asarray(overlay).max() == 77


def test_the_outline_follows_the_mask() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    mask = np.zeros((100, 200), bool)
    mask[20:60, 50:120] = True
    drawn = draw_outline(image, mask).any(axis=2)
    assert not image.any()
    assert drawn[20, 50:120].all()
    assert drawn[20:60, 119].all()
    far = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5))) == cv2.erode(mask.astype(np.uint8), np.ones((5, 5)))
    assert not drawn[far].any()
    assert not draw_outline(image, np.zeros((100, 200), bool)).any()


@pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy, lambda segmenter: pickle.loads(pickle.dumps(segmenter))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_opens_its_own(
    darkness_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: Callable[[Segmenter], Segmenter]
) -> None:
    monkeypatch.chdir(darkness_onnx.parent)
    with Segmenter(darkness_onnx.name, batch_size=3, threads=2, threshold=0.61) as segmenter:
        monkeypatch.chdir(tmp_path)
        copied = again(segmenter)
        assert copied.runtime is not segmenter.runtime
    image = np.full((8, 8, 3), 100, np.uint8)  # a probability of 155
    with copied:
        assert not copied.segment(image).any()
        assert {name: vars(copied)[f"_{name}"] for name in ("batch_size", "threads")} == {"batch_size": 3, "threads": 2}


def test_a_copy_is_of_the_same_model(darkness_onnx: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.onnx"
    shutil.copy(darkness_onnx, own)
    with Segmenter(own, threads=1) as segmenter:
        sent = pickle.dumps(segmenter)
    write_darkness_model(own, threshold=0.7)
    with pytest.raises(ModelError, match=r"own\.onnx: was changed since it was first read"):
        pickle.loads(sent)


def test_what_went_wrong_first_is_what_is_said(darkness_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = Segmenter(darkness_onnx, threads=1)
    close = segmenter.runtime.close

    def fail() -> None:
        raise ModelError("could not close")

    monkeypatch.setattr(segmenter.runtime, "close", fail)
    with pytest.raises(KeyError, match="the cause"), segmenter:
        raise KeyError("the cause")
    with pytest.raises(ModelError, match="could not close"), segmenter:
        pass
    close()


@pytest.mark.parametrize("processes", [0, 2])
def test_a_program_that_goes_elsewhere_while_its_model_is_replaced(
    darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    shutil.copy(darkness_onnx, tmp_path / "here" / "own.onnx")
    shutil.copy(shipped.resolve(None), tmp_path / "there" / "own.onnx")
    monkeypatch.chdir(tmp_path / "here")
    with Segmenter("own.onnx", threads=1) as segmenter:
        before = segmenter.segment(rendered_pairs / "images" / "ISIC_0000000.jpg")
        monkeypatch.chdir(tmp_path / "there")
        shutil.copy("own.onnx", tmp_path / "here" / "own.onnx")
        segmenter.segment_folder(rendered_pairs / "images", tmp_path / "out", processes=processes)
    run = json.loads((tmp_path / "out" / JOURNAL_NAME).read_text().splitlines()[0])
    assert run["model"]["sha256"] == hashlib.sha256(darkness_onnx.read_bytes()).hexdigest()
    np.testing.assert_array_equal(read_mask(tmp_path / "out" / "ISIC_0000000.png"), before > 0)


def test_a_model_is_found_again_by_a_program_that_went_elsewhere(
    darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(darkness_onnx.parent)
    with Segmenter(darkness_onnx.name, threads=2) as segmenter:
        monkeypatch.chdir(tmp_path)
        # One call over several threads is loaded when it is first needed.
        assert segmenter.segment(rendered_pairs / "images" / "ISIC_0000000.jpg").any()


def test_its_threads_and_threshold_are_those_of_a_gpus_decoder(
    darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(segmenter_module, "open_chain", lambda runtime, decode, **options: given.update(options))
    with Segmenter(darkness_onnx, threads=1, threshold=0.4) as segmenter:
        segmenter.segment_folder(rendered_pairs / "images", tmp_path / "out")
    assert given == {"threshold": 0.4, "threads": 1}
