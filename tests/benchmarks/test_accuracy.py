from __future__ import annotations

import dataclasses
from pathlib import Path, PurePath

import numpy as np
import pytest
from PIL import Image

from isicrt.benchmarks.accuracy import Accuracy, find_truths, score_masks
from isicrt.engine.errors import DataError
from isicrt.engine.images import read_mask
from isicrt.engine.masks import write_mask
from tests.benchmarks.sample_report import sample_model, sample_report

HALF = np.array([[True, False], [True, False]])


def _touch(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["ISIC_1_Segmentation.png"], "ISIC_1_Segmentation.png"),
        (["ISIC_1_segmentation.PNG"], "ISIC_1_segmentation.PNG"),
        (["ISIC_1.png"], "ISIC_1.png"),
        (["ISIC_1.png", "ISIC_1_Segmentation.png"], "ISIC_1_Segmentation.png"),
        (["sub/ISIC_1.png"], "sub/ISIC_1.png"),
        (["sub/ISIC_1.png", "other/ISIC_1.png"], "sub/ISIC_1.png"),
        (["other/ISIC_1.png", "ISIC_11.png", "ISIC_1_superpixels.png"], "other/ISIC_1.png"),
        (["ISIC_1_lesion.bmp", "ISIC_1.bmp", "ISIC_1_Label3.bmp"], "ISIC_1_lesion.bmp"),
        (["ISIC_1_mask.tif", "ISIC_1_Segmentation.png"], "ISIC_1_Segmentation.png"),
    ],
)
def test_truth_is_found_by_id(tmp_path: Path, files: list[str], expected: str) -> None:
    _touch(tmp_path, files)
    name = PurePath("sub/ISIC_1.png")
    assert find_truths([name], tmp_path) == {name: tmp_path / expected}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no ground truth for any image .*ISIC_1_Segmentation.png"),
        (["ISIC_1.jpg", "ISIC_11.png"], "no ground truth"),
        (["a/ISIC_1.png", "b/ISIC_1.png"], "two ground truths"),
    ],
)
def test_truth_that_cannot_be_found(tmp_path: Path, files: list[str], message: str) -> None:
    _touch(tmp_path, files)
    with pytest.raises(DataError, match=message):
        find_truths([PurePath("sub/ISIC_1.png")], tmp_path)


def test_an_image_that_is_named_like_a_truth_has_one_of_its_own(tmp_path: Path) -> None:
    _touch(tmp_path, ["a_lesion_mask.png", "b_lesion.png"])
    names = [PurePath("a_lesion.png"), PurePath("b_lesion.png")]
    assert [path.name for path in find_truths(names, tmp_path).values()] == ["a_lesion_mask.png", "b_lesion.png"]


def test_truths_among_the_photographs_have_no_truth(tmp_path: Path) -> None:
    """A folder of both was segmented as a whole, and each image of it has a mask to be scored."""
    _touch(tmp_path, ["ISIC_1_Segmentation.png", "ISIC_1.jpg"])
    names = [PurePath("ISIC_1.png"), PurePath("ISIC_1_Segmentation.png")]
    assert list(find_truths(names, tmp_path)) == names[:1]
    _touch(tmp_path / "b", ["IMD1.bmp", "IMD1_lesion.bmp"])
    with pytest.raises(DataError, match="no ground truth"):
        find_truths([PurePath("IMD1.png"), PurePath("IMD1_lesion.png")], tmp_path / "b")


def test_photographs_that_are_called_masks_keep_their_own(tmp_path: Path) -> None:
    _touch(tmp_path, ["x.png", "x_mask.png", "y.bmp", "y_gt.png", "y_gt.tif"])
    names = [PurePath("x.png"), PurePath("x_mask.png"), PurePath("y.png")]
    assert [path.name for path in find_truths(names, tmp_path).values()] == ["x.png", "x_mask.png", "y_gt.png"]


def test_images_without_truth_are_left_out(tmp_path: Path) -> None:
    _touch(tmp_path, ["ISIC_1.png"])
    assert list(find_truths([PurePath("ISIC_1.png"), PurePath("ISIC_2.png")], tmp_path)) == [PurePath("ISIC_1.png")]


