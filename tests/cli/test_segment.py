"""`isicrt segment`: masks, messages and exit codes."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from isicrt import __version__
from isicrt.cli.main import group
from isicrt.engine import pipeline
from isicrt.engine.images import read_mask
from isicrt.engine.journal import JOURNAL_NAME
from isicrt.engine.lock import LOCK_NAME
from isicrt.engine.outcome import Outcome
from isicrt.engine.sources import Job


@pytest.fixture
def images(rendered_pairs: Path, tmp_path: Path) -> Path:
    """Three images, one of them in a folder below."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for n, place in enumerate((folder, folder, folder / "more")):
        shutil.copy(rendered_pairs / "images" / f"ISIC_{n:07d}.jpg", place)
    return folder


@pytest.fixture
def segment(darkness_onnx: Path):
    def segment(*arguments: object, model: bool = True) -> Result:
        options = ["--model", str(darkness_onnx)] if model else []
        return CliRunner().invoke(group, ["segment", *map(str, arguments), *options])

    return segment


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "isicrt.cli.main", *map(str, arguments)]


def test_a_folder_becomes_a_folder_of_masks(segment, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "masks"
    result = segment(images, "--out", out)
    assert result.exit_code == 0, result.output
    assert f"3 masks in {out}, 0 failed" in result.stdout
    assert "images/s" in result.stdout
    assert "MP/s (model darkness, onnxruntime-cpu)" in result.stdout
    assert sorted(p.name for p in out.glob(".*")) == [JOURNAL_NAME]
    found = sorted(p.relative_to(out) for p in out.rglob("*.png"))
    assert [str(p) for p in found] == ["ISIC_0000000.png", "ISIC_0000001.png", "more/ISIC_0000002.png"]
    for mask in found:
        with Image.open(out / mask) as opened, Image.open((images / mask).with_suffix(".jpg")) as image:
            assert (opened.mode, opened.size) == ("1", image.size)


def test_a_second_run_makes_again_what_is_damaged(segment, images: Path, tmp_path: Path) -> None:
    assert segment(images, "--out", images / "masks").exit_code == 0
    mask = images / "masks" / "ISIC_0000000.png"
    mask.write_bytes(b"old")
    result = segment(images, "--out", images / "masks")
    assert result.exit_code == 0
    assert f"1 masks in {images / 'masks'}, 0 failed, 2 done before" in result.stdout
    assert read_mask(mask).any()


@pytest.mark.parametrize("pattern", ["*.jpg", "**/*.jpg"])
def test_a_pattern(segment, images: Path, tmp_path: Path, pattern: str) -> None:
    result = segment(images / pattern, "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert f"{len(list(images.glob(pattern)))} masks" in result.stdout


def test_a_list(segment, images: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("images/ISIC_0000001.jpg\nimages/more/ISIC_0000002.jpg\n")
    result = segment(tmp_path / "list.txt", "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert (tmp_path / "out" / "more" / "ISIC_0000002.png").is_file()


def test_failures_are_listed_and_the_rest_is_done(segment, images: Path, tmp_path: Path) -> None:
    (images / "bad.jpg").write_bytes(b"rubbish")
    (images / "empty.png").touch()
    result = segment(images, "--out", tmp_path / "out", "--json", tmp_path / "report.json")
    assert result.exit_code == 1
    assert "2 of 5 images failed:" in result.stderr
    assert f"  {images / 'bad.jpg'}: cannot be decoded: it is not a JPEG" in result.stderr
    assert f"  {images / 'empty.png'}: the file is empty" in result.stderr
    assert "3 masks in" in result.stdout
    assert len(list((tmp_path / "out").rglob("*.png"))) == 3
    errors = {e["image"]: e["error"] for e in json.loads((tmp_path / "report.json").read_text())["images"]}
    assert {image for image, error in errors.items() if error} == {str(images / "bad.jpg"), str(images / "empty.png")}


def test_failures_that_are_not_tried_again_are_told_from_others(segment, images: Path, tmp_path: Path) -> None:
    untried = "Not tried again, because unchanged since they failed before: 2 of them (--retry-failed tries them)\n"
    for name in "ab":
        (images / f"{name}.jpg").write_bytes(b"rubbish")
    for arguments, said in (((), ""), ((), untried), (("--retry-failed",), "")):
        result = segment(images, "--out", tmp_path / "out", *arguments)
        assert result.exit_code == 1
        assert "2 of 5 images failed:" in result.stderr
        assert result.stderr.endswith(f"it is not a JPEG, PNG, BMP, TIFF or WebP image\n{said}")


@pytest.mark.parametrize(
    ("arguments", "again"),
    [
        ((), "goes on from here"),
        (("--overwrite",), "without --overwrite does what has no mask of these settings yet"),
    ],
)
def test_an_interrupted_run_says_how_to_go_on(
    segment, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], again: str
) -> None:
    def run_jobs(jobs: Sequence[Job], *_: object, on_outcome: Callable[[Outcome], None], **__: object) -> None:
        on_outcome(Outcome(jobs[0], None, (8, 8), 0.5, skipped=True))
        on_outcome(Outcome(jobs[1], None, (8, 8), 0.5))
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run_jobs", run_jobs)
    result = segment(images, "--out", tmp_path / "out", *arguments)
    assert f"Stopped after 2 of 3 images; the same command {again}.\n" in result.stderr


def test_a_row_for_each_image(segment, images: Path, tmp_path: Path) -> None:
    (images / "bad, and more.jpg").write_bytes(b"rubbish")
    out, table = tmp_path / "out", tmp_path / "rows.csv"
    assert segment(images, "--out", out, "--csv", table).exit_code == 1
    with table.open(newline="") as file:
        rows = {Path(row["image"]).name: row for row in csv.DictReader(file)}
    assert len(rows) == 4
    bad = rows.pop("bad, and more.jpg")
    assert (bad["status"], bad["mask"], bad["height"], bad["lesion_share"]) == ("failed", "", "", "")
    assert "cannot be decoded" in bad["error"]
    for row in rows.values():
        mask = np.asarray(Image.open(row["mask"]))
        assert (row["status"], row["kept"], row["error"]) == ("done", "", "")
        assert (int(row["height"]), int(row["width"])) == mask.shape
        assert float(row["lesion_share"]) == pytest.approx(np.count_nonzero(mask) / mask.size, abs=1e-6)
        assert 0.5 < float(row["confidence"]) <= 1
    # Again: what was done before is in the table too, and the one that fails again.
    first = [line.replace(",done,", ",skipped,") for line in table.read_text().splitlines()]
    assert segment(images, "--out", out, "--csv", table).exit_code == 1
    assert sorted(table.read_text().splitlines()) == sorted(first)


def test_two_lists_in_one_file(segment, images: Path, tmp_path: Path) -> None:
    result = segment(images, "--out", tmp_path / "out", "--json", tmp_path / "r", "--csv", tmp_path / "r")
    assert result.exit_code == 2
    assert "--json and --csv: both are" in result.stderr
    assert not (tmp_path / "out").exists()


def test_many_failures_are_cut(segment, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for n in range(23):
        (tmp_path / "in" / f"{n}.jpg").touch()
    result = segment(tmp_path / "in", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.count("the file is empty") == 20
    assert "... and 3 more (--csv FILE or --json FILE lists all)" in result.stderr


def test_names_cannot_steer_the_terminal(segment, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a\x1b[31m\n.jpg").touch()
    (tmp_path / "in" / os.fsdecode(b"\xff.jpg")).touch()
    result = segment(tmp_path / "in", "--out", tmp_path / "out", "--json", tmp_path / "r.json")
    assert result.exit_code == 1
    assert r"a\x1b[31m\n.jpg: the file is empty" in result.stderr
    assert r"\udcff.jpg: the file is empty" in result.stderr
    assert "\x1b" not in result.output
    assert len(json.loads((tmp_path / "r.json").read_text())["images"]) == 2


def test_the_report(segment, images: Path, tmp_path: Path, darkness_onnx: Path) -> None:
    report = tmp_path / "report.json"
    result = segment(images, "--out", tmp_path / "out", "--json", report, "--threshold", "0.4", "--batch-size", "2")
    assert result.exit_code == 0
    data = json.loads(report.read_text())
    assert data["settings"] == {
        "images": [str(images)],
        "out": str(tmp_path / "out"),
        "batch_size": 2,
        "threshold": 0.4,
        "threads": None,
        "decode": "cpu",
        "mask_bits": 1,
        "overlay": None,
    }
    assert data["model"]["name"] == "darkness"
    assert data["model"]["sha256"] == hashlib.sha256(darkness_onnx.read_bytes()).hexdigest()
    assert data["versions"]["isicrt"] == __version__
    assert {"python", "numpy", "onnxruntime"} <= set(data["versions"])
    assert data["summary"]["images"] == 3
    assert data["summary"]["failed"] == 0
    assert data["summary"]["interrupted"] is False
    assert set(data["summary"]["stage_seconds"]) == {"decode", "infer", "restore", "write"}
    assert len(data["images"]) == 3
    for entry in data["images"]:
        mask = read_mask(entry["mask"])
        assert mask.shape == (entry["height"], entry["width"])
        assert entry["lesion_share"] == pytest.approx(mask.mean(), abs=1e-6)
        assert 0.5 < entry["confidence"] <= 1
        assert entry["error"] is None
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_options_reach_the_masks(segment, images: Path, tmp_path: Path) -> None:
    assert segment(images / "ISIC_0000000.jpg", "--out", tmp_path / "plain").exit_code == 0
    options = ("--threshold", "0.95", "--mask-bits", "8", "--threads", "1", "--overlay", tmp_path / "drawn")
    result = segment(images / "ISIC_0000000.jpg", "--out", tmp_path / "out", *options)
    assert result.exit_code == 0
    plain = read_mask(tmp_path / "plain" / "ISIC_0000000.png")
    with Image.open(tmp_path / "out" / "ISIC_0000000.png") as mask:
        assert mask.mode == "L"
        assert np.count_nonzero(mask) < np.count_nonzero(plain) / 4
    with Image.open(tmp_path / "drawn" / "ISIC_0000000.jpg") as overlay:
        assert overlay.size == (90, 120)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        pytest.param([], 2, "Missing argument", id="nothing"),
        pytest.param(["IN"], 2, "Missing option '--out'", id="no_out"),
        pytest.param(["IN", "--out", "OUT", "--threshold", "0"], 2, "'--threshold'", id="threshold_0"),
        pytest.param(["IN", "--out", "OUT", "--threshold", "1"], 2, "'--threshold'", id="threshold_1"),
        pytest.param(["IN", "--out", "OUT", "--threshold", "nan"], 2, "hreshold", id="threshold_nan"),
        pytest.param(["IN", "--out", "OUT", "--threshold", "x"], 2, "'--threshold'", id="threshold_x"),
        pytest.param(["IN", "--out", "OUT", "--batch-size", "0"], 2, "'--batch-size'", id="batch_0"),
        pytest.param(["IN", "--out", "OUT", "--mask-bits", "2"], 2, "'--mask-bits'", id="bits_2"),
        pytest.param(["IN", "--out", "FILE"], 2, "'--out'", id="out_is_a_file"),
        pytest.param(["IN", "--out", "OUT", "--overlay", "OUT"], 2, "different folders", id="overlay_is_out"),
        pytest.param(["IN", "--out", "OUT", "--json", "NONE/r.json"], 2, "--json", id="report_nowhere"),
        pytest.param(
            ["IN", "--out", "OUT", "--on-error", "fail", "--max-failures", "10"], 2, "leave --max", id="two_limits"
        ),
        pytest.param(["NONE", "--out", "OUT"], 1, "no such file or folder", id="no_images"),
        pytest.param(["EMPTY", "--out", "OUT"], 1, "no image found", id="empty_folder"),
        pytest.param(["IN", "--out", "IN"], 1, "taken for images next time", id="out_is_in"),
        pytest.param(["IN", "--out", "FILE/OUT"], 1, "cannot be made", id="out_below_a_file"),
        pytest.param(["IN", "IN/more/../ISIC_0000000.png", "--out", "OUT"], 1, "more than one image", id="clash"),
    ],
)
def test_bad_usage(segment, images: Path, tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "FILE").touch()
    if "IN/more/../ISIC_0000000.png" in arguments:
        (images / "ISIC_0000000.png").touch()
    names = {"IN": images, **{name: tmp_path / name for name in ("OUT", "NONE", "EMPTY", "FILE")}}
    paths = [str(names[a.split("/")[0]] / a.partition("/")[2]) if a.split("/")[0] in names else a for a in arguments]
    result = segment(*paths)
    assert result.exit_code == code
    assert message in result.output
    assert "Traceback" not in result.output
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_unknown_model(images: Path, tmp_path: Path, segment) -> None:
    result = segment(images, "--out", tmp_path / "out", "--model", "nobody", model=False)
    assert result.exit_code == 1
    assert "nobody: no such model file, and no shipped model has that name" in result.output
    assert not (tmp_path / "out").exists()


def test_a_pipe_for_output_gets_no_bar(images: Path, tmp_path: Path, darkness_onnx: Path) -> None:
    command = _command("segment", images, "--out", tmp_path / "out", "--model", darkness_onnx)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("3 masks in")
    assert done.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT is not sent this way on Windows")
def test_ctrl_c_leaves_whole_masks_and_says_130(rendered_pairs: Path, tmp_path: Path, darkness_onnx: Path) -> None:
    originals = sorted((rendered_pairs / "images").iterdir())
    (tmp_path / "in").mkdir()
    for n in range(5_000):
        (tmp_path / "in" / f"{n}.jpg").symlink_to(originals[n % len(originals)])
    out, report = tmp_path / "out", tmp_path / "report.json"
    command = _command("segment", tmp_path / "in", "--out", out, "--model", darkness_onnx, "--json", report)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (out.is_dir() and any(out.glob("*.png"))):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert "of 5000 images" in stderr
    assert "Interrupted." in stderr
    assert "Traceback" not in stderr
    assert not list(out.glob("*.tmp"))
    masks = list(out.glob("*.png"))
    assert 0 < len(masks) < 5_000
    for mask in masks[:200]:
        assert read_mask(mask).shape in {(96, 128), (120, 90)}
    assert {path.name for path in out.iterdir() if path not in masks} <= {JOURNAL_NAME, LOCK_NAME}
    data = json.loads(report.read_text())
    assert data["summary"]["interrupted"] is True
    assert data["summary"]["images"] == len(data["images"]) <= len(masks)


def test_real_images(real_data: Path, segment, tmp_path: Path) -> None:
    photographs = sorted((real_data / "fullres" / "images").glob("*.jpg"))[:4]
    result = segment(*photographs, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for photograph in photographs:
        with Image.open(photograph) as image, Image.open(tmp_path / "out" / f"{photograph.stem}.png") as mask:
            assert mask.size == image.size
