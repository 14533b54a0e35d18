"""`isicrt evaluate`, its files and its exit codes."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from isicrt.cli.candidates import open_candidates
from isicrt.cli.main import group
from isicrt.engine import runtime
from tests.tiny_models import write_darkness_model


def _evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(group, ["evaluate", *map(str, arguments)])


def _words(result: Result) -> str:
    return " ".join(result.output.split())


@pytest.fixture
def data(rendered_pairs: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(rendered_pairs, tmp_path / "shots" / "test"))


@pytest.mark.parametrize("protocol", ["official", "report"])
def test_scores_of_one_model(darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path, protocol: str) -> None:
    files = ["--json", tmp_path / "r.json", "--csv", tmp_path / "r.csv"]
    result = _evaluate(darkness_onnx, "--data", rendered_pairs, "--protocol", protocol, *files)
    assert result.exit_code == 0, result.output
    assert f"Protocol {protocol}, {'/'.join(rendered_pairs.parts[-2:])}" in result.output
    assert "12/12" in result.output
    assert "must not be compared" in result.output
    assert ("in place of the report's 128" in result.output) is (protocol == "report")
    read = json.loads((tmp_path / "r.json").read_text())
    assert f"isicrt evaluate {darkness_onnx} --data " in read["command"]
    (model,) = read["models"]
    assert model["file"] == "/".join(darkness_onnx.parts[-2:])
    assert model["sha256"] == hashlib.sha256(darkness_onnx.read_bytes()).hexdigest()
    assert f"{model['summary']['jaccard']:.4f}" in result.output
    rows = list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))
    assert [row["image"] for row in rows] == [f"ISIC_{n:07d}" for n in range(12)]
    mean = sum(float(row["jaccard"]) for row in rows) / 12
    assert mean == pytest.approx(model["summary"]["jaccard"], abs=1e-12)


def test_several_models_are_compared_with_the_first(darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    write_darkness_model(tmp_path / "other.onnx", (32, 32), name="other")
    result = _evaluate(
        darkness_onnx, darkness_onnx, tmp_path / "other.onnx", "--data", rendered_pairs, "--json", tmp_path / "r.json"
    )
    assert result.exit_code == 0, result.output
    read = json.loads((tmp_path / "r.json").read_text())
    label = f"darkness ({'/'.join(darkness_onnx.parts[-2:])})"
    assert [m["label"] for m in read["models"]] == [f"{label} #1", f"{label} #2", "other"]
    same, other = read["differences"]
    assert (same["jaccard"], same["low"], same["high"], same["interval_leaves_out_0"]) == (0, 0, 0, False)
    assert other["low"] < other["jaccard"] < other["high"]
    assert other["jaccard"] == pytest.approx(
        read["models"][2]["summary"]["jaccard"] - read["models"][0]["summary"]["jaccard"]
    )
    assert f"difference from {label} #1" in _words(result)


@pytest.mark.parametrize(
    ("options", "threshold", "clean_up", "jaccard"),
    [
        ([], 0.5, ["keep_largest", "fill_holes"], 0.843),
        (["--no-clean"], 0.5, [], 0.615),  # hair and dark corners are dark too
        (["--threshold", "0.3", "--batch-size", "5", "--threads", "1"], 0.3, ["keep_largest", "fill_holes"], 0.173),
    ],
)
def test_settings_reach_the_scores(
    darkness_onnx: Path,
    rendered_pairs: Path,
    tmp_path: Path,
    options: list[str],
    threshold: float,
    clean_up: list[str],
    jaccard: float,
) -> None:
    result = _evaluate(darkness_onnx, "--data", rendered_pairs, "--json", tmp_path / "r.json", *options)
    assert result.exit_code == 0, result.output
    (model,) = json.loads((tmp_path / "r.json").read_text())["models"]
    assert (model["threshold"], model["clean_up"]) == (threshold, clean_up)
    assert f"threshold {threshold}" in result.output
    assert model["summary"]["jaccard"] == pytest.approx(jaccard, abs=0.02)


def test_a_bad_image_is_listed_and_the_rest_is_scored(darkness_onnx: Path, data: Path, tmp_path: Path) -> None:
    (data / "images" / "ISIC_0000003.jpg").write_bytes(b"\xff\xd8\xff torn")
    Image.new("L", (7, 5)).save(data / "masks" / "ISIC_0000004_Segmentation.png")
    result = _evaluate(darkness_onnx, "--data", data.parent, "--json", tmp_path / "r.json")
    assert result.exit_code == 1
    assert "10/12" in result.output
    assert "2 of 12 images could not be scored" in result.output
    assert "ISIC_0000003.jpg" in result.output
    assert "is 7 x 5 pixels" in result.output
    read = json.loads((tmp_path / "r.json").read_text())
    assert read["data"] == {"label": "shots/test", "split": "test", "images": 12, "left_out": 0}
    assert read["models"][0]["summary"]["images"] == 10
    assert read["models"][0]["problems"][0].startswith("test/images/ISIC_0000003.jpg: ")
    assert str(tmp_path) not in "".join(read["models"][0]["problems"])


@pytest.mark.parametrize(("inverted", "said"), [(6, False), (7, True)])
def test_truths_that_may_be_inverted_are_told(darkness_onnx: Path, data: Path, inverted: int, said: bool) -> None:
    for path in sorted((data / "masks").iterdir())[:inverted]:
        with Image.open(path) as mask:
            mask.convert("L").point(lambda level: 255 - level).save(path)
    told = f"{inverted} of 12 masks are lesion in all four corners: they may be inverted (lesion is white, 255)"
    result = _evaluate(darkness_onnx, "--data", data)
    assert result.exit_code == 0
    assert (told in _words(result)) == said
    check = CliRunner().invoke(group, ["data", "check", str(data)])
    assert check.exit_code == 0
    assert (f"  {told}\n" in check.output) == said


@pytest.mark.parametrize("protocol", ["official", "report"])
def test_a_truth_of_0_and_1_is_a_problem_and_one_without_lesion_is_told(
    darkness_onnx: Path, data: Path, tmp_path: Path, protocol: str
) -> None:
    wrong, empty, full = (data / "masks" / f"ISIC_000000{n}_Segmentation.png" for n in (3, 4, 5))
    with Image.open(wrong) as mask:
        mask.point(lambda level: level // 255).save(wrong)
    with Image.open(empty) as mask:
        Image.new("L", mask.size).save(empty)
    with Image.open(full) as mask:
        Image.new("L", mask.size, 255).save(full)
    files = ("--json", tmp_path / "r.json", "--csv", tmp_path / "r.csv")
    result = _evaluate(darkness_onnx, "--data", data, *files, "--protocol", protocol)
    assert result.exit_code == 1
    assert "11/12" in result.output
    message = "masks/ISIC_0000003_Segmentation.png: its highest value is 1, and lesion is above 128: multiply by 255"
    assert message in _words(result)
    assert "1 mask has no lesion: ISIC_0000004. There an empty prediction scores 1" in _words(result)
    assert "1 mask covers more than 95 % of its image: ISIC_0000005. That may be a large lesion" in _words(result)
    empty_cells = "," * (10 if protocol == "official" else 6)
    assert f'darkness,ISIC_0000003{empty_cells},"{message}"\n' in (tmp_path / "r.csv").read_text()
    (model,) = json.loads((tmp_path / "r.json").read_text())["models"]
    assert model["problems"] == [message]
    assert "ISIC_0000003" not in {row["image"] for row in model["per_image"]}


def test_names_that_no_terminal_can_show(darkness_onnx: Path, data: Path, tmp_path: Path) -> None:
    for name in (os.fsdecode(b"caf\xe9"), "bell\a"):
        shutil.copy(data / "images" / "ISIC_0000000.jpg", data / "images" / f"{name}.jpg")
        shutil.copy(data / "masks" / "ISIC_0000000_Segmentation.png", data / "masks" / f"{name}.png")
    (data / "images" / "bell\a.jpg").write_bytes(b"torn")
    Image.new("L", (90, 120)).save(data / "masks" / os.fsdecode(b"caf\xe9.png"))
    files = ["--csv", tmp_path / "r.csv", "--json", tmp_path / "r.json", "--figures", tmp_path / "f", "--cases", "13"]
    result = _evaluate(darkness_onnx, "--data", data, *files)
    assert result.exit_code == 1, result.output
    assert "13/14" in result.output
    assert "images/bell\\x07.jpg: " in result.output
    assert "1 mask has no lesion: caf\\udce9." in result.output
    assert b"\ndarkness,caf\xe9,120,90," in (tmp_path / "r.csv").read_bytes()
    assert json.loads((tmp_path / "r.json").read_text())["models"][0]["per_image"][-1]["image"] == "caf\udce9"
    assert (tmp_path / "f" / "worst.png").is_file()


def test_what_does_not_pair_is_listed(darkness_onnx: Path, data: Path) -> None:
    (data / "images" / "ISIC_0000003.jpg").unlink()
    (data / "masks" / "ISIC_0000005_Segmentation.png").unlink()
    result = _evaluate(darkness_onnx, "--data", data)
    assert result.exit_code == 1
    assert "ISIC_0000003_Segmentation.png: has no image" in _words(result)
    assert "ISIC_0000005.jpg: has no mask" in _words(result)


def test_training_images_that_are_left_out_are_told(darkness_onnx: Path, data: Path, tmp_path: Path) -> None:
    (data / "images/ISIC_0000001.jpg").rename(data / "images/ISIC_0011082.jpg")
    (data / "masks/ISIC_0000001_Segmentation.png").rename(data / "masks/ISIC_0011082_Segmentation.png")
    # A test image among training images is not learned from, and is scored.
    (data / "images/ISIC_0000002.jpg").rename(data / "images/ISIC_0000012.jpg")
    (data / "masks/ISIC_0000002_Segmentation.png").rename(data / "masks/ISIC_0000012_Segmentation.png")
    told = "1 of 12 is left out: it is a test image of ISIC 2016, or shows a lesion of one (docs/data.md)"
    for split, left_out in (("test", 0), ("train", 1)):
        result = _evaluate(darkness_onnx, "--data", data, "--split", split, "--json", tmp_path / "r.json")
        assert result.exit_code == 0, result.output
        assert (told in _words(result)) is bool(left_out)
        read = json.loads((tmp_path / "r.json").read_text())
        assert (read["data"]["images"], read["data"]["left_out"]) == (12 - left_out, left_out)
    for folder in ("images", "masks"):
        for path in (data / folder).glob("ISIC_0000*"):
            path.unlink()
    result = _evaluate(darkness_onnx, "--data", data, "--split", "train")
    assert result.exit_code == 1
    assert "no pair of image and mask to score. 1 of 1 is left out" in _words(result)


def test_training_images_are_named_as_such(darkness_onnx: Path, data: Path) -> None:
    data.rename(data.parent / "train")
    result = _evaluate(darkness_onnx, "--data", data.parent, "--split", "train")
    assert result.exit_code == 0, result.output
    assert "shots/train" in result.output
    assert "a model may have learned from these images" in result.output
    missing = _evaluate(darkness_onnx, "--data", data.parent)
    assert missing.exit_code == 1
    assert "test/images/" in missing.output


def test_figures(darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run, out = tmp_path / "run-50", tmp_path / "new" / "figures"
    run.mkdir()
    (run / "metrics.csv").write_text("epoch,train_loss,val_loss,val_jaccard\n1,0.5,0.4,0.7\n2,0.4,0.3,0.8\n")
    result = _evaluate(darkness_onnx, "--data", rendered_pairs, "--figures", out, "--cases", 2, "--runs", run)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == [
        "best.png",
        "median.png",
        "runs.png",
        "spread.png",
        "worst.png",
    ]


@pytest.mark.parametrize("folder", ["images", "masks", "images/new"])
def test_figures_do_not_go_among_the_data(darkness_onnx: Path, data: Path, folder: str) -> None:
    before = set(data.rglob("*"))
    result = _evaluate(darkness_onnx, "--data", data, "--figures", data / folder)
    assert (result.exit_code, "images or masks of the data set lie there" in result.stderr) == (2, True)
    assert set(data.rglob("*")) == before


_WITHOUT_EXTRAS = """
import sys
for name in ("torch", "torchvision", "yaml", "matplotlib", "onnx", "nvidia"):
    sys.modules[name] = None