def test_masks_are_scored_and_what_cannot_be_is_told(tmp_path: Path) -> None:
    truth, out = tmp_path / "truth", tmp_path / "out"
    truth.mkdir()
    out.mkdir()
    write_mask(HALF, truth / "same.png")
    write_mask(HALF, out / "same.png", bits=8)
    write_mask(np.ones((2, 2), bool), out / "double.png")
    write_mask(HALF, truth / "double.png", bits=8)
    write_mask(HALF, out / "other-size.png")
    write_mask(np.ones((3, 3), bool), truth / "other-size.png")
    write_mask(HALF, truth / "failed.png")
    names = [PurePath(f"{stem}.png") for stem in ("same", "double", "other-size", "failed")]

    accuracy = score_masks(out, {name: truth / name for name in names})

    assert {name: s.jaccard for name, s in accuracy.per_image.items()} == {"same.png": 1.0, "double.png": 0.5}
    assert accuracy.summary["jaccard"] == 0.75
    assert [p.split(":")[0] for p in accuracy.problems] == ["other-size.png", "failed.png"]


@pytest.mark.parametrize("bits", [1, 8])
def test_scores_equal_the_official_scorer_file_by_file(rendered_pairs: Path, tmp_path: Path, bits: int) -> None:
    official = pytest.importorskip("isic_challenge_scoring.segmentation")
    truths: dict[PurePath, Path] = {}
    for n, truth in enumerate(sorted((rendered_pairs / "masks").iterdir())):
        # The lesion moved by more and more: from equal to disjoint.
        name = PurePath(truth.name.replace("_Segmentation", ""))
        write_mask(np.roll(read_mask(truth), 6 * n, axis=1), tmp_path / name, bits=bits)
        truths[name] = truth
    ours = score_masks(tmp_path, truths).summary
    theirs = official.SegmentationScore.from_dir(rendered_pairs / "masks", tmp_path).macro_average
    assert ours["jaccard"] < 0.9
    for score in ("jaccard", "threshold_jaccard", "dice", "accuracy", "sensitivity", "specificity"):
        assert ours[score] == pytest.approx(theirs[score], abs=1e-12), score


@pytest.mark.parametrize("level", [1, 128])
def test_a_truth_that_would_be_read_as_empty_is_a_problem(tmp_path: Path, level: int) -> None:
    truth = tmp_path / "truth.png"
    write_mask(HALF, tmp_path / "a.png")
    Image.fromarray(HALF.astype(np.uint8) * level).save(truth)
    accuracy = score_masks(tmp_path, {PurePath("a.png"): truth})
    assert accuracy.per_image == {}
    assert f"truth.png: its highest value is {level}, and lesion is above 128" in accuracy.problems[0]


def test_a_truth_without_lesion_is_scored(tmp_path: Path) -> None:
    write_mask(HALF, tmp_path / "a.png")
    write_mask(np.zeros_like(HALF), tmp_path / "empty.png", bits=8)
    truth = tmp_path / "empty.png"
    found = score_masks(tmp_path, {PurePath("a.png"): truth, PurePath("empty.png"): truth})
    assert {name: s.jaccard for name, s in found.per_image.items()} == {"a.png": 0.0, "empty.png": 1.0}
    (note,) = found.truth_notes
    assert note == "2 masks have no lesion, such as a.png. There an empty prediction scores 1, and any other 0"
    assert Accuracy.from_dict(found.to_dict()) == found
    old = {k: v for k, v in found.to_dict().items() if k not in ("without_lesion", "corners")}
    assert Accuracy.from_dict(old).truth_notes == []


def test_a_truth_that_may_be_inverted_is_told(tmp_path: Path) -> None:
    hole = np.ones((6, 6), bool)
    hole[2:4, 2:4] = False
    names = [PurePath(f"{n}.png") for n in range(4)]
    for name in names:
        write_mask(~hole, tmp_path / name)
    write_mask(hole, tmp_path / "inverted.png")
    truths = {name: tmp_path / "inverted.png" for name in names}
    found = score_masks(tmp_path, truths)
    (note,) = found.truth_notes
    assert note.startswith("4 of 4 masks are lesion in all four corners: they may be inverted")
    # Once for all models.
    models = (dataclasses.replace(sample_model(name), accuracy=found) for name in ("a", "b"))
    assert sample_report(*models).warnings.count(note) == 1
    assert score_masks(tmp_path, {name: tmp_path / name for name in names}).truth_notes == []


def test_a_truth_that_is_no_mask_is_a_problem(tmp_path: Path) -> None:
    write_mask(HALF, tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"not a PNG")
    accuracy = score_masks(tmp_path, {PurePath("a.png"): tmp_path / "broken.png"})
    assert accuracy.per_image == {}
    assert "broken.png" in accuracy.problems[0]
    assert accuracy.to_dict()["summary"] is None
