"""`isicrt data`: output and exit codes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from isicrt.benchmarks.rendered import render
from isicrt.cli.main import group
from isicrt.cli.plain_text import shell_word
from isicrt.trainer import download
from isicrt.trainer.download import ISIC2016, Archive


def isicrt(*arguments: str | Path) -> Result:
    return CliRunner().invoke(group, ["data", *map(str, arguments)])


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder served on 127.0.0.1 with four small archives in it, which stand in for the official ones."""
    folder = tmp_path / "site"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    archives = []
    for official in ISIC2016:
        zip_name = f"{official.folder}.zip"
        mask = official.folder.endswith("GroundTruth")
        with zipfile.ZipFile(folder / zip_name, "w") as file:
            for n in (1, 2) if "Training" in official.folder else (3,):
                name = f"ISIC_{n:07d}_Segmentation.png" if mask else f"ISIC_{n:07d}.jpg"
                with file.open(f"{official.folder}/{name}", "w") as target:
                    pixels = np.zeros((6, 8) if mask else (6, 8, 3), np.uint8)
                    Image.fromarray(pixels).save(target, "PNG" if mask else "JPEG")
        url = f"http://127.0.0.1:{server.server_port}/{zip_name}"
        md5 = hashlib.md5((folder / zip_name).read_bytes(), usedforsecurity=False).hexdigest()
        archives.append(Archive(official.folder, url, md5, 2 if "Training" in official.folder else 1))
    monkeypatch.setattr(download, "ISIC2016", tuple(archives))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder
        server.shutdown()
        thread.join()


def test_what_isic2016_brings_passes_check(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "ISIC 2016"
    result = isicrt("isic2016", "--out", out)
    assert result.exit_code == 0, result.output
    assert f"{out / 'ISBI2016_ISIC_Part1_Training_Data'}: 2 files" in result.stdout
    assert f"{out / 'ISBI2016_ISIC_Part1_Test_GroundTruth'}: 1 file\n" in result.stdout
    assert f"isicrt data check {shell_word(out)}" in result.stdout
    assert sorted(path.name for path in out.iterdir()) == sorted(archive.folder for archive in ISIC2016)

    result = isicrt("check", out)
    assert result.exit_code == 0, result.output
    assert "train: 2 pairs, 0 grey masks, SHA-256 " in result.stdout
    assert "test: 1 pair, 0 grey masks, SHA-256 " in result.stdout

    shutil.rmtree(site)  # nothing is fetched twice
    assert isicrt("isic2016", "--out", out).exit_code == 0


def test_isic2016_keeps_zips_when_asked(site: Path, tmp_path: Path) -> None:
    result = isicrt("isic2016", "--keep-zips", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "out").glob("*.zip"))) == 4


def test_isic2016_fails_with_a_reason(site: Path, tmp_path: Path) -> None:
    (site / "ISBI2016_ISIC_Part1_Test_Data.zip").unlink()
    result = isicrt("isic2016", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "HTTP 404" in result.output
    assert "ISBI2016_ISIC_Part1_Test_Data.zip" in result.output
    assert (tmp_path / "out" / "ISBI2016_ISIC_Part1_Training_Data").is_dir()  # what came before it stays


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["isic2016"], "--out"),
        (["check"], "FOLDER"),
        (["check", "no-such-folder"], "does not exist"),
        (["check", ".", "--split", "validation"], "validation"),
        (["isic2019"], "isic2019"),
    ],
)
def test_usage_errors(arguments: list[str], message: str) -> None:
    result = isicrt(*arguments)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(("split", "lines"), [("all", 1), ("train", 1), ("test", 1)])
def test_check_reports_one_plain_folder_once(split: str, lines: int, rendered_pairs: Path) -> None:
    result = isicrt("check", rendered_pairs, "--split", split)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("12 pairs") == lines
    assert result.stdout.startswith(f"{rendered_pairs}: 12 pairs, ")  # it is no split
    assert "train:" not in result.stdout


def test_check_looks_at_test_images_in_a_plain_folder(rendered_pairs: Path, tmp_path: Path) -> None:
    """Training would leave out all of them."""
    data = Path(shutil.copytree(rendered_pairs, tmp_path / "data"))
    for path in [*data.glob("*/*")]:
        if "ISIC_0000000" in path.name:
            path.rename(path.with_name(path.name.replace("ISIC_0000000", "ISIC_0000012")))
        else:
            path.unlink()
    assert f"{data}: 1 pair, " in isicrt("check", data).stdout
    result = isicrt("check", data, "--split", "train")
    assert f"{data}: 0 pairs, " in result.stdout
    assert "  1 of 1 is left out: it is a test image of ISIC 2016, or shows" in result.stdout


