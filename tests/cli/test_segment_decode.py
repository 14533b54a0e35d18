"""`isicrt segment --decode`, and what is said and refused before a plan is opened."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from isicrt.cli.main import group
from isicrt.engine import gpu_stages
from isicrt.engine import runtime as runtime_module
from isicrt.engine.cuda_driver import find_gpu
from isicrt.engine.gpu_decode import HARDWARE_LOAD
from isicrt.engine.images import read_mask
from isicrt.engine.overlay import OverlayFolder
from isicrt.engine.plan import write_plan
from tests.engine.cpu_kernels import CpuKernels
from tests.engine.host_plan import HostPlan
from tests.tiny_models import darkness_card

BUILDER = {
    "flavour": "tensorrt-rtx",
    "version": "1.7.1.116",
    "source": "runs/a/best.pt",
    "profile": [1, 8, 8],
    "options": ["--opt-level", "5"],
}
NOTICE = "model.plan: a plan is code that runs on this machine; open only plans that you trust."
REBUILD = "isicrt build-engine runs/a/best.pt --fp16 --batch-size 1,8,8 --target tensorrt-rtx --opt-level 5"


def _segment(*arguments: object) -> Result:
    return CliRunner().invoke(group, ["segment", *map(str, arguments)])


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "model.plan"
    write_plan(path, darkness_card(precision="fp16", builder=BUILDER), b"plan" * 100)
    return path


def test_an_onnx_file_is_decoded_on_the_cpu_or_refused(
    rendered_pairs: Path, darkness_onnx: Path, tmp_path: Path
) -> None:
    out, report = tmp_path / "out", tmp_path / "report.json"
    refused = _segment(rendered_pairs / "images", "--out", out, "--model", darkness_onnx, "--decode", "gpu")
    assert refused.exit_code == 2
    assert f"--decode gpu: {darkness_onnx} is an ONNX file, which runs on the CPU" in refused.stderr
    assert f"isicrt build-engine {darkness_onnx} --fp16" in refused.stderr
    assert not out.exists()
    done = _segment(rendered_pairs / "images", "--out", out, "--model", darkness_onnx, "--report", report)
    assert done.exit_code == 0
    assert "a plan is code" not in done.stderr
    assert json.loads(report.read_text())["settings"]["decode"] == "cpu"


def test_isolation_and_the_gpu_exclude_each_other(rendered_pairs: Path, tmp_path: Path, plan: Path) -> None:
    result = _segment(
        rendered_pairs / "images", "--out", tmp_path / "out", "--model", plan, "--decode", "gpu", "--isolate", "always"
    )
    assert result.exit_code == 2
    assert "--isolate always keeps every decoder out of this process" in result.stderr


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU here")
@pytest.mark.parametrize("decode", ["auto", "gpu", "cpu"])
def test_a_plan_without_a_gpu(rendered_pairs: Path, tmp_path: Path, plan: Path, decode: str) -> None:
    out = tmp_path / "out"
    result = _segment(rendered_pairs / "images", "--out", out, "--model", plan, "--decode", decode)
    assert result.exit_code == 1
    assert result.stderr.count(NOTICE) == 1
    assert "no NVIDIA GPU" in result.stderr
    assert "Use the ONNX file that it was built of" in result.stderr
    assert not out.exists()


def test_a_plan_with_a_name_in_capitals_is_announced_too(rendered_pairs: Path, tmp_path: Path, plan: Path) -> None:
    shouted = plan.rename(tmp_path / "MODEL.PLAN")
    result = _segment(rendered_pairs / "images", "--out", tmp_path / "out", "--model", shouted)
    assert NOTICE.replace("model.plan", "MODEL.PLAN") in result.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1] + b"x", "altered: the plan's SHA-256 is"),
        (lambda data: data[:-1], "truncated"),
        (lambda data: data + b"x", "altered: 1 bytes follow the plan's end"),
    ],
)
def test_a_plan_that_is_not_what_its_card_says_is_not_opened(
    rendered_pairs: Path,
    tmp_path: Path,
    plan: Path,
    change: object,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a GPU was looked for")

    monkeypatch.setattr("isicrt.engine.tensorrt_runtime.CudaDevice", never)
    assert callable(change)
    plan.write_bytes(change(plan.read_bytes()))
    result = _segment(rendered_pairs / "images", "--out", tmp_path / "out", "--model", plan)
    assert result.exit_code == 1
    assert message in result.stderr
    assert f" with: {REBUILD} --out " in result.stderr


@pytest.fixture
def host(
    darkness_onnx: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HostPlan]:
    pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed (extra gpu)")
    host = HostPlan(darkness_onnx, CpuKernels(tmp_path_factory.mktemp("kernels")))
    monkeypatch.setattr(runtime_module, "open_runtime", lambda path, threads=None: host.runtime)
    monkeypatch.setattr(gpu_stages, "open_chain", lambda runtime, decode, **_: None if decode == "cpu" else host.chain)
    yield host
    host.close()


def test_a_plan_is_fed_by_the_gpu(host: HostPlan, rendered_pairs: Path, tmp_path: Path, plan: Path) -> None:
    out, report = tmp_path / "out", tmp_path / "report.json"
    images = tmp_path / "images"
    images.mkdir()
    for file in sorted((rendered_pairs / "images").iterdir())[:5]:
        (images / file.name).write_bytes(file.read_bytes())
    (images / "bad.jpg").write_text("not an image")
    arguments = (images, "--out", out, "--model", plan, "--report", report)
    result = _segment(*arguments)
    assert result.exit_code == 1, result.output
    assert "5 masks in" in result.stdout
    assert "(model darkness, host; 5 decoded on the GPU, 0 on the CPU)" in result.stdout
    assert "refused" not in result.stderr
    assert result.stderr.count(NOTICE) == 1
    assert "bad.jpg: cannot be decoded" in result.stderr
    written = json.loads(report.read_text())
    assert (written["settings"]["decode"], written["settings"]["batch_size"]) == ("gpu", 4)
    assert (written["done"], written["failed"]) == (5, 1)
    assert written["decoded"] == {"gpu": 5, "cpu": 0, "refused_by_gpu": 0}
    assert written["settings"]["hardware_decoder_load"] == 0.35
    assert all(read_mask(path).any() for path in out.glob("*.png"))
    again = _segment(*arguments)  # the chain was closed with the first run; nothing is left for it to do
    assert "0 masks in" in again.stdout
    assert "5 done before" in again.stdout


def test_a_gpu_that_decodes_nothing_is_not_passed_over(
    host: HostPlan, rendered_pairs: Path, tmp_path: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where no batch finds its memory: every mask is right, and only the speed would tell."""
    monkeypatch.setattr(host.chain._decoder, "decode", lambda contents, stream: [None] * len(contents))
    out, report, outcomes = tmp_path / "out", tmp_path / "report.json", tmp_path / "outcomes.json"
    arguments = ("--out", out, "--model", plan, "--report", report, "--json", outcomes)
    result = _segment(rendered_pairs / "images", *arguments)
    assert result.exit_code == 0, result.output
    assert "; 0 decoded on the GPU, 12 on the CPU)" in result.stdout
    assert "The GPU's decoder refused 12 of the 12 JPEGs" in result.stderr
    expected = {"gpu": 0, "cpu": 12, "refused_by_gpu": 12}
    assert json.loads(report.read_text())["decoded"] == expected
    assert json.loads(outcomes.read_text())["summary"]["decoded"] == expected


