from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from isicrt.cli.build_engine import command, parse_batch_sizes
from isicrt.cli.main import group
from isicrt.cli.plain_text import shell_word
from isicrt.engine import tensorrt_api
from isicrt.engine.card import ModelCard
from isicrt.engine.cuda_driver import find_gpu
from isicrt.engine.errors import IsicrtError, ModelError
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.plan import read_plan
from isicrt.engine.tensorrt_api import known_capabilities
from isicrt.trainer.checkpoint import save
from isicrt.trainer.models import build_model
from tests.benchmarks.host_parts import write_convolution_model


@pytest.fixture(scope="module")
def best_pt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder's best.pt: a small U-Net of random weights for 64 x 64 px."""
    import torch

    run = tmp_path_factory.mktemp("work") / "runs" / "small"
    run.mkdir(parents=True)
    network: dict[str, Any] = {"decoder_channels": [8, 8, 8, 8]}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = build_model("unet", **network).state_dict()
    scores = {"validation": {"jaccard": 0.5, "images": 7}}
    card = ModelCard("small", architecture="unet", input_height=64, input_width=64, network=network, scores=scores)
    save(run / "best.pt", card=card, weights=weights)
    (run / "metrics.csv").write_text("epoch,val_jaccard\n1,0.5\n")
    return run / "best.pt"


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ISICRT_DATA", raising=False)


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(group, ["build-engine", *map(str, arguments)])


