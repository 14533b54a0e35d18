from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from isicrt.cli.main import group
from isicrt.engine import gpu_stages, tensorrt_slot
from isicrt.engine import runtime as runtime_module
from isicrt.engine.cuda_driver import find_gpu
from isicrt.engine.cuda_graph import GraphError
from isicrt.engine.model_identity import file_sha256
from isicrt.engine.runtime import open_runtime
from tests.engine.cpu_kernels import CpuKernels
from tests.engine.gpu_plan import MODULES, open_made_for
from tests.engine.host_plan import HostPlan
from tests.engine.host_tensorrt import HostTensorRt
from tests.engine.stand_ins import RecordedGraph
from tests.tiny_models import write_darkness_model


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(group, ["check-parity", *map(str, arguments)])


@pytest.fixture
def other_onnx(tmp_path: Path) -> Path:
    """The same model with another threshold."""
    write_darkness_model(tmp_path / "other.onnx", threshold=0.3)
    return tmp_path / "other.onnx"


def test_a_model_agrees_with_itself(darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    report = tmp_path / "parity.json"
    result = _run(
        *(darkness_onnx, darkness_onnx, "--images", rendered_pairs / "images"),
        *("--masks", rendered_pairs / "masks", "--limit", "5", "--json", report),
    )
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].endswith("(onnxruntime-cpu), 5 images")
    assert "Jaccard index 1.00000 in the mean, 1.00000 at worst" in lines[1]
    assert lines[1].endswith("5 images are the same")
    assert "(+0.00000; 5 images)" in lines[2]
    assert lines[-1] == "They agree."
    data = json.loads(report.read_text())
    assert data["problems"] == []
    assert data["agreement"]["images"] == data["agreement"]["images_with_truth"] == 5
    names = [image["name"] for image in data["agreement"]["per_image"]]
    assert names == [f"ISIC_{n:07d}" for n in (0, 3, 6, 8, 11)]
    assert data["source"] == f"{rendered_pairs.name}/images"
    assert data["schema"] == "isicrt-check-parity/1"
    assert data["files"] == 2 * [{"name": darkness_onnx.name, "sha256": file_sha256(darkness_onnx)}]
    assert f"isicrt check-parity {darkness_onnx} {darkness_onnx} --images " in data["command"]
    # Nobody's folders but where they were typed.
    assert str(tmp_path) not in json.dumps({**data, "reference": 0, "candidate": 0, "command": 0})


def test_two_that_differ_exit_with_1_and_show_the_worst(
    darkness_onnx: Path, other_onnx: Path, rendered_pairs: Path
) -> None:
    result = _run(darkness_onnx, other_onnx, "--images", rendered_pairs / "images", "--worst", "2")
    assert result.exit_code == 1, result.output
    assert "They do NOT agree: mean Jaccard index of the masks 0." in result.stderr
    assert "at least 0.995 wanted" in result.stderr
    assert len([line for line in result.stdout.splitlines() if " pixels  ISIC_" in line]) == 2


def test_the_limits_are_options(darkness_onnx: Path, other_onnx: Path, rendered_pairs: Path) -> None:
    images, masks = rendered_pairs / "images", rendered_pairs / "masks"
    pair = (darkness_onnx, other_onnx, "--images", images, "--min-jaccard", "0.1")
    assert _run(*pair).exit_code == 0
    with_truth = _run(*pair, "--masks", masks, "--max-change", "0.0000001")
    assert with_truth.exit_code == 1
    assert "the score changes by" in with_truth.stderr
    assert _run(*pair, "--masks", masks, "--max-change", "0.9").exit_code == 0