def test_check_names_images_that_look_damaged(rendered_pairs: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(rendered_pairs, tmp_path / "data"))
    image = min((data / "images").iterdir())
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2] + b"\xff\xd9")
    result = isicrt("check", data)
    assert result.exit_code == 0, result.output
    assert f"  1 image looks damaged, though decoders take it: {image}\n" in result.stdout


def test_check_refuses_masks_of_0_and_1_and_counts_those_without_lesion(rendered_pairs: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(rendered_pairs, tmp_path / "data"))
    masks = sorted((data / "masks").iterdir())
    for path in masks[:2]:
        with Image.open(path) as mask:
            Image.fromarray(np.asarray(mask) // 255).save(path)
    for path in masks[2:4]:
        with Image.open(path) as mask:
            Image.new("L", mask.size).save(path)
    result = isicrt("check", data)
    assert result.exit_code == 1
    wrong = "its highest value is 1, and lesion is above 128: multiply by 255"
    assert [line for line in result.stdout.splitlines() if wrong in line] == [f"  {p}: {wrong}" for p in masks[:2]]
    assert f"  2 masks have no lesion, such as {masks[2]}\n" in result.stdout
    assert f"{data}: 12 pairs, 0 grey masks" in result.stdout
    assert f"{data}: 2 problems" in result.stdout


def test_names_that_are_no_text_are_checked_and_printed(rendered_pairs: Path, tmp_path: Path) -> None:
    data, name = Path(shutil.copytree(rendered_pairs, tmp_path / "data")), os.fsdecode(b"l\xe9sion")
    image, mask = data / "images" / f"{name}.jpg", data / "masks" / f"{name}.png"
    (data / "images" / "ISIC_0000003.jpg").rename(image)
    (data / "masks" / "ISIC_0000003_Segmentation.png").rename(mask)
    with Image.open(mask) as found:
        Image.new("L", found.size).save(mask)
    result = isicrt("check", data)
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith(f"  1 mask has no lesion: {data}/masks/l\\udce9sion.png\n")
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2] + b"\xff\xd9")
    assert f"decoders take it: {data}/images/l\\udce9sion.jpg\n" in isicrt("check", data).stdout
    image.write_bytes(b"no JPEG")
    assert f"  {data}/images/l\\udce9sion.jpg: cannot be decoded" in isicrt("check", data).stdout


def test_audit_draws_and_prints_names_that_are_no_text(photographs: Path) -> None:
    images, sheet = photographs / "train" / "images", photographs / "sheet.png"
    (images / "ISIC_9900002.jpg").rename(images / os.fsdecode(b"l\xe9sion.jpg"))
    script = "from isicrt.cli.main import main; main()"
    arguments = ["data", "audit", "--data", photographs / "train", "--threads", "1", "--sheet", sheet]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # drawing such a name ended the process
    assert f"{images}/l\\udce9sion.jpg: " in done.stdout
    assert sheet.is_file()


def test_check_says_what_is_left_out(rendered_pairs: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        shutil.copytree(rendered_pairs, tmp_path / part)
        (tmp_path / part / "images/ISIC_0000001.jpg").rename(tmp_path / part / "images/ISIC_0011082.jpg")
        (tmp_path / part / "masks/ISIC_0000001_Segmentation.png").rename(
            tmp_path / part / "masks/ISIC_0011082_Segmentation.png"
        )
    result = isicrt("check", tmp_path)
    assert result.exit_code == 0, result.output
    train, left_out, test, copies = result.stdout.splitlines()
    assert train.startswith("train: 11 pairs, ")
    assert left_out == "  1 of 12 is left out: it is a test image of ISIC 2016, or shows a lesion of one (docs/data.md)"
    assert test.startswith("test: 12 pairs, ")
    assert copies.startswith("train and test: 11 images of test are copies of some in train, such as ")


def test_check_compares_the_halves_of_a_data_set(rendered_pairs: Path, tmp_path: Path) -> None:
    """A patient on both sides, and a copy under another name, are worth a line, as copies within a half are."""
    for part, dropped in (("train", "0123456"), ("test", "789")):
        shutil.copytree(rendered_pairs, tmp_path / part)
        for path in (tmp_path / part).glob("*/*"):
            if path.stem.removesuffix("_Segmentation")[-1] in dropped or "ISIC_000001" in path.name:
                path.unlink()
    assert "train and test" not in isicrt("check", tmp_path).stdout
    train, test = (tmp_path / part / "images" for part in ("train", "test"))
    (tmp_path / "groups.csv").write_text("image,group\nISIC_0000007,patient 7\nISIC_0000003,patient 7\n")
    shutil.copy(train / "ISIC_0000008.jpg", test / "other.jpg")
    shutil.copy(train.parent / "masks/ISIC_0000008_Segmentation.png", test.parent / "masks/other.png")
    result = isicrt("check", tmp_path)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-2:] == [
        f"train and test: 1 image of test is a copy of one in train, such as {test / 'other.jpg'} of "
        f"{train / 'ISIC_0000008.jpg'}: remove one of the two",
        f"train and test: 1 group is in train and in test, such as patient 7 with {train / 'ISIC_0000007.jpg'} and "
        f"{test / 'ISIC_0000003.jpg'}: move all images of a group to one side",
    ]