def test_the_best_run_becomes_fp16_onnx_and_plan(
    best_pt: Path, monkeypatch: pytest.MonkeyPatch, rendered_pairs: Path
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")
    monkeypatch.chdir(best_pt.parents[2])
    result = _run(
        *("--fp16", "--batch-size", "4", "--target", "tensorrt-rtx", "--parity-images", "6"),
        *("--images", rendered_pairs / "images", "--masks", rendered_pairs / "masks"),
    )
    assert result.exit_code == 0, result.output
    assert "small/best.pt: the run with the highest Jaccard index" in result.stderr
    assert "(0.500 on 7 of them)" in result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == f"Model: {Path('runs/small/best.pt')} (unet, 64 x 64 px) -> fp16 ONNX and tensorrt-rtx plan"
    assert lines[1].startswith(
        f"Parity on 6 of 12 images of {rendered_pairs.name}/images: torch fp32 against the FP16 graph"
    )
    assert "masks differ in 0.0" in lines[2]
    assert "Jaccard index" in lines[3]
    assert "6 images with ground truth" in lines[3]
    assert "0 not finite; largest activation" in lines[4]
    share = next(line for line in lines if line.startswith("FP16 share: "))
    half, _, total, _ = share.removeprefix("FP16 share: ").split()
    assert half == total
    assert int(total) > 40
    assert any(line.startswith("Wrote model.onnx  ") for line in lines)
    assert any(line.startswith("Wrote model.plan  ") and "batch 1,4,4" in line for line in lines)
    if find_gpu() is None:
        assert lines[-1] == "Next: isicrt segment ./images --out ./masks --model model.onnx"
    card, _ = read_plan("model.plan")
    assert card.builder["source"] == str(Path("runs/small/best.pt"))
    assert card.builder["profile"] == [1, 4, 4]
    with OnnxRuntime("model.onnx") as runtime:
        assert runtime.card.precision == "fp16"
        assert runtime.card.parity["source"].startswith("6 of 12 images")


def test_an_onnx_file_on_rendered_images(darkness_onnx: Path, tmp_path: Path) -> None:
    out = tmp_path / "my models"
    result = _run(darkness_onnx, "--fp16", "--target", "onnx", "--parity-images", "3", "--out", out)
    assert result.exit_code == 0, result.output
    assert "comparing on 3 rendered images" in result.stdout
    assert "Parity on 3 rendered images: the fp32 ONNX file against the FP16 graph" in result.stdout
    assert not (out / "model.plan").exists()
    model = shell_word(out / "model.onnx")
    assert result.stdout.endswith(f"Next: isicrt segment ./images --out ./masks --model {model}\n")


def test_an_fp32_file_stays_as_it_is_and_says_so(darkness_onnx: Path, tmp_path: Path) -> None:
    result = _run(darkness_onnx, "--target", "onnx", "--parity-images", "1", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "nothing was converted" in result.stdout
    assert (tmp_path / "model.onnx").read_bytes() == darkness_onnx.read_bytes()


def test_a_gate_that_fails_exits_with_1_and_writes_nothing(tmp_path: Path) -> None:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from isicrt.engine.card import METADATA_KEY

    # (255 - green) * 1000 / 1000: half overflows on the way.
    path = tmp_path / "loud.onnx"
    nodes = [
        helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["loud"], name="loud product"),
        helper.make_node("MatMul", ["loud", "v"], ["quiet"]),
        helper.make_node("Squeeze", ["quiet", "axis"], ["p"]),
        helper.make_node("Cast", ["p"], ["probability"], to=TensorProto.UINT8),
    ]
    weights = {"w": np.full((3, 1), 1e3, np.float32), "v": np.full((1, 1), 3e-4, np.float32), "axis": np.array([3])}
    graph = helper.make_graph(
        nodes,
        "loud",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 64, 64, 3])],
        [helper.make_tensor_value_info("probability", TensorProto.UINT8, ["batch", 64, 64])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    card = ModelCard(name="loud", architecture="test", input_height=64, input_width=64)
    helper.set_model_props(model, {METADATA_KEY: card.to_json()})
    onnx.save(model, path)
    result = _run(path, "--fp16", "--target", "onnx", "--parity-images", "1", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "Error: FP16: 'loud product' gives values beyond 65504" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("value", "expected"), [("1", (1, 1, 1)), ("32", (1, 32, 32)), ("1,8,64", (1, 8, 64)), ("4,4,4", (4, 4, 4))]
)
def test_batch_sizes(value: str, expected: tuple[int, int, int]) -> None:
    (option,) = [p for p in command.params if p.name == "batch_size"]
    assert parse_batch_sizes(click.Context(command), option, value) == expected


@pytest.mark.parametrize("value", ["", "0", "a", "1,2", "8,4,1", "1,2,3,4", "1,8,5000", "-1"])
def test_batch_sizes_that_make_no_sense(value: str) -> None:
    result = _run("--batch-size", value)
    assert result.exit_code == 2
    assert "expected N, or MIN,OPT,MAX" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--masks", "."], 2, "--masks needs --images"),
        (["--target", "cuda"], 2, "'cuda' is not one of"),
        (["--parity-images", "0"], 2, "0 is not in the range"),
        (["none.pt", "--target", "onnx"], 1, "none.pt: no such model file"),
        (["broken.pt", "--target", "onnx"], 1, "not a checkpoint"),
        (["broken.onnx", "--target", "onnx"], 1, "broken.onnx: not an ONNX file"),
        (["broken.plan", "--target", "onnx"], 1, "a plan cannot be compiled again"),
        (["darkness.onnx", "--target", "onnx", "--images", "empty"], 1, "no image found"),
        (["darkness.onnx", "--target", "onnx", "--images", "nowhere"], 1, "nowhere: no such file or folder"),
    ],
)
def test_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, darkness_onnx: Path, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("broken.pt", "broken.onnx", "broken.plan"):
        Path(name).write_bytes(b"broken")
    Path("empty").mkdir()
    shutil.copy(darkness_onnx, "darkness.onnx")
    result = _run(*arguments)
    assert (result.exit_code, message in result.stderr) == (code, True), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_options_of_the_builder_are_recorded_and_shown(darkness_onnx: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")
    result = _run(
        *(darkness_onnx, "--target", "tensorrt-rtx", "--parity-images", "1", "--out", tmp_path, "--batch-size", "2"),
        *("--compute-capability", "8.6, 8.9", "--opt-level", "2", "--workspace", "256"),
    )
    assert result.exit_code == 0, result.output
    assert "batch 1,2,2, --compute-capability 8.6,8.9 --opt-level 2 --workspace 256)" in result.stdout
    assert "A plan is code that runs on the GPU" in result.stdout
    assert read_plan(tmp_path / "model.plan")[0].builder["compute_capabilities"] == ["8.6", "8.9"]


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_model_that_ships_builds_for_every_capability_that_is_known(tmp_path: Path, precision: str) -> None:
    """TensorRT for RTX has no float32 matrix products for 7.5, in which the ONNX file ends."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")
    every = ",".join(known_capabilities(tensorrt_api.load("tensorrt-rtx")))
    assert "7.5" in every
    result = _run(
        *("unet-light", f"--{precision}", "--target", "tensorrt-rtx", "--parity-images", "1", "--out", tmp_path),
        *("--batch-size", "2", "--opt-level", "0", "--compute-capability", every.removesuffix(",current")),
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "model.plan").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--opt-level", "6"], 2, "6 is not in the range 0<=x<=5"),
        (["--workspace", "0"], 2, "0 is not in the range"),
        (["--compute-capability", "sm89"], 2, "expected compute capabilities such as 8.0,8.9"),
        (["--compute-capability", "8.9,8.9"], 2, "expected compute capabilities such as 8.0,8.9"),
        (["--hardware-compatibility", "all"], 2, "'all' is not one of"),
        (["--target", "onnx", "--opt-level", "1"], 1, "--opt-level: it is about TensorRT plans"),
        (["--target", "onnx", "--compute-capability", "8.9"], 1, "--compute-capability: it is about TensorRT plans"),
        (["--target", "tensorrt-rtx", "--hardware-compatibility", "ampere-plus"], 1, "has no such setting"),
        (["--target", "tensorrt-rtx", "--compute-capability", "9.0"], 1, "knows 7.5, 8.0"),
    ],
)
def test_options_of_the_builder_that_cannot_be(
    darkness_onnx: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    if "tensorrt-rtx" in arguments:
        pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")
    result = _run(darkness_onnx, "--out", tmp_path / "out", *arguments)
    assert (result.exit_code, message in result.stderr) == (code, True), result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU here")
def test_tensorrt_where_it_cannot_be_is_a_clean_error(darkness_onnx: Path) -> None:
    result = _run(darkness_onnx, "--target", "tensorrt")
    assert result.exit_code == 1
    assert "TensorRT" in result.stderr
    assert not isinstance(result.exception, IsicrtError)


def test_the_command_that_a_refused_plan_names_builds_it_again_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")
    out = tmp_path / "a b"
    write_convolution_model(tmp_path / "fp32.onnx")
    options = (
        "--fp16",
        "--target",
        "tensorrt-rtx",
        "--parity-images",
        "1",
        "--batch-size",
        "2,2,4",
        "--opt-level",
        "1",
    )
    result = _run(tmp_path / "fp32.onnx", *options, "--out", out)
    assert result.exit_code == 0, result.output
    card, before = read_plan(out / "model.plan")
    assert not Path(card.builder["source"]).is_absolute()
    (out / "model.plan").write_bytes((out / "model.plan").read_bytes()[:-1])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ModelError) as error:
        read_plan(out / "model.plan")
    words = shlex.split(str(error.value).split(" with: ")[1])
    assert words[:2] == ["isicrt", "build-engine"]
    result = _run(*words[2:])
    assert result.exit_code == 0, result.output
    again, plan = read_plan(out / "model.plan")
    assert abs(len(plan) - len(before)) < 1000
    for name in ("onnx_sha256", "profile", "options", "flavour"):
        assert again.builder[name] == card.builder[name]


@pytest.mark.parametrize("step", ["isicrt.export.build.open_source", "isicrt.cli.build_engine._samples"])
def test_sigterm_is_ctrl_c_from_the_first_step_on(
    darkness_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def stopped(*arguments: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("it goes on")

    monkeypatch.setattr(step, stopped)
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        result = _run(darkness_onnx, "--target", "onnx", "--out", tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (result.exit_code, result.stderr.strip()) == (1, "Aborted!")  # of which `main` makes 130


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_build_that_is_ended_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-m", "isicrt.cli.main", "build-engine", "unet-light", "--target", "onnx"]
    process = subprocess.Popen(
        [*command, "--parity-images", "1", "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        until = time.monotonic() + 120
        while not list(out.iterdir()):  # the hidden folder, in which the ONNX file runs for seconds
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, list(out.iterdir())) == (130, []), errors
    assert errors.decode().strip().endswith("Interrupted.")


def test_machine_readable_card_of_the_plan_has_no_path_of_this_checkout(darkness_onnx: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")
    shutil.copy(darkness_onnx, tmp_path / "d.onnx")
    command = [sys.executable, "-m", "isicrt.cli.main", "build-engine", "d.onnx", "--target", "tensorrt-rtx"]
    done = subprocess.run(
        [*command, "--parity-images", "1", "--out", "built"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "FP16 share: 0 of 1 matrix products" in done.stdout
    assert "Traceback" not in done.stderr
    card, _ = read_plan(tmp_path / "built" / "model.plan")
    assert str(tmp_path) not in json.dumps(card.to_dict())