def test_a_broken_image_is_left_out_and_named(darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(rendered_pairs / "images" / "ISIC_0000000.jpg", images)
    (images / "broken.jpg").write_bytes(b"broken")
    result = _run(darkness_onnx, darkness_onnx, "--images", images)
    assert result.exit_code == 0, result.output
    assert "Left out: " in result.stderr
    assert "broken.jpg" in result.stderr


def test_names_that_are_no_text_reach_no_terminal(
    darkness_onnx: Path, other_onnx: Path, rendered_pairs: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in (os.fsdecode(b"l\xe9sion.jpg"), "bell\a.jpg"):
        shutil.copy(rendered_pairs / "images" / "ISIC_0000000.jpg", images / name)
    (images / "red\x1b[31m.jpg").write_bytes(b"broken")
    result = _run(darkness_onnx, other_onnx, "--images", images)
    assert result.exit_code == 1, result.output
    assert not isinstance(result.exception, UnicodeError)
    assert "  l\\udce9sion" in result.stdout
    assert "  bell\\x07" in result.stdout
    assert "red\\x1b[31m.jpg" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "Missing argument"),
        (["MODEL", "MODEL"], 2, "Missing option '--images'"),
        (["MODEL", "none.onnx", "--images", "IMAGES"], 1, "none.onnx: no such model file"),
        (["MODEL", "MODEL", "--images", "nowhere"], 1, "nowhere"),
        (["MODEL", "MODEL", "--images", "IMAGES", "--limit", "0"], 2, "0 is not in the range"),
        (["MODEL", "MODEL", "--images", "IMAGES", "--min-jaccard", "1.1"], 2, "1.1 is not in the range"),
        (["MODEL", "MODEL", "--images", "IMAGES", "--json", "no/such/folder.json"], 2, "there is no folder no/such"),
        (["MODEL", "MODEL", "--images", "IMAGES", "--decode", "gpu"], 2, "--decode gpu: "),
    ],
)
def test_bad_input(
    darkness_onnx: Path,
    rendered_pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"MODEL": str(darkness_onnx), "IMAGES": str(rendered_pairs / "images")}
    result = _run(*(places.get(argument, argument) for argument in arguments))
    assert (result.exit_code, message in result.stderr) == (code, True), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)


@pytest.fixture
def host(
    darkness_onnx: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HostPlan]:
    """Whatever is opened as a .plan is this."""
    pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed (extra gpu)")
    host = HostPlan(darkness_onnx, CpuKernels(tmp_path_factory.mktemp("kernels")), record=True)
    monkeypatch.setattr(tensorrt_slot, "CudaGraph", partial(RecordedGraph, host.device))

    def opened(path: Path) -> Any:
        return host.runtime if path.suffix == ".plan" else open_runtime(path)

    monkeypatch.setattr(runtime_module, "open_runtime", opened)
    monkeypatch.setattr(gpu_stages, "open_chain", lambda runtime, decode, **_: None if decode == "cpu" else host.chain)
    yield host
    host.close()


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A file that `host` stands in for."""
    (tmp_path / "model.plan").write_bytes(b"plan")
    return tmp_path / "model.plan"


@pytest.mark.parametrize(
    ("refused", "code", "message"),
    [
        (0, 0, ""),
        (3, 0, "Note: the GPU's decoder refused 3 of 12 JPEGs; isicrt doctor says"),
        (12, 1, "--decode gpu: the GPU decoded none of the images, so nothing of its way was compared"),
    ],
)
def test_what_the_gpu_was_asked_for_and_did_not_decode_is_seen(
    host: HostPlan,
    plan: Path,
    darkness_onnx: Path,
    rendered_pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: int,
    code: int,
    message: str,
) -> None:
    """The masks are right all the same: the CPU decodes what the GPU's decoder does not."""
    decode, left = host.chain._decoder.decode, [refused]

    def some(contents: Any, stream: int) -> Any:
        images: list[Any] = list(decode(contents, stream))
        for n in range(min(left[0], len(images))):
            images[n].release()
            images[n] = None
            left[0] -= 1
        return images

    monkeypatch.setattr(host.chain._decoder, "decode", some)
    report = tmp_path / "parity.json"
    # The limits are no part of this: the two ways resize differently.
    arguments = ("--images", rendered_pairs / "images", "--decode", "gpu", "--min-jaccard", "0.5", "--json", report)
    result = _run(darkness_onnx, plan, *arguments)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert ("refused" in result.stderr) is bool(refused)
    if code == 0:
        first = result.stdout.splitlines()[0]
        assert first.endswith(f"12 images; {12 - refused} decoded on the GPU, {refused} on the CPU; 2 CUDA graphs")
        candidate = json.loads(report.read_text())["candidate"]
        assert candidate["decode"] == "gpu"
        assert candidate["decoded"] == {"gpu": 12 - refused, "cpu": refused, "refused_by_gpu": refused}
    else:
        assert not report.exists()


