"""Each peer does the work, as a process of its own, and its masks are isicrt's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from isicrt.benchmarks.peers import __main__ as peers_main
from isicrt.benchmarks.peers.__main__ import _float_model, command
from isicrt.benchmarks.peers.race import PEERS, Entrant, Race, _note, agreement, race_markdown
from isicrt.benchmarks.workload import open_workload
from isicrt.engine import shipped
from isicrt.engine.errors import SettingsError
from isicrt.engine.masks import write_mask
from isicrt.engine.model_identity import file_sha256
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.pipeline import run_jobs
from isicrt.engine.sources import find_jobs
from tests.benchmarks.sample_report import sample_report


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
    assert data["files"] == [{"name": "darkness.onnx", "sha256": file_sha256(darkness_onnx)}]
    workload = open_workload(rendered_pairs / "images", None, tmp_path / "none")
    assert data["images_sha256"] == workload.read_ahead()
    (peer,) = data["peers"]
    assert len(peer["seconds"]) == len(peer["process_seconds"]) == len(data["isicrt"]["seconds"]) == 2
    assert peer["agreement"] > 0.85
    assert peer["ratio_low"] <= peer["ratio_high"]
    assert data["not_run"] == [name for name in PEERS if name != "opencv-onnx"]
    assert "fewer than 3 rounds say nothing about noise" in data["warnings"]
    assert data["busy_processes"] == 0
    assert Path(files[1]).read_text() in result.output

    other = CliRunner().invoke(
        command, [*arguments[:4], *arguments[6:8], "--runs", "1", "--baseline", str(darkness_onnx), "--load", "2"]
    )
    assert other.exit_code == 0, other.output
    assert "| other network |" in other.output
    assert "Measured beside 2 processes that kept a core busy each." in other.output.splitlines()


def test_a_loaded_race_says_so() -> None:
    race = _sample_race(2.0, 2.0, 2.0)
    assert "Measured beside" not in race.to_markdown()
    loaded = replace(race, busy_processes=1)
    assert loaded.to_dict()["busy_processes"] == 1
    assert "Measured beside a process that kept a core busy." in loaded.to_markdown().splitlines()
    older = {name: value for name, value in race.to_dict().items() if name != "busy_processes"}
    assert race_markdown(older) == race.to_markdown()


def test_a_peer_that_could_not_compile_is_not_called_compiled() -> None:
    data = _sample_race(2.0, 2.0, 2.0).to_dict()
    (peer,) = data["peers"]
    for compiled, shown in ((True, False), ("no: InvalidCxxCompiler", True)):
        peer |= {"name": "dataloader", "facts": {"batch_size": 8, "compiled": compiled}}
        lines = race_markdown(data).splitlines()
        assert ("Eager: dataloader (torch.compile: no: InvalidCxxCompiler)." in lines) == shown


def test_no_entrant_is_held_to_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
    for name in names:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("KEPT", "yes")
    report, entrant = tmp_path / "r.json", Entrant("isicrt")
    code = f"import json, os; json.dump({{'seconds': 1, 'names': list(os.environ)}}, open({str(report)!r}, 'w'))"
    _note(entrant, [sys.executable, "-c", code], report, lambda data: data)
    assert not names & set(entrant.facts["names"])
    assert "KEPT" in entrant.facts["names"]


def _sample_race(*seconds: float, load_average: float | None = 0.1, not_run: tuple[str, ...] = ()) -> Race:
    """isicrt takes a second in each round and `opencv-onnx` so many."""
    return Race(
        command="python -m isicrt.benchmarks.peers",
        date="2026-01-02T03:04:05+00:00",
        model="m.onnx",
        baseline=None,
        images=10,
        megabytes=1.0,
        isicrt=_sample_entrant("isicrt", *(1.0 for _ in seconds)),
        peers=[_sample_entrant("opencv-onnx", *seconds)],
        left_out={"rembg": ["rembg"]},
        not_run=not_run,
        environment=replace(sample_report().environment, load_average=load_average),
    )


def _sample_entrant(name: str, *seconds: float) -> Entrant:
    return Entrant(name, [*seconds], [*seconds], [*seconds], [100.0 for _ in seconds])


NOISY = (
    "the machine is noisy: the ratios below did not settle within 10%. Quote none of them; close other programs and "
    "measure again"
)


@pytest.mark.parametrize(
    ("race", "expected"),
    [
        (_sample_race(2.0, 2.0, 2.0), []),
        (_sample_race(2.0, 2.19, 2.0), []),
        (_sample_race(2.0, 2.3, 2.0), [NOISY, "opencv-onnx: the ratios of 3 rounds differ by 15%"]),
        # An outlier of the first round counts too: the table prints the range of all rounds.
        (_sample_race(3.0, 2.0, 2.0, 2.0), [NOISY, "opencv-onnx: the ratios of 4 rounds differ by 50%"]),
        (_sample_race(2.0, 2.0, 2.0, load_average=1.0), []),
        (_sample_race(2.0, 2.0, 2.0, load_average=None), []),
        (_sample_race(2.0, 2.0), ["fewer than 3 rounds say nothing about noise"]),
        # The same sentence as bench's.
        (_sample_race(2.0, 2.0, 2.0, load_average=1.7), sample_report(load_average=1.7).warnings),
    ],
)
def test_warnings_stand_under_the_table_and_in_the_json(race: Race, expected: list[str]) -> None:
    assert race.warnings == expected
    assert race.to_dict()["warnings"] == expected
    lines = race.to_markdown().splitlines()
    assert [line for line in lines if line.startswith(">")] == [f"> - {line}" for line in expected]
    if expected:
        assert lines[-len(expected) - 1] == "", "a paragraph of its own, the last"


def test_peers_that_nobody_asked_for_are_named() -> None:
    named = _sample_race(2.0, 2.0, 2.0, not_run=("dataloader", "openvino"))
    assert named.to_dict()["not_run"] == ["dataloader", "openvino"]
    assert named.to_dict()["left_out"] == {"rembg": ["rembg"]}
    assert "Not run: dataloader, openvino (--peers named others)." in named.to_markdown().splitlines()
    assert "Not run" not in _sample_race(2.0, 2.0, 2.0).to_markdown()


def test_the_machine_is_looked_at_before_the_first_run(
    darkness_onnx: Path, rendered_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    run_isicrt = peers_main.run_isicrt

    def note_start(entrant: Entrant, model: Path, files: Path, out: Path) -> None:
        started.append(entrant.name)
        run_isicrt(entrant, model, files, out)

    monkeypatch.setattr(peers_main, "run_isicrt", note_start)
    # The runs load the machine: afterwards it would be busy.
    monkeypatch.setattr(os, "getloadavg", lambda: (777.0, 0.0, 0.0) if started else (555.0, 0.0, 0.0))
    arguments = ["--images", str(rendered_pairs / "images"), "--model", str(darkness_onnx), "--runs", "1"]
    result = CliRunner().invoke(command, [*arguments, "--peers", "opencv-onnx"])
    assert result.exit_code == 0, result.output
    assert "busy before the start: load average 555.0" in result.output


def test_a_peer_that_fails_costs_only_itself(
    darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = replace(PEERS["opencv-onnx"], name="dataloader", packages=(), module="no_such_module")
    monkeypatch.setitem(PEERS, "dataloader", broken)  # type: ignore[misc]
    arguments = ["--images", str(rendered_pairs / "images"), "--model", str(darkness_onnx), "--runs", "2"]
    result = CliRunner().invoke(
        command, [*arguments, "--peers", "dataloader,opencv-onnx", "--json", str(tmp_path / "r")]
    )
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "r").read_text())
    assert [peer["name"] for peer in data["peers"]] == ["opencv-onnx"]
    assert len(data["peers"][0]["seconds"]) == 2
    assert "no_such_module" in data["failed"]["dataloader"]
    assert "Failed: dataloader: " in result.output
    assert result.output.count("failed and is out of the race") == 1, "it is not tried again"

    alone = CliRunner().invoke(command, [*arguments, "--peers", "dataloader"])
    assert alone.exit_code == 1
    assert "no peer finished" in alone.output


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