def test_check_lists_every_problem(rendered_pairs: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        shutil.copytree(rendered_pairs, tmp_path / part)
    masks = tmp_path / "train" / "masks"
    Image.new("L", (5, 4)).save(masks / "ISIC_0000001_Segmentation.png")
    Image.new("RGB", (90, 120), "red").save(masks / "ISIC_0000002_Segmentation.png")
    Image.new("L", (128, 96), 200).save(masks / "ISIC_0000003_Segmentation.png")
    (tmp_path / "train" / "images" / "ISIC_0000004.jpg").write_bytes(b"no JPEG")
    result = isicrt("check", tmp_path)
    assert result.exit_code == 1
    train, test = result.stdout.split("\ntest: ")
    assert train.startswith("train: 12 pairs, 1 grey mask, SHA-256 ")
    for name in ("ISIC_0000001", "ISIC_0000002", "ISIC_0000004"):
        assert name in train
    assert "train: 3 problems" in train
    assert test.startswith("12 pairs, 0 grey masks")
    assert "problems" not in test
    assert isicrt("check", tmp_path, "--split", "test").exit_code == 0


def test_check_goes_on_to_test_when_train_does_not_pair(rendered_pairs: Path, tmp_path: Path) -> None:
    shutil.copytree(rendered_pairs, tmp_path / "test")
    shutil.copytree(rendered_pairs, tmp_path / "train")
    (tmp_path / "train" / "masks" / "ISIC_0000005_Segmentation.png").unlink()
    result = isicrt("check", tmp_path)
    assert result.exit_code == 1
    assert "ISIC_0000005" in result.stdout
    assert "test: 12 pairs" in result.stdout


def test_check_of_a_folder_that_is_no_data_set(tmp_path: Path) -> None:
    result = isicrt("check", tmp_path)
    assert result.exit_code == 1
    assert result.stdout.count("isicrt data isic2016 --out") == 2


@pytest.mark.parametrize(("half", "other"), [("train", "test"), ("test", "train")])
def test_check_of_one_half(half: str, other: str, rendered_pairs: Path, tmp_path: Path) -> None:
    """Somebody's own training images are whole without a test, and nothing is to be downloaded among them."""
    shutil.copytree(rendered_pairs, tmp_path / half)
    result = isicrt("check", tmp_path)
    assert result.exit_code == 0, result.output
    assert f"{half}: 12 pairs, " in result.stdout
    assert f"{other}: {tmp_path}: has no {other} half, only {half}. It would be {other}/images/ and " in result.stdout
    assert "isic2016" not in result.stdout
    assert isicrt("check", tmp_path, "--split", other).exit_code == 1
    (tmp_path / other / "images").mkdir(parents=True)
    result = isicrt("check", tmp_path)
    assert result.exit_code == 1
    assert f"{other}: {tmp_path}: not a data set. Expected " in result.stdout
    assert "isic2016" not in result.stdout


def test_check_offers_the_download_where_only_a_half_of_it_is(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert isicrt("isic2016", "--out", out).exit_code == 0
    for folder in out.glob("*_Test_*"):
        shutil.rmtree(folder)
    (out / "ISBI2016_ISIC_Part1_Test_Data.zip.part").touch()
    result = isicrt("check", out)
    assert result.exit_code == 0, result.output
    assert f". Get it with: isicrt data isic2016 --out {out}\n" in result.stdout


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """``train``: a data set in which 1 and 2 are one lesion. ``test``: images alone; 3 is new, 4 is the lesion of 5."""
    images = {n: render(n, (200, 200))[0] for n in (1, 3, 5, 6)}
    images[2], images[4] = np.rot90(images[1]), np.rot90(images[5], 2)
    for part, numbers in (("train/images", (1, 2, 5, 6)), ("test", (3, 4))):
        (tmp_path / part).mkdir(parents=True)
        for n in numbers:
            Image.fromarray(images[n]).save(tmp_path / part / f"ISIC_990000{n}.jpg", quality=92)
    (tmp_path / "train" / "masks").mkdir()
    return tmp_path


def test_audit_finds_twins_among_training_images(photographs: Path) -> None:
    result = isicrt("audit", "--data", photographs / "train", "--threads", "1")
    assert result.exit_code == 0, result.output
    first, summary = result.stdout.splitlines()
    assert "ISIC_9900001.jpg" in first
    assert "ISIC_9900002.jpg" in first
    assert first.endswith("NOT kept in one fold")
    assert summary == "4 images: 1 pair of one lesion, 1 of them not known"
    rows = "image,group\nISIC_9900001,lesion 1\nISIC_9900002.jpg,lesion 1\n"
    (photographs / "train" / "groups.csv").write_text(rows)
    result = isicrt("audit", "--data", photographs / "train", "--threads", "1")
    assert result.stdout.splitlines()[0].endswith(", kept in one fold")
    assert "1 pair of one lesion, 0 of them not known" in result.stdout


def test_audit_says_that_there_is_nothing_to_draw(photographs: Path) -> None:
    (photographs / "train/images/ISIC_9900002.jpg").unlink()
    sheet = photographs / "sheet.png"
    result = isicrt("audit", "--data", photographs / "train", "--sheet", sheet)
    assert result.exit_code == 0, result.output
    assert f"{sheet}: not written, there is no pair to draw" in result.stdout
    assert not sheet.exists()


def test_audit_fails_on_a_leak_and_writes_what_it_found(photographs: Path) -> None:
    found, sheet = photographs / "found.json", photographs / "sheet.png"
    arguments = ("--data", photographs / "train", "--against", photographs / "test", "--json", found, "--sheet", sheet)
    sheet.write_bytes(b"an older one")
    (photographs / "older.png").hardlink_to(sheet)
    result = isicrt("audit", *arguments)
    assert result.exit_code == 1
    assert "NOT left out of training" in result.stdout
    assert result.stdout.endswith(
        "\nTake one image of each pair marked NOT left out away from its folder, with its mask.\n"
    )
    assert "4 images against 2: 1 pair of one lesion, 1 of them not known" in result.stdout
    record = json.loads(found.read_text())
    assert (record["images"], record["against"]) == (4, 2)
    (pair,) = record["pairs"]
    assert pair["a"].endswith("ISIC_9900005.jpg")
    assert pair["b"].endswith("ISIC_9900004.jpg")
    assert pair["magnification"] == pytest.approx(1, abs=0.02)
    assert abs(pair["rotation_degrees"]) == pytest.approx(180, abs=1)
    assert pair["correlation"] > 0.8
    assert not pair["known"]
    assert f"{sheet}: 1 pair\n" in result.stdout
    with Image.open(sheet) as picture:
        assert picture.size == (408, 216)
    assert (photographs / "older.png").read_bytes() == b"an older one"  # replaced whole, not written over


def test_audit_passes_what_training_leaves_out(photographs: Path) -> None:
    (photographs / "train/images/ISIC_9900005.jpg").rename(photographs / "train/images/ISIC_0011082.jpg")
    result = isicrt("audit", "--data", photographs / "train", "--against", photographs / "test")
    assert result.exit_code == 0, result.output
    assert "left out of training" in result.stdout
    assert "1 pair of one lesion, 0 of them not known" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "--data"),
        (["--data", "no-such-folder"], 2, "does not exist"),
        (["--data", "train", "--sheet", "sheet.gif"], 2, ".png"),
        (["--data", "train", "--json", "nowhere/found.json"], 2, "there is no folder nowhere"),
        (["--data", "train", "--json", "/proc/found.json"], 2, "cannot be written"),
        (["--data", "train", "--json", "x.png"], 2, "that is an image's name"),
        (["--data", "train", "--threads", "0"], 2, "--threads"),
        (["--data", "train/masks"], 1, "not a data set"),
        (["--data", "train", "--against", "train"], 1, "compared with itself"),
    ],
)
def test_audit_says_what_is_wrong(
    arguments: list[str], code: int, message: str, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photographs)
    result = isicrt("audit", *arguments)
    assert result.exit_code == code, result.output
    assert message in " ".join(result.output.split())
