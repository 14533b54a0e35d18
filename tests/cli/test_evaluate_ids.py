"""`isicrt evaluate --ids`: only some images of a data set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from isicrt.cli.main import group
from isicrt.trainer.dataset import checked_pairs, split_fold
from tests.tiny_models import write_darkness_model


def _evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(group, ["evaluate", *map(str, arguments)])


@pytest.fixture
def data(rendered_pairs: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(rendered_pairs, tmp_path / "shots" / "test"))


def test_only_the_images_of_a_file_are_scored(darkness_onnx: Path, data: Path, tmp_path: Path) -> None:
    names = sorted(path.stem for path in (data / "images").iterdir())
    mask = next((data / "masks").glob(f"{names[5]}*"))
    # Of two that training leaves out one is there.
    shutil.copy(data / "images" / f"{names[5]}.jpg", data / "images" / "ISIC_0001184.jpg")
    shutil.copy(mask, data / "masks" / mask.name.replace(names[5], "ISIC_0001184"))
    ids = tmp_path / "validation.txt"
    ids.write_bytes("\r\n".join([names[3], names[0], "ISIC_0001385", "ISIC_0001184"]).encode() + b"\ncaf\xe9\n")
    command = [darkness_onnx, "--data", data, "--split", "train", "--ids", ids, "--json", tmp_path / "r.json"]
    result = _evaluate(*command)
    assert result.exit_code == 0, result.output
    assert f"2 of its 5 ids are not in {data}, such as ISIC_0001385" in result.stderr
    assert "1 of its 5 ids show lesions of test images and are left out, such as ISIC_0001184" in result.stderr
    assert "2/2" in result.output
    said = json.loads((tmp_path / "r.json").read_text())
    assert said["data"]["label"] == "shots/test, 2 of 12 images (validation.txt)"
    assert [row["image"] for row in said["models"][0]["per_image"]] == [names[0], names[3]]
    ids.write_text("elsewhere")
    refused = _evaluate(*command)
    assert refused.exit_code == 1
    assert "names no image of" in refused.output


def test_test_images_that_are_in_train_too_are_told_where_all_are_scored(
    darkness_onnx: Path, data: Path, tmp_path: Path
) -> None:
    name = "ISIC_0000005"
    for folder in ("images", "masks"):
        (data.parent / "train" / folder).mkdir(parents=True)
        (file,) = (data / folder).glob(f"{name}*")
        shutil.copy(file, data.parent / "train" / folder)
    result = _evaluate(darkness_onnx, "--data", data.parent)
    assert result.exit_code == 0, result.output
    assert "1 image of test is in train too" in result.stderr
    (tmp_path / "ids.txt").write_text("ISIC_0000004")
    for other in (["--split", "train"], ["--ids", tmp_path / "ids.txt"]):
        result = _evaluate(darkness_onnx, "--data", data.parent, *other)
        assert result.exit_code == 0, result.output
        assert "in train too" not in result.output


@pytest.mark.parametrize(
    ("line", "image"),
    [
        ("ISIC_0000003.jpg", "ISIC_0000003"),
        ("isic_0000003", "ISIC_0000003"),
        ("data\\images\\ISIC_0000003.JPG", "ISIC_0000003"),
        ("shot 1.5.jpg", "shot 1.5"),
        ("shot 1.5", "shot 1.5"),
        ("left\\arm", "left\\arm"),
        (" leg ", " leg "),
    ],
)
def test_an_image_is_named_by_its_id_or_its_file(
    line: str, image: str, darkness_onnx: Path, data: Path, tmp_path: Path
) -> None:
    for name in ("shot 1.5", "left\\arm", " leg "):
        shutil.copy(data / "images" / "ISIC_0000000.jpg", data / "images" / f"{name}.jpg")
        shutil.copy(data / "masks" / "ISIC_0000000_Segmentation.png", data / "masks" / f"{name}_Segmentation.png")
    (tmp_path / "ids.txt").write_text(f"{line}\n")
    files = ["--ids", tmp_path / "ids.txt", "--json", tmp_path / "r.json"]
    result = _evaluate(darkness_onnx, "--data", data, *files)
    assert result.exit_code == 0, result.output
    (scored,) = json.loads((tmp_path / "r.json").read_text())["models"][0]["per_image"]
    assert scored["image"] == image


def test_the_fold_of_another_run_is_found_out(data: Path, tmp_path: Path) -> None:
    """As where a command of a cross-validation is copied and one of its numbers is not changed."""
    pairs, report = checked_pairs([data])
    for fold in (2, 3):
        learned, validated = split_fold(pairs, 4, fold)
        (tmp_path / f"{fold}.txt").write_text("".join(f"{pair.id}\n" for pair in validated))
        counts = {"training_images": len(learned), "validation_images": len(validated)}
        training = {"data": ["data/clinic"], "data_sha256": report.sha256, "fold": fold, "folds": 4, **counts}
        write_darkness_model(tmp_path / f"{fold}.onnx", name=f"clinic-{fold}", training=training)
    data.rename(data.parent / "train")
    of = ["--data", data.parent, "--split", "train", "--ids"]
    words = " ".join(_evaluate(tmp_path / "2.onnx", *of, tmp_path / "2.txt").output.split())
    assert "clinic-2 held these images out (clinic; fold 2 of 4)" in words
    assert "may have learned" not in words
    result = _evaluate(tmp_path / "2.onnx", tmp_path / "3.onnx", *of, tmp_path / "3.txt")
    words = " ".join(result.output.split())
    assert "clinic-2 LEARNED FROM 3 OF THESE 3 IMAGES (clinic; " in words
    assert "clinic-3 held these images out (clinic; fold 3 of 4)" in words
    assert "a model may have learned from these images" in words


def test_a_data_set_with_the_other_half_alone_says_how_to_score_it(darkness_onnx: Path, data: Path) -> None:
    data.rename(data.with_name("train"))
    refused = _evaluate(darkness_onnx, "--data", data.parent)
    assert refused.exit_code == 1
    assert "Score the other with --split train" in refused.output
    assert _evaluate(darkness_onnx, "--data", data.parent, "--split", "train").exit_code == 0


def test_no_result_replaces_the_list(darkness_onnx: Path, data: Path, tmp_path: Path) -> None:
    ids = tmp_path / "validation.txt"
    ids.write_text("ISIC_0000003")
    refused = _evaluate(darkness_onnx, "--data", data, "--ids", ids, "--csv", ids)
    assert refused.exit_code == 2
    assert "that is what is read here" in refused.output
    assert ids.read_text() == "ISIC_0000003"
