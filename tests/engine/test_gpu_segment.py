"""`isicrt segment --decode gpu` and `Segmenter` over the GPU's way, from files to masks: each test runs on a GPU where
there is one, with torch in TensorRT's place, and on the stand-ins everywhere."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageFilter

from isicrt.benchmarks.gpu_slots import SlotRuntime
from isicrt.benchmarks.rendered import render
from isicrt.cli.main import group
from isicrt.engine.cuda_driver import find_gpu
from isicrt.engine.errors import ModelError
from isicrt.engine.images import read_mask
from isicrt.engine.journal import JOURNAL_NAME
from isicrt.engine.outcome import DecodeCounts, Outcome
from isicrt.engine.plan import write_plan
from isicrt.engine.scores import score_mask
from isicrt.engine.segmenter import Segmenter
from isicrt.engine.shipped import resolve
from isicrt.engine.task_process import TaskProcess
from tests.benchmarks.host_parts import write_convolution_model
from tests.conftest import REPOSITORY
from tests.engine.cpu_kernels import CpuKernels
from tests.engine.torch_plan import LARGEST, PLACES, put_torch_behind_plans
from tests.journal_lines import read_journal
from tests.tiny_models import darkness_card

pytest.importorskip("torch", reason="torch is not installed (extra train)")

PLAIN = 3 * LARGEST
"""Ordinary JPEGs in the folder."""
BAD = ("empty.jpg", "half.jpg", "header.jpg", "text.jpg")
ON_CPU = ("cmyk.jpg", "large.jpg", "other.png")
"""Good files that no GPU decodes."""
ON_GPU = (*(f"plain{n:02d}.jpg" for n in range(PLAIN)), "grey.jpg", "progressive.jpg", "turned.jpg")


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "convolution.onnx"
    write_convolution_model(path, (256, 256))
    return path


def _picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """A lesion with a clear border and no hair: one level of a pixel, by which decoders differ, decides nothing."""
    lesion = np.asarray(Image.fromarray(render(seed, size)[1]).filter(ImageFilter.GaussianBlur(min(size) / 60)))
    skin, pigment = np.array([225, 185, 160]), np.array([95, 60, 50])
    noise = np.random.default_rng(seed).normal(0, 4, (*size, 3))
    pixels = skin + (pigment - skin) * (lesion[..., None] / 255) + noise
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `ON_GPU`, `ON_CPU` and `BAD`; the last batch of its good files is a partial one."""
    assert (len(ON_GPU) + len(ON_CPU)) % LARGEST
    folder = tmp_path_factory.mktemp("images")
    sizes = [(96, 128), (120, 90), (256, 256), (333, 500), (767, 1022), (97, 131)]
    for n in range(PLAIN):
        _picture(n, sizes[n % len(sizes)]).save(folder / f"plain{n:02d}.jpg", quality=92)
    picture = _picture(100, (240, 320))
    picture.convert("L").save(folder / "grey.jpg", quality=92)
    picture.save(folder / "progressive.jpg", quality=92, progressive=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save(folder / "turned.jpg", quality=92, exif=exif)
    picture.convert("CMYK").save(folder / "cmyk.jpg", quality=92)
    picture.save(folder / "other.png")
    picture.resize((6000, 5700), Image.Resampling.BILINEAR).save(folder / "large.jpg", quality=40)  # 34 megapixels
    whole = (folder / "plain00.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "header.jpg").write_bytes(whole[:300] + b"\xff\xd9")
    (folder / "text.jpg").write_text("not an image")
    (folder / "empty.jpg").touch()
    assert sorted(path.name for path in folder.iterdir()) == sorted([*ON_GPU, *ON_CPU, *BAD])
    return folder


@pytest.fixture(scope="module")
def masks_of_the_cpu(images: Path, onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONNX Runtime's."""
    out = tmp_path_factory.mktemp("masks") / "cpu"
    with Segmenter(onnx) as segmenter:
        assert segmenter.segment_folder(images, out).failed == len(BAD)
    return out


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A file with a plan's name and card, of which nothing else is looked at."""
    path = tmp_path / "model.plan"
    write_plan(path, darkness_card(precision="fp16", builder={"flavour": "tensorrt", "version": "10.14"}), b"plan")
    return path


@pytest.fixture(params=[PLACES[0], pytest.param(PLACES[1], marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest) -> str:
    pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed (extra gpu)")
    if request.param == "gpu":
        torch = pytest.importorskip("torch")
        if find_gpu() is None or not torch.cuda.is_available():
            pytest.skip("no NVIDIA GPU that torch can use")
        pytest.importorskip("pycuda.driver", reason="PyCUDA is not installed (extra gpu)", exc_type=ImportError)
    return str(request.param)


@pytest.fixture
def host_kernels(request: pytest.FixtureRequest, place: str) -> CpuKernels | None:
    """None for a GPU, whose machine need not have a compiler."""
    return request.getfixturevalue("kernels") if place == "host" else None


@pytest.fixture
def opened(
    onnx: Path, place: str, host_kernels: CpuKernels | None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[SlotRuntime]]:
    """Plans are the network of `onnx` in torch. On the CPU all memory is given back, or the test fails."""
    opened = put_torch_behind_plans(monkeypatch, onnx, host_kernels)
    yield opened
    for runtime in opened:
        assert runtime.slots == []
        assert place == "gpu" or (runtime.device.allocated, runtime.device.pushed) == (0, 0)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the processes are for that were started: a large ``answer`` is a file's, a large ``question`` a mask's."""
    started: list[str] = []
    begin = TaskProcess._begin

    def noted(process: TaskProcess) -> None:
        started.append(process._bulk)
        begin(process)

    monkeypatch.setattr(TaskProcess, "_begin", noted)
    return started


def _segment(*arguments: object) -> Result:
    return CliRunner().invoke(group, ["segment", *map(str, arguments)])


def _check_masks(out: Path, images: Path, expected: Path) -> None:
    """Of every good file and of no other, at its own size, as on the CPU."""
    assert sorted(path.stem for path in out.glob("*.png")) == sorted(Path(name).stem for name in (*ON_GPU, *ON_CPU))
    scores = {}
    for name in (*ON_GPU, *ON_CPU):
        mask = read_mask(out / f"{Path(name).stem}.png")
        with Image.open(images / name) as image:  # the stored grid, whatever EXIF says
            assert mask.shape == image.size[::-1], name
        assert 0 < mask.mean() < 1, name
        scores[name] = score_mask(mask, read_mask(expected / f"{Path(name).stem}.png")).jaccard
    assert min(scores.values()) >= 0.98, scores


def _statuses(out: Path) -> dict[str, str]:
    """Of the images in the journal, the last one of each."""
    return {line["image"]: line["status"] for line in read_journal(out) if "status" in line}


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("processes", [0, 2])
def test_a_folder_is_segmented_resumed_and_done_again(
    processes: int,
    opened: list[SlotRuntime],
    started: list[str],
    images: Path,
    masks_of_the_cpu: Path,
    plan: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    good, all_files = len(ON_GPU) + len(ON_CPU), len(ON_GPU) + len(ON_CPU) + len(BAD)
    outcomes: dict[str, Outcome] = {}
    with Segmenter(plan) as segmenter:

        def run(**options: Any) -> Any:
            outcomes.clear()
            return segmenter.segment_folder(
                images,
                out,
                decode="gpu",
                processes=processes,
                on_outcome=lambda outcome: outcomes.update({outcome.job.image.name: outcome}),
                **options,
            )

        summary = run()
        assert (summary.images, summary.failed, summary.skipped) == (all_files, len(BAD), 0)
        assert {name for name, outcome in outcomes.items() if outcome.error is not None} == set(BAD)
        assert summary.decoded == DecodeCounts(gpu=len(ON_GPU), cpu=len(ON_CPU), refused=0)
        assert set(started) == ({"answer", "question"} if processes else set())
        _check_masks(out, images, masks_of_the_cpu)
        assert _statuses(out) == {name: "failed" if name in BAD else "done" for name in outcomes}
        assert not list(out.glob(".*.tmp"))

        before = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
        summary = run()
        assert (summary.images, summary.failed, summary.skipped) == (len(BAD), len(BAD), good)
        assert summary.decoded == DecodeCounts()
        assert {path: path.stat().st_mtime_ns for path in out.glob("*.png")} == before

        summary = run(existing="overwrite")
        assert (summary.images, summary.failed, summary.skipped) == (all_files, len(BAD), 0)
        assert all(path.stat().st_mtime_ns > made for path, made in before.items())
        _check_masks(out, images, masks_of_the_cpu)
    assert len(opened) == 1


@pytest.mark.usefixtures("opened")
def test_the_segmenter_is_the_runs_while_a_gpu_decodes(images: Path, plan: Path, tmp_path: Path) -> None:
    image = images / "plain00.jpg"
    with Segmenter(plan) as segmenter:
        with pytest.raises(ModelError, match="taken by a run that decodes images there"):
            segmenter.segment_folder(
                images, tmp_path / "out", decode="gpu", on_outcome=lambda _: segmenter.probability(image)
            )
        assert segmenter.probability(image).any()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(("processes", "share"), [(0, 0.5), (2, 0.5), (2, 0.0)])
def test_the_command(
    processes: int,
    share: float,
    opened: list[SlotRuntime],
    images: Path,
    masks_of_the_cpu: Path,
    plan: Path,
    tmp_path: Path,
) -> None:
    out, report = tmp_path / "out", tmp_path / "report.json"
    arguments = (images, "--out", out, "--model", plan, "--decode", "gpu", "--processes", processes)
    arguments = (*arguments, "--cpu-share", share, "--report", report)
    result = _segment(*arguments)
    assert result.exit_code == 1, result.output
    assert f"{len(ON_GPU) + len(ON_CPU)} masks in" in result.stdout
    assert f"{len(BAD)} of {len(ON_GPU) + len(ON_CPU) + len(BAD)} images failed" in result.stderr
    assert all(f"{name}: " in result.stderr for name in BAD), result.stderr
    assert "refused" not in result.stderr
    written = json.loads(report.read_text())
    assert (written["settings"]["decode"], written["settings"]["batch_size"]) == ("gpu", LARGEST)
    decoded = written["decoded"]
    assert (decoded["gpu"] + decoded["cpu"], decoded["refused_by_gpu"]) == (len(ON_GPU) + len(ON_CPU), 0)
    if share:
        assert len(ON_CPU) < decoded["cpu"] < len(ON_CPU) + len(ON_GPU)
    else:
        assert decoded["cpu"] == len(ON_CPU)
    _check_masks(out, images, masks_of_the_cpu)
    again = _segment(*arguments)
    assert "0 masks in" in again.stdout
    assert f"{len(ON_GPU) + len(ON_CPU)} done before" in again.stdout
    anew = _segment(*arguments, "--overwrite")
    assert f"{len(ON_GPU) + len(ON_CPU)} masks in" in anew.stdout
    assert json.loads(report.read_text())["decoded"] == decoded, "the same files take the same way"
    assert len(opened) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT is not sent this way on Windows")
def test_a_run_that_is_interrupted_goes_on(place: str, images: Path, onnx: Path, plan: Path, tmp_path: Path) -> None:
    """In a process of its own, which has to end by itself with a GPU's context open."""
    count, batches_take = 400, 0.03
    names = ON_GPU[:4]
    (tmp_path / "in").mkdir()
    (tmp_path / "kernels").mkdir()
    for n in range(count):
        (tmp_path / "in" / f"{n:03d}.jpg").symlink_to(images / names[n % len(names)])
    out = tmp_path / "out"

    def begin(seconds: float) -> subprocess.Popen[str]:
        program = [sys.executable, "-m", "tests.engine.torch_plan", place, onnx, tmp_path / "kernels", seconds]
        command = ["segment", tmp_path / "in", "--out", out, "--model", plan, "--decode", "gpu", "--processes", 2]
        return subprocess.Popen(
            list(map(str, program + command)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )

    with begin(batches_take) as process:
        while process.poll() is None and not (out.is_dir() and any(out.glob("*.png"))):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert f"of {count} images" in stderr
    assert "Traceback" not in stderr
    done = sorted(out.glob("*.png"))
    assert 0 < len(done) < count
    assert all(read_mask(mask).any() for mask in done)
    before = {path: path.stat().st_mtime_ns for path in done}
    assert set(_statuses(out).values()) == {"done"}

    with begin(0.0) as process:
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    assert "done before" in stdout
    assert len(list(out.glob("*.png"))) == count
    assert len(_statuses(out)) == count
    kept = sum(path.stat().st_mtime_ns == made for path, made in before.items())
    assert kept >= len(done) - LARGEST  # written and not noted yet: done again
    assert (out / JOURNAL_NAME).is_file()


def test_the_masks_of_the_shipped_model(
    host_kernels: CpuKernels | None, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of photographs' sizes, in half precision on a GPU."""
    onnx = resolve("unet-light")
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(LARGEST + 3):
        Image.fromarray(render(n, (383, 511) if n % 2 else (512, 512))[0]).save(folder / f"{n}.jpg", quality=92)
    with Segmenter(onnx) as segmenter:
        assert segmenter.segment_folder(folder, tmp_path / "cpu").failed == 0
    opened = put_torch_behind_plans(monkeypatch, onnx, host_kernels)
    with Segmenter(plan) as segmenter:
        summary = segmenter.segment_folder(folder, tmp_path / "gpu", decode="gpu")
        assert summary.decoded == DecodeCounts(gpu=LARGEST + 3)
    assert opened[0].card.name == "unet-light"
    scores = []
    for mask in sorted((tmp_path / "gpu").glob("*.png")):
        scores.append(score_mask(read_mask(mask), read_mask(tmp_path / "cpu" / mask.name)).jaccard)
    assert len(scores) == LARGEST + 3
    assert min(scores) >= 0.9, scores
    assert np.mean(scores) >= 0.98, scores
