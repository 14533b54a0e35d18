"""The script that a machine with a GPU runs. What it would do is tested here, and what it does where there is none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_suite.sh"
STEPS = ("doctor", "engines", "tests", "parity", "bench", "speed", "train")

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")


def _suite(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("OUT", "ISICRT_DATA", "SITE_PARTS")}
    return subprocess.run(
        ["bash", str(SUITE), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=clean | {"PYTHON": sys.executable} | environment,
    )


def test_is_a_shell_script() -> None:
    assert os.access(SUITE, os.X_OK)
    assert subprocess.run(["bash", "-n", str(SUITE)]).returncode == 0


def test_a_dry_run_prints_every_step_and_does_nothing(tmp_path: Path) -> None:
    out = tmp_path / "results"
    done = _suite("--dry-run", "--out", out, "--data", tmp_path, WORK=str(tmp_path / "work"))
    assert done.returncode == 0, done.stderr
    assert [line[1:-1] for line in done.stdout.splitlines() if line.startswith("[")] == list(STEPS)
    for part in (
        "--target tensorrt ",
        "--compute-capability 8.0",
        "--compute-capability current",
        "-m pytest -q -m gpu",
        "isicrt.benchmarks.gpu_dali",
        "--decode cpu",
        "--decode gpu",
        "isicrt.benchmarks.gpu_speed",
        "--recipe segnet-attention-atrous-light",
    ):
        assert part in done.stdout.replace("\\", "").replace("\n", " ")
    assert not list(tmp_path.iterdir())


def test_every_command_of_the_dry_run_has_the_options_that_it_is_given(tmp_path: Path) -> None:
    """Each is called with --help behind its options: Click would refuse one that it does not know."""
    done = _suite("--dry-run", "--data", tmp_path)
    commands = {}
    for line in done.stdout.splitlines():
        _, _, command = line.partition(" s): ")
        if " -m isicrt." in f" {command}" and not command.startswith("bash"):
            words = subprocess.run(["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True).stdout
            words_list = words.splitlines()
            commands[" ".join(words_list[2:4])] = words_list
    assert len(commands) >= 6
    for words_list in commands.values():
        options = [word for word in words_list if word.startswith("--")]
        module_end = 4 if words_list[2] == "isicrt.cli.main" else 3
        shown = subprocess.run(
            [*words_list[:module_end], "--help"], capture_output=True, text=True, cwd=SUITE.parents[1], timeout=120
        )
        assert shown.returncode == 0, shown.stderr
        for option in options:
            assert option in shown.stdout, words_list


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "unknown: fly"),
        (["--out"], "--out needs a value"),
        (["--data", "/nowhere/at/all"], "no such folder"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str) -> None:
    done = _suite(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_help_is_the_head_of_the_script() -> None:
    done = _suite("--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Everything that needs an NVIDIA GPU")
    assert all(f"  {step}" in done.stdout for step in STEPS)
    assert "set -uo" not in done.stdout


def test_a_step_leaves_its_results_and_a_summary(tmp_path: Path) -> None:
    done = _suite("--out", tmp_path / "out", "doctor", WORK=str(tmp_path / "work"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "out" / "doctor.json").read_text())["can"]["segment"] is True
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert summary.startswith("doctor ")
    assert " rc 0 " in summary
    assert (tmp_path / "out" / "suite.log").read_text().startswith("=== doctor: ")


def test_without_a_plan_parity_fails_and_says_why(tmp_path: Path) -> None:
    done = _suite("--out", tmp_path / "out", "parity", "train", WORK=str(tmp_path / "work"))
    assert done.returncode == 1
    assert "parity: skipped, no plan runs here" in done.stdout
    assert "train: skipped, it needs --data" in done.stdout


def test_packages_that_were_carried_are_unpacked(tmp_path: Path) -> None:
    (tmp_path / "carried_package.py").write_text("")
    subprocess.run(["tar", "cJf", "site.tar.xz", "carried_package.py"], cwd=tmp_path, check=True)
    subprocess.run(["split", "-b", "100", "-d", "site.tar.xz", "part."], cwd=tmp_path, check=True)
    site = tmp_path / "site"
    done = _suite(
        *("--out", tmp_path / "out", "parity"),
        **{"SITE_PARTS": f"{tmp_path}/part.*", "SITE": str(site), "WORK": str(tmp_path / "work")},
    )
    assert done.returncode == 1
    assert (site / "carried_package.py").is_file()