def test_an_image_that_is_for_the_cpu_is_no_refusal(
    host: HostPlan, rendered_pairs: Path, tmp_path: Path, plan: Path
) -> None:
    result = _segment(rendered_pairs / "images", "--out", tmp_path / "out", "--model", plan, "--cpu-share", "1")
    assert "; 0 decoded on the GPU, 12 on the CPU)" in result.stdout
    assert "refused" not in result.stderr


def test_the_load_of_the_hardware_decoder_and_the_threads(
    host: HostPlan, rendered_pairs: Path, tmp_path: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[tuple[float, int | None]] = []

    def open_chain(
        runtime: object, decode: str, *, threshold: object, hardware_load: float, threads: int | None
    ) -> object:
        loads.append((hardware_load, threads))
        return host.chain

    monkeypatch.setattr(gpu_stages, "open_chain", open_chain)
    arguments = (rendered_pairs / "images", "--out", tmp_path / "out", "--model", plan)
    report = tmp_path / "report.json"
    assert _segment(*arguments, "--hardware-decoder-load", "0.25", "--report", report).exit_code == 0
    assert json.loads(report.read_text())["settings"]["hardware_decoder_load"] == 0.25
    assert _segment(*arguments, "--threads", "2").exit_code == 0
    assert loads == [(0.25, None), (HARDWARE_LOAD, 2)]
    for bad in ("-0.1", "1.1", "nan"):
        refused = _segment(*arguments, "--hardware-decoder-load", bad)
        assert refused.exit_code == 2
        assert "--hardware-decoder-load" in refused.stderr


@pytest.mark.parametrize(
    "command", [["bench", "--quick", "--model"], ["evaluate", "--data", ".", "model.plan"]], ids=["bench", "evaluate"]
)
def test_others_say_that_a_plan_is_code_too(
    command: list[str], rendered_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rendered_pairs)
    Path("model.plan").write_bytes(b"no plan")
    try:
        result = CliRunner().invoke(group, [*command, "model.plan"] if command[-1] == "--model" else command)
    finally:
        Path("model.plan").unlink()
    assert result.exit_code == 1
    assert NOTICE in result.stderr


def test_overlays_decode_as_the_run_does(
    rendered_pairs: Path, darkness_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In workers where those are asked for, and with the same limit."""

    def never(*_: object) -> None:
        raise AssertionError("decoded in this process")

    monkeypatch.setitem(OverlayFolder.__init__.__kwdefaults__, "decode", never)
    result = _segment(
        rendered_pairs / "images", "--out", tmp_path / "out", "--model", darkness_onnx, "--isolate", "always",
        "--overlay", tmp_path / "drawn",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "drawn").glob("*.jpg"))) == len(list((rendered_pairs / "images").iterdir()))
