"""`isicrt train` as a user calls it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from isicrt.cli.main import group
from isicrt.cli.plain_text import shell_word
from isicrt.engine.cuda_driver import Gpu

RECIPE = """
name: tiny
architecture: unet
decoder_channels: [8, 8, 8, 8]
input_size: 64
batch_size: 4
folds: 3
stages:
  - {name: tuned, epochs: 2, decoder_lr: 1.0e-3, encoder_lr: 1.0e-4}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return str(path)


@pytest.mark.parametrize(
    ("gpu", "options"),
    [(None, "--target onnx --fp32"), (Gpu("NVIDIA GeForce RTX 4090", "8.9", "13.0"), "--fp16")],
    ids=["CPU", "GPU"],
)
def test_the_next_command_is_for_what_is_here(
    rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, gpu: Gpu | None, options: str
) -> None:
    monkeypatch.setattr("isicrt.cli.train.find_gpu", lambda: gpu)
    out = tmp_path / "a run"
    arguments = ["train", "--data", str(rendered_pairs), "--recipe", recipe, "--out", str(out)]
    arguments += ["--encoder-weights", "none", "--device", "cpu", "--epochs", "1"]
    result = CliRunner().invoke(group, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.endswith(f"Next: isicrt build-engine {shell_word(out / 'best.pt')} {options}\n")


def test_trains_refuses_to_overwrite_and_resumes(rendered_pairs: Path, tmp_path: Path, recipe: str) -> None:
    out = tmp_path / "run"
    arguments = ["train", "--data", str(rendered_pairs), "--recipe", recipe, "--out", str(out)]
    arguments += ["--encoder-weights", "none", "--device", "cpu", "--epochs", "1"]
    result = CliRunner().invoke(group, arguments)
    assert result.exit_code == 0, result.output
    assert "validation: loss" in result.output
    assert "images/s" in result.output
    shown = CliRunner().invoke(group, ["models", "verify", str(out / "best.pt")])
    assert "the card: run, unet, 64 x 64, fp32" in shown.output  # as the run folder is called

    again = CliRunner().invoke(group, arguments)
    assert again.exit_code == 2
    assert "--resume auto" in again.output

    resumed = CliRunner().invoke(group, [*arguments, "--resume", "auto"])
    assert resumed.exit_code == 0, resumed.output
    assert "resuming after epoch 1" in resumed.output
    assert f"Best model: {out / 'best.pt'}" in resumed.output
    assert "is gone" not in resumed.output

    (out / "best.pt").unlink()
    resumed = CliRunner().invoke(group, [*arguments, "--resume", "auto"])
    assert f"{out / 'best.pt'} is gone and cannot come back: the best epoch to come takes its place" in resumed.output
    assert f"Last epoch: {out / 'last.pt'}\nNext: isicrt build-engine {out / 'last.pt'} " in resumed.output

    longer = CliRunner().invoke(group, [*arguments, "--epochs", "2", "--resume", "auto"])
    assert longer.exit_code == 2
    told = " ".join(longer.output.split())
    assert "recipe.stages.0.epochs: 1 then, 2 now (--epochs)" in told
    assert "A run cannot be lengthened or shortened: go on with --epochs 1, or begin another run" in told
    assert f"--start-from {out / 'last.pt'} and another --out" in told
    other = CliRunner().invoke(group, [*arguments, "--seed", "1", "--resume", "auto"])
    assert "seed: 0 then, 1 now (--seed)" in other.output
    assert "lengthened" not in other.output


def test_a_run_that_is_stopped_names_the_epoch_that_is_saved(
    rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    """Of three epochs the first is saved, and Ctrl-C comes in the third."""
    from isicrt.trainer import saving
    from isicrt.trainer.validation import ValidationSet

    calls, evaluate = iter(range(3)), ValidationSet.evaluate

    def stopped(*given: Any, **named: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*given, **named)

    monkeypatch.setattr(saving, "PATIENCE", 1e9)
    monkeypatch.setattr(ValidationSet, "evaluate", stopped)
    out = tmp_path / "run"
    arguments = ["train", "--data", str(rendered_pairs), "--recipe", recipe, "--out", str(out), "--epochs", "3"]
    result = CliRunner().invoke(group, [*arguments, "--encoder-weights", "none", "--device", "cpu"])
    assert len((out / "metrics.csv").read_text().splitlines()) == 3
    assert f"\nStopped. {out / 'last.pt'} is of epoch 1; --resume auto goes on after that.\n" in result.stderr


def test_masks_of_0_and_1_are_refused_before_anything_is_learned(
    rendered_pairs: Path, tmp_path: Path, recipe: str
) -> None:
    data = Path(shutil.copytree(rendered_pairs, tmp_path / "data"))
    for path in (data / "masks").iterdir():
        with Image.open(path) as mask:
            Image.fromarray(np.asarray(mask) // 255).save(path)
    out = tmp_path / "run"
    arguments = ["train", "--data", str(data), "--recipe", recipe, "--out", str(out), "--encoder-weights", "none"]
    result = CliRunner().invoke(group, arguments)
    assert result.exit_code == 1
    assert result.output.count("its highest value is 1, and lesion is above 128: multiply by 255") == 12
    assert not out.exists()


def test_images_of_both_halves_are_told(rendered_pairs: Path, tmp_path: Path, recipe: str) -> None:
    for half in ("train", "test"):
        shutil.copytree(rendered_pairs, tmp_path / "data" / half)
    arguments = ["train", "--data", str(tmp_path / "data"), "--recipe", recipe, "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(group, [*arguments, "--fold", "99"])  # which ends it then
    assert "12 images of test are in train too" in result.output
    assert "fold 99 does not exist" in result.output


def test_masks_without_lesion_are_told_and_a_run_without_validation_prints_none(
    rendered_pairs: Path, tmp_path: Path, recipe: str
) -> None:
    data = Path(shutil.copytree(rendered_pairs, tmp_path / "data"))
    name = os.fsdecode(b"l\xe9sion [v2]")  # neither text nor markup
    empty = data / "masks" / f"{name}.png"
    (data / "images" / "ISIC_0000003.jpg").rename(data / "images" / f"{name}.jpg")
    (data / "masks" / "ISIC_0000003_Segmentation.png").rename(empty)
    with Image.open(empty) as mask:
        Image.new("L", mask.size).save(empty)
    cut = data / "images" / "ISIC_0000004.jpg"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2] + b"\xff\xd9")
    (data / "images/ISIC_0000001.jpg").rename(data / "images/ISIC_0011082.jpg")  # a twin of a test image
    (data / "masks/ISIC_0000001_Segmentation.png").rename(data / "masks/ISIC_0011082_Segmentation.png")
    arguments = ["train", "--data", str(data), "--recipe", recipe, "--out", str(tmp_path / "run"), "--epochs", "1"]
    arguments += ["--encoder-weights", "none", "--device", "cpu", "--fold", "none"]
    result = CliRunner().invoke(group, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.count("1 of 12 is left out: it is a test image of ISIC 2016, or shows") == 1
    assert "11 training images" in result.output
    assert result.output.count(f"1 mask has no lesion: {data / 'masks'}/l\\udce9sion [v2].png") == 1
    assert result.output.count(f"1 image looks damaged, though decoders take it: {cut}") == 1
    assert "epoch   1 tuned" in result.output
    assert "nan" not in result.output
    assert "validation:" not in result.output


def test_teachers_are_counted_and_a_run_that_has_only_them_goes_on(
    rendered_pairs: Path, tmp_path: Path, recipe: str
) -> None:
    soft = tmp_path / "soft.yaml"
    soft.write_text(RECIPE.replace("name: tiny", "name: soft") + f"soft_labels: {{teacher: {recipe}, parts: 2}}\n")
    out = tmp_path / "run"
    arguments = ["train", "--data", str(rendered_pairs), "--recipe", str(soft), "--out", str(out), "--epochs", "1"]
    arguments += ["--encoder-weights", "none", "--device", "cpu"]
    refused = CliRunner().invoke(group, [*arguments, "--no-cache"])
    assert refused.exit_code == 2
    assert "soft labels are made for the pairs of the cache" in refused.output

    result = CliRunner().invoke(group, arguments)
    assert result.exit_code == 0, result.output
    told = ["teacher 1 of 2", "epoch   2", "teacher 2 of 2", "epoch   2", "2 teachers predict", "epoch   1"]
    place = 0
    for line in told:
        place = result.output.index(line, place) + 1

    (out / "last.pt").unlink()  # as if it had been stopped before the first epoch
    again = CliRunner().invoke(group, arguments)
    assert again.exit_code == 2
    assert "--resume auto" in again.output
    resumed = CliRunner().invoke(group, [*arguments, "--resume", "auto"])
    assert resumed.exit_code == 0, resumed.output
    assert "teacher 1" not in resumed.output
    assert (out / "last.pt").is_file()


def test_a_checkpoint_that_is_named_goes_on_where_it_is(
    rendered_pairs: Path, tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "--data", str(rendered_pairs), "--recipe", recipe, "--encoder-weights", "none"]
    arguments += ["--device", "cpu", "--epochs", "1"]
    for out in ([], ["--out", "mine"]):
        assert CliRunner().invoke(group, [*arguments, *out]).exit_code == 0
    default = (tmp_path / "runs" / "tiny-fold0" / "config.yaml").stat().st_mtime_ns
    resumed = CliRunner().invoke(group, [*arguments, "--resume", str(Path("mine") / "last.pt")])
    assert resumed.exit_code == 0, resumed.output
    assert f"Best model: {Path('mine') / 'best.pt'}" in resumed.output
    assert (tmp_path / "runs" / "tiny-fold0" / "config.yaml").stat().st_mtime_ns == default


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data", "nowhere"], 1, "nowhere: not a data set"),
        (["--recipe", "nothing"], 2, "no such recipe"),
        (["--epochs", "0"], 2, "0 is not in the range"),
        (["--model", "resnet"], 2, "'resnet' is not one of"),
        (["--fold", "half"], 2, "'half' is neither a number of a fold nor `none`"),
        (["--fold", "99"], 1, "fold 99 does not exist"),
        (["--encoder-weights", "missing.pth"], 1, "missing.pth: no such file"),
        (["--resume", "missing.pt"], 1, "missing.pt: no such checkpoint"),
    ],
)
def test_bad_input_is_named(
    rendered_pairs: Path, tmp_path: Path, recipe: str, arguments: list[str], code: int, message: str
) -> None:
    base = ["train", "--data", str(rendered_pairs), "--out", str(tmp_path / "run"), "--encoder-weights", "none"]
    base += ["--recipe", recipe]
    result = CliRunner().invoke(group, [*base, *arguments])
    assert result.exit_code == code, result.output
    assert message in result.output
    assert not (tmp_path / "run" / "last.pt").exists()


def test_without_data_it_says_which_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ISICRT_DATA", raising=False)
    result = CliRunner().invoke(group, ["train"])
    assert result.exit_code == 2
    assert "--data" in result.output
