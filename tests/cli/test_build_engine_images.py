"""`isicrt build-engine`: the images that its gate compares on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from isicrt.cli.main import group
from isicrt.trainer.dataset import LEFT_OUT


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ISICRT_DATA", raising=False)


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(group, ["build-engine", *map(str, arguments)])


def test_the_data_set_of_the_environment_is_the_gate(
    darkness_onnx: Path, tmp_path: Path, rendered_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISICRT_DATA", str(rendered_pairs))
    result = _run(darkness_onnx, "--fp16", "--target", "onnx", "--parity-images", "5", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert f"Parity on 5 of 12 images of {'/'.join(rendered_pairs.parts[-2:])} ($ISICRT_DATA)" in result.stdout
    assert "5 images with ground truth" in result.stdout


@pytest.mark.parametrize("data", ["{}:", ":{}", ":"])
def test_an_empty_part_of_the_environments_data_is_not_the_current_folder(
    darkness_onnx: Path, tmp_path: Path, rendered_pairs: Path, monkeypatch: pytest.MonkeyPatch, data: str
) -> None:
    monkeypatch.setenv("ISICRT_DATA", data.replace(":", os.pathsep).format(rendered_pairs))
    monkeypatch.chdir(rendered_pairs)
    result = _run(darkness_onnx, "--fp16", "--target", "onnx", "--parity-images", "2", "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert "Invalid value for '$ISICRT_DATA': it is empty; the current folder is ." in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("half", "said"), [("test", "has no train half, only test"), ("", "has no mask in")])
def test_the_environments_data_are_named_as_such_where_they_will_not_do(
    darkness_onnx: Path, tmp_path: Path, rendered_pairs: Path, monkeypatch: pytest.MonkeyPatch, half: str, said: str
) -> None:
    shutil.copytree(rendered_pairs, tmp_path / "data" / half)
    (tmp_path / "data" / half / "masks" / "ISIC_0000004_Segmentation.png").unlink()
    monkeypatch.setenv("ISICRT_DATA", str(tmp_path / "data"))
    result = _run(darkness_onnx, "--target", "onnx", "--out", tmp_path / "out")
    assert (result.exit_code, said in result.stderr) == (1, True), result.output
    assert "Error: $ISICRT_DATA cannot be compared on. Name images with --images" in result.stderr


def test_data_that_training_leaves_out_are_no_gate_by_themselves(
    darkness_onnx: Path, tmp_path: Path, rendered_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in ("images/ISIC_0000000.jpg", "masks/ISIC_0000000_Segmentation.png"):
        copy = tmp_path / "data" / file.replace("ISIC_0000000", next(iter(LEFT_OUT)))
        copy.parent.mkdir(parents=True)
        shutil.copy(rendered_pairs / file, copy)
    monkeypatch.setenv("ISICRT_DATA", str(tmp_path / "data"))
    options = (darkness_onnx, "--fp16", "--target", "onnx", "--parity-images", "1", "--out", tmp_path / "out")
    result = _run(*options)
    assert result.exit_code == 1, result.output
    assert "data ($ISICRT_DATA): no pair to compare on. All are left out" in result.stderr
    assert not (tmp_path / "out").exists()
    result = _run(*options, "--images", tmp_path / "data" / "images")
    assert result.exit_code == 0, result.output


def test_a_broken_image_is_left_out_of_the_gate(darkness_onnx: Path, tmp_path: Path, rendered_pairs: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(rendered_pairs / "images" / "ISIC_0000000.jpg", images)
    (images / "ISIC_0000001.jpg").write_bytes(b"not an image")
    result = _run(darkness_onnx, "--fp16", "--target", "onnx", "--images", images, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "Left out of the comparison" in result.stderr
    assert "ISIC_0000001.jpg" in result.stderr


def test_what_is_no_photograph_is_not_compared_on(darkness_onnx: Path, tmp_path: Path, rendered_pairs: Path) -> None:
    options = ("--fp16", "--target", "onnx", "--parity-images", "2", "--out", tmp_path / "out")
    result = _run(darkness_onnx, *options, "--images", rendered_pairs)
    assert (result.exit_code, "12 of the 24 images have the name of a ground truth" in result.stderr) == (1, True)
    assert not (tmp_path / "out").exists()
    shutil.copytree(rendered_pairs / "images", tmp_path / "images")
    (tmp_path / "images" / "x.heic").touch()
    result = _run(darkness_onnx, *options, "--images", tmp_path / "images")
    assert (result.exit_code, "passed over 1 files" in result.stderr) == (0, True), result.output


def test_a_truth_of_another_size_is_left_out_with_its_image(
    darkness_onnx: Path, tmp_path: Path, rendered_pairs: Path
) -> None:
    shutil.copytree(rendered_pairs / "masks", tmp_path / "masks")
    mask = tmp_path / "masks" / "ISIC_0000001_Segmentation.png"
    with Image.open(mask) as whole:
        width, height = whole.size
        whole.crop((0, 0, width, height - 1)).save(mask)
    options = ("--fp16", "--target", "onnx", "--out", tmp_path / "out", "--masks", tmp_path / "masks")
    result = _run(darkness_onnx, *options, "--images", rendered_pairs / "images")
    assert result.exit_code == 0, result.output
    said = f"Left out of the comparison: {mask}: is {width} x {height - 1}, its image {width} x {height}\n"
    assert said in result.stderr
    assert "Parity on 11 of 12 images" in result.stdout
    assert "11 images with ground truth" in result.stdout


@pytest.mark.parametrize("damaged", [False, True])
def test_a_truth_of_few_images_is_compared_with(
    darkness_onnx: Path, tmp_path: Path, rendered_pairs: Path, damaged: bool
) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    for n in range(40):
        (images / f"ISIC_{n:07d}.jpg").hardlink_to(rendered_pairs / "images" / "ISIC_0000000.jpg")
    truth = masks / "ISIC_0000007_Segmentation.png"  # four images spread evenly would be 0, 13, 26 and 39
    truth.write_bytes(b"" if damaged else (rendered_pairs / "masks" / "ISIC_0000000_Segmentation.png").read_bytes())
    options = ("--fp16", "--target", "onnx", "--parity-images", "4", "--out", tmp_path / "out")
    result = _run(darkness_onnx, *options, "--images", images, "--masks", masks)
    if damaged:
        assert (result.exit_code, "masks: no ground truth that can be read" in result.stderr) == (1, True)
        assert "Left out of the comparison" in result.stderr
    else:
        assert (result.exit_code, "1 images with ground truth" in result.stdout) == (0, True), result.output
        assert "Parity on 4 of 40 images" in result.stdout
