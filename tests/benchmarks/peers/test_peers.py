"""Each peer does the work, as a process of its own, and its masks are isicrt's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from isicrt.benchmarks.peers.__main__ import _float_model, command
from isicrt.benchmarks.peers.race import PEERS, agreement
from isicrt.engine import shipped
from isicrt.engine.errors import SettingsError
from isicrt.engine.masks import write_mask
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.pipeline import run_jobs
from isicrt.engine.sources import find_jobs


@pytest.mark.parametrize("name", list(PEERS))
def test_a_peers_masks_are_isicrts(name: str, darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    peer = PEERS[name]
    missing = [package for package in peer.packages if find_spec(package) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    if peer.module in ("pillow_torch", "dataloader"):
        darkness_onnx = shipped.resolve(shipped.FLOAT)  # the tiny model has an operator that no network of isicrt has
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    theirs.mkdir()
    files = sorted((rendered_pairs / "images").iterdir())[:4]
    with OnnxRuntime(darkness_onnx) as runtime:
        run_jobs(find_jobs(files, ours), runtime)
    (tmp_path / "files.txt").write_text("".join(f"{file}\n" for file in files))
    arguments = ["--model", str(darkness_onnx), "--list", str(tmp_path / "files.txt"), "--out", str(theirs)]
    # What is compared is the masks: torch.compile takes a minute.
    environment = {**os.environ, "TORCH_COMPILE_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", f"isicrt.benchmarks.peers.{peer.module}", *arguments]
        + ["--json", str(tmp_path / "peer.json")],
        check=True,
        capture_output=True,
        env=environment,
    )
    said = json.loads((tmp_path / "peer.json").read_text())
    assert said["images"] == 4
    assert min(said["load_seconds"], said["warmup_seconds"], said["seconds"]) > 0
    assert len(list(theirs.iterdir())) == 4, "the warm-up's masks are not among them"
    # Other filters, a padded image and a stretched range make a little difference, more of it on images this small.
    assert agreement(ours, theirs) > 0.85


def test_a_race(darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("race.json", "race.md")]
    arguments = ["--images", str(rendered_pairs / "images"), "--model", str(darkness_onnx), "--runs", "2"]
    arguments += ["--peers", "opencv-onnx", "--json", files[0], "--markdown", files[1]]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert "OpenCV, ONNX Runtime, one by one" in result.output
    data = json.loads(Path(files[0]).read_text())
    assert data["schema"] == "isicrt-peers/1"
    assert data["images"] == 12
    (peer,) = data["peers"]
    assert len(peer["seconds"]) == len(peer["process_seconds"]) == len(data["isicrt"]["seconds"]) == 2
    assert peer["agreement"] > 0.85
    assert peer["ratio_low"] <= peer["ratio_high"]
    assert Path(files[1]).read_text() in result.output

    other = CliRunner().invoke(
        command, [*arguments[:4], *arguments[6:8], "--runs", "1", "--baseline", str(darkness_onnx)]
    )
    assert other.exit_code == 0, other.output
    assert "| other network |" in other.output


@pytest.mark.parametrize(
    ("option", "code", "message"),
    [
        (["--peers", "nobody"], 2, "there are pillow-torch, dataloader"),
        (["--peers", ""], 2, "there are pillow-torch, dataloader"),
        (["--runs", "0"], 2, "not in the range"),
        (["--model", "none.onnx"], 1, "no such model"),
    ],
)
def test_bad_arguments(option: list[str], code: int, message: str, rendered_pairs: Path) -> None:
    result = CliRunner().invoke(command, ["--images", str(rendered_pairs / "images"), *option])
    assert result.exit_code == code
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_torch_peers_get_the_same_network_in_float32(darkness_onnx: Path, tmp_path: Path) -> None:
    shipped_int8, own = shipped.resolve(None), tmp_path / "own.onnx"
    own.write_bytes(shipped_int8.read_bytes())
    torchs, others = [PEERS["pillow-torch"], PEERS["opencv-onnx"]], [PEERS["opencv-onnx"], PEERS["openvino"]]
    exact = shipped.resolve(shipped.FLOAT)
    assert _float_model(shipped_int8, None, torchs, None) == exact
    assert _float_model(own, str(exact), torchs, None) == exact
    assert _float_model(shipped_int8, None, others, None) is None, "they know int8"
    assert _float_model(exact, None, torchs, None) is None
    assert _float_model(shipped_int8, None, torchs, darkness_onnx) is None, "all have the baseline"
    with pytest.raises(SettingsError, match=r"own\.onnx is int8.*--float-model"):
        _float_model(own, None, torchs, None)


def test_names_that_are_there_twice(darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "same.jpg").symlink_to(next((rendered_pairs / "images").iterdir()))
    result = CliRunner().invoke(command, ["--images", str(tmp_path), "--model", str(darkness_onnx)])
    assert result.exit_code == 1
    assert "1 names are there twice, such as same" in result.output


def test_agreement_is_the_mean_jaccard(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours" / "deep", tmp_path / "theirs"
    ours.mkdir(parents=True)
    theirs.mkdir()
    full, half = np.ones((4, 4), bool), np.ones((4, 4), bool)
    half[:2] = False
    for name, mask in (("a.png", full), ("b.png", half)):
        write_mask(full, ours / name)
        write_mask(mask, theirs / name)
    assert agreement(tmp_path / "ours", theirs) == pytest.approx(0.75)
