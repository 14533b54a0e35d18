"""What `isicrt segment` says on the standard error of a run that went well: what was kept, left out or passed over."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import select
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from isicrt.cli.main import group
from isicrt.cli.segment_notices import idle_lines
from isicrt.engine.masks import encode_png
from isicrt.engine.outcome import KEPT, KEPT_OUTDATED
from tests.journal_lines import read_journal


@pytest.fixture
def here(rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with three images in ``in``."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name in "abc":
        shutil.copy(rendered_pairs / "images" / "ISIC_0000000.jpg", f"in/{name}.jpg")
    return tmp_path


@pytest.fixture
def segment(darkness_onnx: Path, here: Path):
    def segment(*arguments: object) -> Result:
        named = ["segment", *map(str, arguments), "--model", str(darkness_onnx), "--threads", "1"]
        return CliRunner().invoke(group, named)

    return segment


def test_corrected_masks_are_kept_and_said(segment) -> None:
    assert segment("in", "--out", "out").exit_code == 0
    with Image.open("out/a.png") as mask:
        drawn = encode_png(np.ones((mask.height, mask.width), bool))
    for name in "ab":
        Path(f"out/{name}.png").write_bytes(drawn)
    result = segment("in", "--out", "out", "--report", "r.json", "--json", "i.json")
    assert result.exit_code == 0
    kept, such = "2 masks are not those that isicrt wrote and were kept", ", such as out/a.png; --overwrite makes"
    assert result.stderr.splitlines() == [f"{kept}{such} them again"]
    assert "0 masks in out, 0 failed, 3 done before" in result.stdout
    report = json.loads(Path("r.json").read_text())
    assert (report["kept"], report["skipped"], report["done"]) == (2, 3, 0)
    images = {Path(entry["image"]).stem: entry for entry in json.loads(Path("i.json").read_text())["images"]}
    assert {name: entry["kept"] for name, entry in images.items()} == {"a": KEPT, "b": KEPT, "c": None}
    assert images["a"]["lesion_share"] == 1
    assert [line["kept"] for line in read_journal("out") if "end" in line] == [0, 2]

    result = segment("in", "--out", "out", "--threshold", "0.4", "--json", "i.json")
    assert f"{kept} (of 2 the model, the settings or the image are others now){such}" in result.stderr
    assert "1 masks in out, 0 failed, 2 done before" in result.stdout
    images = {Path(entry["image"]).stem: entry for entry in json.loads(Path("i.json").read_text())["images"]}
    assert images["a"]["kept"] == KEPT_OUTDATED
    assert Path("out/a.png").read_bytes() == drawn

    result = segment("in", "--out", "out", "--overwrite")
    assert (result.exit_code, result.stderr) == (0, "")
    assert Path("out/a.png").read_bytes() != drawn


def test_overlays_of_masks_that_were_there_are_said(segment) -> None:
    assert segment("in", "--out", "out").exit_code == 0
    Path("out/a.png").unlink()
    said = "2 overlays were drawn of masks that were there before\n"
    result = segment("in", "--out", "out", "--overlay", "drawn")
    assert (result.exit_code, result.stderr) == (0, said)
    assert "1 masks in out, 0 failed, 2 done before" in result.stdout
    result = segment("in", "--out", "out", "--overlay", "drawn")
    assert (result.exit_code, result.stderr) == (0, "")


def test_masks_and_overlays_of_earlier_runs_are_no_photographs(segment) -> None:
    assert segment("in", "--out", "in/masks", "--overlay", "in/overlays").exit_code == 0
    result = segment("in", "--out", "in/masks_again", "--report", "r.json")
    assert result.exit_code == 0
    assert "3 masks in in/masks_again" in result.stdout
    assert sorted(result.stderr.splitlines()) == [
        "left out in/masks: masks of an earlier run",
        "left out in/overlays: overlays of an earlier run",
    ]
    left_out = json.loads(Path("r.json").read_text())["left_out"]
    assert sorted(folder["holds"] for folder in left_out["folders"]) == ["masks", "overlays"]
    result = segment("in/masks", "--out", "out")
    assert result.exit_code == 1
    assert "in/masks: isicrt wrote masks there" in result.stderr


def test_formats_that_are_not_read_are_said(segment) -> None:
    for name in ("d.heic", "e.HEIC", "f.dcm"):
        Path("in", name).touch()
    for name in ("g.jfif", "h.jpe"):
        shutil.copy("in/a.jpg", f"in/{name}")
    result = segment("in", "--out", "out", "--report", "r.json", "--json", "i.json")
    assert result.exit_code == 0
    assert "5 masks in out, 0 failed" in result.stdout
    said = "passed over 3 files that isicrt does not read: 2 .heic, 1 .dcm; convert them to .png or .jpg"
    assert result.stderr.splitlines() == [said]
    assert json.loads(Path("r.json").read_text())["left_out"]["formats"] == {".dcm": 1, ".heic": 2}
    assert json.loads(Path("i.json").read_text())["summary"]["left_out"]["formats"] == {".dcm": 1, ".heic": 2}


def test_a_folder_that_cannot_be_read_is_a_failure(segment, monkeypatch: pytest.MonkeyPatch) -> None:
    read = os.scandir

    def scandir(path: str):
        if Path(path).name == "lost+found":
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(path)

    Path("in/lost+found").mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    for before in ("", "3 done before, "):
        result = segment("in", "--out", "out", "--report", "r.json")
        assert result.exit_code == 1
        assert "  in/lost+found: the folder cannot be read: Permission denied\n" in result.stderr
        assert f"{0 if before else 3} masks in out, 1 failed, {before}" in result.stdout
        report = json.loads(Path("r.json").read_text())
        assert (report["failed"], report["total"], report["not_reached"]) == (1, 4, 0)
        assert [unread["folder"] for unread in report["left_out"]["unread"]] == ["in/lost+found"]


@pytest.mark.parametrize("option", ["--report", "--json", "--csv"])
def test_a_dash_is_no_file(segment, option: str) -> None:
    result = segment("in", "--out", "out", option, "-")
    assert result.exit_code == 2
    assert f"{option} -: the standard output is /dev/stdout" in result.stderr
    assert not Path("-").exists()
    assert not Path("out").exists()


@pytest.mark.parametrize("option", ["--cpu-share", "--hardware-decoder-load"])
def test_a_share_for_the_cpu_of_what_only_the_cpu_does(segment, option: str) -> None:
    result = segment("in", "--out", "out", option, "0.5")
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        f"{option} does nothing here: no GPU decodes, and the CPU decodes every image"
    ]
    assert segment("in", "--out", "out", "--cpu-share", "0").stderr == ""


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        pytest.param({}, "", id="processes"),
        pytest.param({"overlay": True, "threads": 2}, "--processes does nothing here: overlays", id="overlay"),
        pytest.param({"overlay": True, "cpu_alone": False}, "--processes does nothing here: overlays", id="on_gpu"),
        pytest.param({"isolate": "always"}, "--processes does nothing here: with --isolate always", id="isolate"),
        pytest.param({"isolate": "always", "cpu_alone": False}, "", id="plan"),
        pytest.param({"isolate": "always", "processes": 0}, "", id="none"),
        pytest.param({"isolate": "always", "processes": None, "threads": 2}, "", id="the_default"),
        pytest.param({"threads": 2}, "--threads does nothing here but for what no process takes", id="threads"),
        pytest.param({"threads": 2, "cpu_alone": False}, "", id="threads_beside_a_gpu"),
    ],
)
@pytest.mark.skipif(not hasattr(select, "poll"), reason="has no such processes")
def test_options_that_change_nothing(asked: dict[str, Any], expected: str) -> None:
    usual = {"processes": 4, "threads": None, "isolate": "auto", "overlay": False, "cpu_alone": True}
    lines = list(idle_lines(**(usual | asked)))
    assert [line[: len(expected)] for line in lines] == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ""),
        (("--processes", 2, "--overlay", "drawn"), "--processes does nothing here: overlays"),
        (("--processes", 2, "--isolate", "always"), "--processes does nothing here: with --isolate always"),
    ],
)
def test_processes_that_there_are_not_are_said(segment, options: tuple[object, ...], expected: str) -> None:
    result = segment("in", "--out", "out", *options)
    assert result.exit_code == 0
    assert result.stderr.startswith(expected)
    assert result.stderr.count("\n") == bool(expected)


def test_more_processes_than_there_are_names_for(segment) -> None:
    result = segment("in", "--out", "out", "--processes", "256")
    assert result.exit_code == 2
    assert "0<=x<=255" in result.stderr
    assert not Path("out").exists()


def test_processes_where_one_that_hangs_cannot_be_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isicrt.engine.task_process.HAS_TIME_LIMIT", False)
    (line,) = idle_lines(processes=4, threads=2, isolate="auto", overlay=False, cpu_alone=True)
    assert line.startswith("--processes does nothing here: this system")


def test_a_clash_that_extensions_do_not_settle_is_not_told_what_was_said(segment) -> None:
    shutil.copy("in/a.jpg", "in/A.JPG")
    result = segment("in", "--out", "out", "--on-clash", "extension")
    assert result.exit_code == 1
    assert "or take --on-clash fail, which does the others: their extensions do not tell these apart." in result.stderr
    assert "see --on-clash" not in result.stderr
    assert "or see --on-clash (on_clash in Python)." in segment("in", "--out", "out").stderr
    result = segment("in", "--out", "out", "--on-clash", "fail")
    assert "2 masks in out, 2 failed" in result.stdout


def test_images_that_look_damaged_are_said(segment) -> None:
    whole = Path("in/a.jpg").read_bytes()
    for name in "defg":
        Path(f"in/{name}.jpg").write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")
    for before in ("", ", 7 done before"):
        result = segment("in", "--out", "out", "--csv", "r.csv", "--json", "i.json", "--report", "r.json")
        assert result.exit_code == 0
        assert f"0 failed{before}" in result.stdout
        assert (
            "4 images look damaged and may have a wrong mask: in/d.jpg, in/e.jpg, in/f.jpg, ... "
            "(the column note of --csv FILE says it of each)\n" in result.stderr
        )
        with open("r.csv", newline="") as file:
            rows = {Path(row["image"]).stem: row for row in csv.DictReader(file)}
        assert list(rows["a"])[-1] == "note"
        assert {name: bool(row["note"]) for name, row in rows.items()} == {n: n in "defg" for n in "abcdefg"}
        images = {Path(entry["image"]).stem: entry for entry in json.loads(Path("i.json").read_text())["images"]}
        assert images["d"]["note"] == rows["d"]["note"] == "damaged: Corrupt JPEG data: premature end of data segment"
        assert json.loads(Path("r.json").read_text())["damaged"] == 4


def test_images_that_a_viewer_turns_are_said(segment) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in "ac":
        with Image.open(f"in/{name}.jpg") as image:
            image.save(f"in/{name}.jpg", exif=exif)
    result = segment("in", "--out", "out", "--csv", "r.csv")
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "2 images have an EXIF orientation, such as in/a.jpg: masks have the stored pixel grid, a viewer that "
        "turns the image does not turn the mask (docs/data.md)"
    ]
    with open("r.csv", newline="") as file:
        assert [row["note"] for row in csv.DictReader(file)] == ["EXIF orientation 6", "", "EXIF orientation 6"]


def test_files_of_several_images_are_said(segment) -> None:
    with Image.open("in/a.jpg") as image:
        for name in ("d.tif", "e.webp", "f.png"):
            image.save(f"in/{name}", save_all=True, append_images=[image.rotate(90), image.rotate(180)])
        image.save("in/g.tif")
    for _ in range(2):
        result = segment("in", "--out", "out", "--csv", "r.csv", "--report", "r.json")
        assert result.exit_code == 0
        assert result.stderr.splitlines() == [
            "3 files hold several pages or frames, such as in/d.tif: only the first has a mask "
            "(the column note of --csv FILE says how many there are)"
        ]
        with open("r.csv", newline="") as file:
            notes = {Path(row["image"]).name: row["note"] for row in csv.DictReader(file) if row["note"]}
        several = {"d.tif": "first of 3 pages", "e.webp": "first of 3 frames", "f.png": "first of 3 frames"}
        assert notes == several
        assert json.loads(Path("r.json").read_text())["first_of_several"] == 3


def test_masks_without_lesion_are_said(segment) -> None:
    for name in "ab":
        Image.new("RGB", (64, 48), "white").save(f"in/{name}.jpg")
    for drawn in (False, False, True):
        if drawn:  # by somebody who knows
            with Image.open("out/c.png") as mask:
                Path("out/c.png").write_bytes(encode_png(np.zeros((mask.height, mask.width), bool)))
        result = segment("in", "--out", "out", "--report", "r.json")
        assert result.exit_code == 0
        assert result.stderr.splitlines()[0] == "2 masks have no lesion, such as out/a.png"
        assert len(result.stderr.splitlines()) == 1 + drawn
        assert json.loads(Path("r.json").read_text())["without_lesion"] == 2


def test_ground_truth_among_the_images_is_said(segment) -> None:
    for name in "abcd":
        Image.new("L", (64, 48), 255).save(f"in/{name}_Segmentation.png")
    result = segment("in", "in/a_Segmentation.png", "--out", "out")  # one of them is named twice
    assert "7 masks in out" in result.stdout
    said, *_ = result.stderr.splitlines()
    assert re.fullmatch(
        r"4 of the 7 images have the name of a ground truth, such as in/[a-d]_Segmentation\.png, and will be segmented "
        r"like photographs: name the folder of the photographs, or a pattern such as 'FOLDER/\*\*/\*\.jpg'",
        said,
    )
    assert "ground truth" not in segment("in/*.jpg", "--out", "out").stderr


@pytest.mark.parametrize(
    "truth",
    [
        "in/IMD002/IMD002_lesion.bmp",
        "in/IMD002/IMD002_Label3.bmp",
        "in/a_mask.png",
        "in/x_Segmentation.tif",
        "in/set/masks/d.png",
    ],
)
def test_ground_truth_of_other_data_sets_is_said(segment, truth: str) -> None:
    for folder in ("in/IMD002", "in/set/masks", "in/set/images", "in/masks"):
        Path(folder).mkdir(parents=True)
    shutil.copy("in/a.jpg", "in/masks/e.jpg")  # no folder of images is beside it
    shutil.copy("in/a.jpg", "in/set/images/d.jpg")
    Image.new("L", (64, 48), 255).save(truth)
    said = segment("in", "--out", "out").stderr.splitlines()[0]
    assert said.startswith(f"1 of the 6 images has the name of a ground truth, such as {truth}, and will be segmented")


def test_a_photograph_may_be_called_lesion(segment) -> None:
    Path("in/a.jpg").rename("in/good_lesion.jpg")
    assert "ground truth" not in segment("in", "--out", "out").stderr


def test_masks_that_would_lie_among_ground_truth_are_told_once(segment) -> None:
    Path("out").mkdir()
    Image.new("L", (64, 48), 255).save("out/a_Segmentation.png")
    assert segment("in", "--out", "out").stderr.splitlines() == [
        "out holds what looks like ground truth, such as a_Segmentation.png; the masks will lie beside it. Another "
        "--out keeps them apart"
    ]
    assert segment("in", "--out", "out").stderr == ""


def test_a_folder_that_cannot_be_made_is_an_error_and_no_traceback(segment) -> None:
    result = segment("in", "--out", "x" * 300)
    assert result.exit_code == 1
    assert "the folder cannot be made: File name too long" in result.stderr