sys.argv = ["isicrt", "evaluate", *sys.argv[1:]]
from isicrt.cli.main import main
main()
"""


def test_a_plain_installation_is_enough(darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    arguments = [str(darkness_onnx), "--data", str(rendered_pairs), "--figures", str(tmp_path), "--cases", "1"]
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_EXTRAS, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "12/12" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.png", "median.png", "worst.png"]
    assert "spread.png is left out: matplotlib is needed" in done.stderr


@pytest.mark.parametrize("name", ["best.pt", "BEST.PT"])
def test_a_checkpoint_needs_the_extra(rendered_pairs: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    arguments = [str(tmp_path / name), "--data", str(rendered_pairs)]
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_EXTRAS, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "pip install '.[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_hash_is_that_of_the_model_that_was_loaded(
    darkness_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(darkness_onnx, tmp_path / "model.onnx"))
    loaded = hashlib.sha256(path.read_bytes()).hexdigest()
    real = runtime.open_runtime

    def open_and_replace(file: Path, *, threads: int | None = None) -> runtime.Runtime:
        opened = real(file, threads=threads)
        write_darkness_model(path, (32, 32), name="another")
        return opened

    monkeypatch.setattr(runtime, "open_runtime", open_and_replace)
    with ExitStack() as stack:
        (candidate,) = open_candidates([str(path)], stack, 1)
    assert (candidate.label, candidate.sha256) == ("darkness", loaded)


@pytest.mark.parametrize("gpu", [False, True])
def test_a_checkpoint_is_scored(
    gpu: bool, rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    from isicrt.engine.card import ModelCard
    from isicrt.export import torch_runtime
    from isicrt.trainer import checkpoint
    from isicrt.trainer.checkpoint import load_model, save
    from isicrt.trainer.models import build_model

    torch.manual_seed(0)
    network = {"decoder_channels": [8, 8, 8, 8], "layout": "light"}
    card = ModelCard(name="fresh", architecture="unet", input_height=64, input_width=64, network=network)
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "best.pt"
    save(path, card=card, weights=build_model("unet", **network).state_dict())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch_runtime, "GPU", "cpu")  # in place of a GPU
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    def load_and_replace(*given: Any, **settings: Any) -> Any:
        loaded = load_model(*given, **settings)
        path.write_bytes(b"what a training run saves next")
        return loaded

    for module in (checkpoint, torch_runtime):
        monkeypatch.setattr(module, "load_model", load_and_replace)
    result = _evaluate(path, "--data", rendered_pairs, "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    assert ("Exporting run/best.pt to ONNX" in result.output) is not gpu
    (model,) = json.loads((tmp_path / "r.json").read_text())["models"]
    ran_on = "torch-cpu" if gpu else "onnxruntime-cpu"
    assert (model["label"], model["file"], model["runtime"]) == ("fresh", "run/best.pt", ran_on)
    assert model["sha256"] == sha256
    assert model["summary"]["images"] == 12


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.onnx"], 1, "none.onnx: no such model file"),
        (["--data", "nowhere"], 2, "does not exist"),
        (["--data", "."], 1, "not a data set"),
        (["--split", "validation"], 2, "'validation' is not one of"),
        (["--protocol", "fair"], 2, "'fair' is not one of"),
        (["--protocol", "report", "--threshold", "0.4"], 2, "has its own threshold"),
        (["--protocol", "report", "--no-clean"], 2, "has its own threshold (0.5) and no clean-up"),
        (["--threshold", "1"], 2, "not in the range"),
        (["--batch-size", "0"], 2, "not in the range"),
        (["--json", "no-folder/r.json"], 2, "there is no folder no-folder"),
        (["--json", "a", "--csv", "./a"], 2, "one would overwrite the other"),
        (["--runs", "."], 2, "--runs needs --figures"),
        (["--runs", ".", "--figures", "f"], 1, "metrics.csv: cannot be read"),
        (["--figures", "file"], 2, "is a file"),
        (["--figures", "file/f"], 2, "cannot be written: Not a directory"),
    ],
)
def test_bad_arguments(
    arguments: list[str],
    code: int,
    message: str,
    darkness_onnx: Path,
    rendered_pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    if "--data" not in arguments:
        arguments = ["--data", str(rendered_pairs), *arguments]
    result = _evaluate(*([] if "none.onnx" in arguments else [darkness_onnx]), *arguments)
    assert result.exit_code == code, result.output
    assert message in _words(result)
    assert "Traceback" not in result.output


def test_data_is_required() -> None:
    result = _evaluate()
    assert result.exit_code == 2
    assert "Missing option '--data'" in result.output


def test_a_place_that_cannot_be_written(darkness_onnx: Path, rendered_pairs: Path) -> None:
    result = _evaluate(darkness_onnx, "--data", rendered_pairs, "--json", "/proc/r.json")
    assert result.exit_code == 2
    assert "cannot be written" in result.output
    assert "Protocol" not in result.output, "it is found before anything is scored"


def test_help() -> None:
    result = _evaluate("--help")
    assert result.exit_code == 0
    for option in ("--data", "--split", "--protocol", "--csv", "--json", "--figures", "--runs", "--no-clean"):
        assert option in result.output