@pytest.mark.parametrize("records", [True, False])
@pytest.mark.parametrize("decode", ["cpu", "gpu"])
def test_a_plan_is_compared_as_a_run_uses_it_in_full_batches_that_are_graphs(
    request: pytest.FixtureRequest,
    darkness_onnx: Path,
    rendered_pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    decode: str,
    records: bool,
) -> None:
    if decode == "gpu":
        host = request.getfixturevalue("host")
        device, plan, largest, slots = host.device, request.getfixturevalue("plan"), 4, 2
    else:
        tensorrt = HostTensorRt(darkness_onnx)
        tensorrt.install(monkeypatch, tmp_path)
        tensorrt.be_plain(monkeypatch)
        builder = {"flavour": "tensorrt", "gpu": "host", "compute_capability": "8.9"}
        plan = tensorrt.write(tmp_path / "real.plan", darkness_onnx, **builder)
        device, largest, slots = tensorrt.device, 8, 3
    if not records:

        def refuse(handle: int, enqueue: object) -> None:
            raise GraphError("not permitted")

        monkeypatch.setattr(tensorrt_slot, "CudaGraph", refuse)
    report = tmp_path / "parity.json"
    arguments = ("--images", rendered_pairs / "images", "--decode", decode, "--min-jaccard", "0.5", "--json", report)
    result = _run(darkness_onnx, plan, *arguments)
    assert result.exit_code == 0, result.output
    recorded = slots if records else 0
    assert result.stdout.splitlines()[0].endswith(f"; {recorded} CUDA graphs")
    problem = f"{slots} CUDA graphs could not be recorded (not permitted)"
    assert (problem in result.stderr) is not records
    candidate = json.loads(report.read_text())["candidate"]
    assert candidate["cuda_graphs"] == {"recorded": recorded, "refused": slots - recorded}
    # Each slot settles, then come 12 images: full batches first, by a graph where there is one.
    shapes = [line for line in device.log if line.startswith("shape")]
    assert shapes == [f"shape {largest}"] * slots + ["shape 4"] * (12 % largest > 0)
    assert device.log.count("launch") == (slots + 12 // largest if records else 0)


def test_the_report_has_the_hash_of_the_plan_that_was_loaded(
    darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = HostTensorRt(darkness_onnx)
    host.install(monkeypatch, tmp_path)
    plan, report = host.write(tmp_path / "model.plan", darkness_onnx), tmp_path / "parity.json"
    loaded = file_sha256(plan)
    host.loading = lambda: plan.write_bytes(b"another")
    result = _run(darkness_onnx, plan, "--images", rendered_pairs / "images", "--limit", "2", "--json", report)
    assert result.exit_code == 0, result.output
    expected = [(darkness_onnx.name, file_sha256(darkness_onnx)), ("model.plan", loaded)]
    assert [(file["name"], file["sha256"]) for file in json.loads(report.read_text())["files"]] == expected


def test_too_few_images_for_a_full_batch_are_said(
    darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = HostTensorRt(darkness_onnx)
    host.install(monkeypatch, tmp_path)
    plan = host.write(tmp_path / "model.plan", darkness_onnx)
    for limit, said in (("7", True), ("8", False)):
        result = _run(darkness_onnx, plan, "--images", rendered_pairs / "images", "--limit", limit)
        assert result.exit_code == 0, result.output
        assert ("Note: 7 images are less than a batch of 8, so that tensorrt-rtx-fp32" in result.stderr) is said
        assert "CUDA graphs" not in result.stdout  # TensorRT for RTX records its own


@pytest.mark.gpu
@pytest.mark.parametrize("decode", ["cpu", "gpu"])
@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_the_shipped_model_as_an_fp16_plan(flavour: str, decode: str, real_data: Path, tmp_path: Path) -> None:
    gpu = find_gpu()
    if gpu is None:
        pytest.skip("no NVIDIA GPU with a driver here")
    pytest.importorskip("pycuda.driver", reason="PyCUDA is not installed (extra gpu)", exc_type=ImportError)
    pytest.importorskip(MODULES[flavour], reason=f"{flavour} is not installed", exc_type=ImportError)
    if decode == "gpu":
        pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed (extra gpu)")
    test = real_data / "isic2016" / "test"
    built = CliRunner().invoke(
        group,
        ["build-engine", "unet-light", "--fp16", "--batch-size", "16", "--target", flavour, "--out", str(tmp_path)]
        + ["--images", str(test / "images"), "--parity-images", "8"],
    )
    assert built.exit_code == 0, built.output
    open_made_for(gpu, flavour, tmp_path / "model.plan").close()
    result = _run(
        *("unet-light", tmp_path / "model.plan", "--images", test / "images"),
        *("--masks", test / "masks", "--decode", decode),
    )
    assert result.exit_code == 0, result.output
    assert "could not be recorded" not in result.stderr
    first = result.stdout.splitlines()[0]
    assert bool(re.search(r"; [1-9]\d* CUDA graphs$", first)) is (flavour == "tensorrt"), first
