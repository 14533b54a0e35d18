"""`isicrt segment` in processes of its own: killed, interrupted, with a full disk, twice at a time."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from isicrt.cli.main import group
from isicrt.engine.images import read_mask
from isicrt.engine.journal import JOURNAL_NAME
from isicrt.engine.lock import LOCK_NAME, FolderLock
from tests.journal_lines import read_journal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")


def _folder_of(originals: Path, folder: Path, count: int) -> Path:
    files = sorted((originals / "images").iterdir())
    folder.mkdir()
    for n in range(count):
        (folder / f"{n:05d}.jpg").symlink_to(files[n % len(files)])
    return folder


@pytest.fixture
def images(rendered_pairs: Path, tmp_path: Path) -> Path:
    """60 links and a damaged image."""
    folder = _folder_of(rendered_pairs, tmp_path / "in", 60)
    (folder / "bad.jpg").write_bytes(b"bad")
    return folder


def _command(images: Path, out: Path, model: Path, *options: object) -> list[str]:
    arguments = ["segment", images, "--out", out, "--model", model, "--threads", "1", "--batch-size", "4", *options]
    return [sys.executable, "-m", "isicrt.cli.main", *map(str, arguments)]


def _invoke(images: Path, out: Path, model: Path, *options: object) -> Result:
    return CliRunner().invoke(group, _command(images, out, model, *options)[3:])


def _check_whole(out: Path) -> set[str]:
    """Every mask in a folder is whole and of the right size, and every line about one is true. Names of masks."""
    masks = {path.name for path in out.glob("*.png")}
    for name in masks:
        assert read_mask(out / name).shape in {(96, 128), (120, 90)}
    return masks


def _kill_and_resume(images: Path, out: Path, model: Path, moments: list[float]) -> None:
    journal = out / JOURNAL_NAME
    for n, moment in enumerate(moments):
        # Every other kill counts from the first images on, the others from the run's first line.
        seen = (journal.stat().st_size if journal.is_file() else 0) + (1500 if n % 2 else 0)
        with subprocess.Popen(_command(images, out, model), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
            while run.poll() is None and (journal.stat().st_size if journal.is_file() else 0) <= seen:
                time.sleep(0.002)
            time.sleep(moment)
            run.kill()
            stderr = run.communicate()[1]
        assert b"Traceback" not in stderr
        masks = _check_whole(out)
        done = {line["mask"] for line in read_journal(out) if line.get("status") == "done"}
        assert done <= masks
    result = _invoke(images, out, model)
    assert result.exit_code == 1
    assert "1 failed" in result.stdout
    assert len(_check_whole(out)) == len(list(images.iterdir())) - 1
    assert not list(out.rglob("*.tmp"))
    again = _invoke(images, out, model)
    assert f"0 masks in {out}, 1 failed, {len(list(images.iterdir())) - 1} done before" in again.stdout


def test_a_kill_at_any_moment_loses_nothing(images: Path, tmp_path: Path, darkness_onnx: Path) -> None:
    rng = random.Random(1)
    _kill_and_resume(images, tmp_path / "out", darkness_onnx, [rng.random() ** 2 * 0.2 for _ in range(8)])


@pytest.mark.nightly
def test_a_hundred_kills_lose_nothing(rendered_pairs: Path, tmp_path: Path, darkness_onnx: Path) -> None:
    folder = _folder_of(rendered_pairs, tmp_path / "in", 4000)
    (folder / "bad.jpg").write_bytes(b"bad")
    rng = random.Random(2)
    _kill_and_resume(folder, tmp_path / "out", darkness_onnx, [rng.random() * 0.4 for _ in range(100)])


def _limited(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_file_size_limit_stops_the_run_and_leaves_the_journal_whole(
    images: Path, tmp_path: Path, darkness_onnx: Path
) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        _command(images, out, darkness_onnx, "--report", tmp_path / "r.json"),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: _limited(8_000),
    )
    assert done.returncode == 1
    assert "cannot be written any more: File too large" in done.stderr
    assert "ulimit -f" in done.stderr
    assert "goes on where this one stopped" in done.stderr
    assert "Traceback" not in done.stderr
    assert (out / JOURNAL_NAME).read_bytes().endswith(b"\n")
    masks = _check_whole(out)
    assert 0 < len(masks) < 60
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["status"], report["exit_code"]) == ("stopped", 1)
    assert report["done"] + report["failed"] + report["skipped"] + report["not_reached"] == 61
    # The mask whose line had no room any more is made again.
    done_before = {line["mask"] for line in read_journal(out) if line.get("status") == "done"}
    assert done_before <= masks
    again = _invoke(images, out, darkness_onnx)
    assert f"{60 - len(done_before)} masks in {out}, 1 failed, {len(done_before)} done before" in again.stdout
    assert len(_check_whole(out)) == 60


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 200 KiB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=204800", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_the_run_and_room_finishes_it(images: Path, small_disk: Path, darkness_onnx: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(120_000))
    out = small_disk / "out"
    result = _invoke(images, out, darkness_onnx, "--mask-bits", "8")
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert "Make room and run the same command again" in result.stderr
    assert len(_check_whole(out)) < 60
    assert not list(out.rglob("*.tmp"))
    (small_disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert "1 failed" in _invoke(images, out, darkness_onnx, "--mask-bits", "8").stdout
    assert len(_check_whole(out)) == 60


def test_a_read_only_disk_is_found_out_before_an_image_is_read(
    images: Path, small_disk: Path, darkness_onnx: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for out in (small_disk, small_disk / "out"):
        result = _invoke(images, out, darkness_onnx)
        assert result.exit_code == 1
        assert "Read-only file system" in result.stderr or "cannot be written" in result.stderr
        assert "Traceback" not in result.output


def test_a_folder_that_vanishes_stops_the_run(rendered_pairs: Path, tmp_path: Path, darkness_onnx: Path) -> None:
    folder, out = _folder_of(rendered_pairs, tmp_path / "in", 3000), tmp_path / "out"
    command = _command(folder, out, darkness_onnx)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        while run.poll() is None and not (out.is_dir() and any(out.glob("*.png"))):
            time.sleep(0.01)
        out.rename(tmp_path / "lost")
        _, stderr = run.communicate(timeout=120)
    assert run.returncode == 1
    assert "No such file or directory" in stderr
    assert "Traceback" not in stderr
    assert not out.exists()
    assert 0 < len(_check_whole(tmp_path / "lost")) < 3000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_and_the_next_run_finishes(
    rendered_pairs: Path, tmp_path: Path, darkness_onnx: Path, number: signal.Signals
) -> None:
    folder, out = _folder_of(rendered_pairs, tmp_path / "in", 1500), tmp_path / "out"
    command = _command(folder, out, darkness_onnx, "--report", tmp_path / "r.json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        while run.poll() is None and not (out.is_dir() and any(out.glob("*.png"))):
            time.sleep(0.01)
        run.send_signal(number)
        _, stderr = run.communicate(timeout=60)
    assert run.returncode == 130, stderr
    report = json.loads((tmp_path / "r.json").read_text())
    done = [line for line in read_journal(out) if line.get("status") == "done"]
    assert report["status"] == "interrupted"
    assert report["done"] == len(done) == len(_check_whole(out)) < 1500
    assert report["not_reached"] == 1500 - report["done"]
    assert f"Stopped after {len(done)} of 1500 images; the same command goes on from here.\n" in stderr
    result = _invoke(folder, out, darkness_onnx)
    assert result.exit_code == 0
    assert f"{1500 - len(done)} masks in {out}, 0 failed, {len(done)} done before" in result.stdout


def test_two_runs_on_one_folder(images: Path, tmp_path: Path, darkness_onnx: Path) -> None:
    (tmp_path / "out").mkdir()
    lock = FolderLock(tmp_path / "out")
    result = _invoke(images, tmp_path / "out", darkness_onnx)
    lock.release()
    assert result.exit_code == 1
    assert f"another run of isicrt is writing there (process {os.getpid()} on " in result.stderr
    assert not list((tmp_path / "out").glob("*.png"))
    assert _invoke(images, tmp_path / "out", darkness_onnx).exit_code == 1
    assert not (tmp_path / "out" / LOCK_NAME).exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        pytest.param(["--on-error", "fail"], 1, "at most 0 may", id="on_error_fail"),
        pytest.param(["--max-failures", "0"], 1, "at most 0 may", id="max_failures_0"),
        pytest.param(["--max-failures", "1"], 1, "60 masks in", id="max_failures_1"),
        pytest.param(["--max-megapixels", "0.001"], 1, "is more than 0.001 megapixels", id="max_megapixels"),
        pytest.param(["--isolate", "never", "--fsync", "always"], 1, "60 masks in", id="never_isolated"),
        pytest.param(["--max-megapixels", "nan"], 2, "not a number", id="megapixels_nan"),
        pytest.param(["--decode-timeout", "0"], 2, "--decode-timeout", id="timeout_0"),
        pytest.param(["--report", "ABSENT/r.json"], 2, "--report", id="report_nowhere"),
        pytest.param(["--overlay", "FILE/x"], 1, "cannot be made", id="overlay_below_a_file"),
        pytest.param(["--overlay", ""], 2, "it is empty", id="overlay_empty"),
        pytest.param(["--json", ""], 2, "it is empty", id="json_empty"),
        pytest.param([""], 2, "it is empty", id="images_empty"),
    ],
)
def test_options(
    images: Path, tmp_path: Path, darkness_onnx: Path, options: list[str], code: int, message: str
) -> None:
    (tmp_path / "FILE").touch()
    named = [str(tmp_path / option) if option.startswith(("ABSENT", "FILE")) else option for option in options]
    result = _invoke(images, tmp_path / "out", darkness_onnx, *named)
    assert result.exit_code == code, result.output
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("rule", "code", "masks"),
    [
        ("refuse", 1, set()),
        ("fail", 1, {"b.png"}),
        ("extension", 0, {"a.jpg.png", "a.png.png", "b.png"}),
    ],
)
def test_clashes(
    rendered_pairs: Path, tmp_path: Path, darkness_onnx: Path, rule: str, code: int, masks: set[str]
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "a.png", "b.jpg"):
        shutil.copy(rendered_pairs / "images" / "ISIC_0000000.jpg", tmp_path / "in" / name)
    result = _invoke(tmp_path / "in", tmp_path / "out", darkness_onnx, "--on-clash", rule)
    assert result.exit_code == code
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == masks
    if rule == "fail":
        assert "a.png would have the same mask" in result.stderr


def test_the_report_counts_every_image(images: Path, tmp_path: Path, darkness_onnx: Path) -> None:
    out, report = tmp_path / "out", tmp_path / "r.json"
    for done, skipped in ((60, 0), (0, 60)):
        assert _invoke(images, out, darkness_onnx, "--report", report).exit_code == 1
        data = json.loads(report.read_text())
        assert (data["done"], data["failed"], data["skipped"], data["not_reached"]) == (done, 1, skipped, 0)
        assert (data["status"], data["exit_code"], data["total"]) == ("failed", 1, 61)
        assert len(data["model"]["sha256"]) == 64
        assert data["settings"]["fsync"] == "batch"
        assert {"isicrt", "python"} <= set(data["versions"])
    ended = [line["status"] for line in read_journal(out) if "status" in line]
    assert sorted(ended) == ["done"] * 60 + ["failed"]
    assert [line["result"] for line in read_journal(out) if "end" in line] == ["failed", "failed"]


def test_two_results_in_one_file_are_refused(images: Path, tmp_path: Path, darkness_onnx: Path) -> None:
    result = _invoke(images, tmp_path / "out", darkness_onnx, "--json", tmp_path / "r", "--report", tmp_path / "x/../r")
    assert result.exit_code == 2
    assert "one would overwrite the other" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.nightly
def test_50_000_images_in_flat_memory(rendered_pairs: Path, tmp_path: Path, darkness_onnx: Path) -> None:
    folder, out = _folder_of(rendered_pairs, tmp_path / "in", 50_000), tmp_path / "out"
    seen: list[tuple[int, int, int]] = []  # resident KiB, file descriptors, threads
    with subprocess.Popen(_command(folder, out, darkness_onnx), stdout=subprocess.PIPE, text=True) as run:
        while run.poll() is None:
            time.sleep(1)
            try:
                status = Path(f"/proc/{run.pid}/status").read_text()
                fields = dict(line.split(":", 1) for line in status.splitlines())
                files = len(os.listdir(f"/proc/{run.pid}/fd"))  # noqa: PTH208
            except (OSError, KeyError):
                continue
            if "VmRSS" in fields and (out / "00000.png").exists():
                seen.append((int(fields["VmRSS"].split()[0]), files, int(fields["Threads"])))
    assert run.returncode == 0
    # Neither the start nor the end, when threads come and go.
    steady = seen[len(seen) // 5 : len(seen) * 9 // 10]
    memory, open_files, threads = zip(*steady, strict=True)
    assert memory[-1] - memory[0] < 60_000
    assert max(open_files) - min(open_files) <= 3
    assert max(threads) - min(threads) <= 2
    assert len(list(out.glob("*.png"))) == 50_000
    with Image.open(out / "49999.png") as mask:
        assert mask.size in {(128, 96), (90, 120)}
