"""The script that a machine with a GPU runs. What it would do is tested here, and what it does where there is none."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from isicrt.engine.cuda_driver import find_gpu

SUITE = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_suite.sh"
STEPS = ("doctor", "engines", "parity", "tests", "host", "compile", "speed", "queue", "bench", "dali", "train", "table")
"""In this order: the most important first."""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")


def _suite(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("OUT", "ISICRT_DATA", "ISICRT_SHARED_DATA", "SITE_PARTS")}
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
        "--fp16 --batch-size 256 ",
        "-m pytest -q -ra -m gpu -W default",
        "isicrt.benchmarks.gpu_dali",
        "isicrt.benchmarks.gpu_parity",
        f"--masks {tmp_path}/test/masks --decode gpu",
        "--decode cpu",
        "--decode gpu",
        "isicrt.benchmarks.gpu_host",
        "isicrt.benchmarks.gpu_speed",
        "isicrt.benchmarks.gpu_queue",
        "--recipe segnet-attention-atrous-light",
        f"isicrt.benchmarks.gpu_training --data {tmp_path} --encoder-weights none --out {out} --within 400",
    ):
        assert part in done.stdout.replace("\\", "").replace("\n", " ")
    assert not list(tmp_path.iterdir())


def test_the_benchmark_is_given_one_batch_size_at_a_time() -> None:
    line = next(line for line in _suite("--dry-run", "bench").stdout.splitlines() if line.startswith("bench "))
    words = line.split()
    sizes = [int(words[n + 1]) for n, word in enumerate(words) if word == "--batch-size"]
    assert sizes == [1, 2, 4, 8, 16, 32, 64, 128, 256]


def test_a_build_of_tensorrt_has_the_time_that_it_takes_and_the_step_fits_into_a_call() -> None:
    """A first one took 130 s for a batch of 8 and 73 s for 256 at a lower optimisation level; a call has 600 s."""
    done = _suite("--dry-run", "engines")
    limits = dict(re.findall(r"^(build \S+|run .*?) \(at most (\d+) s\)", done.stdout, re.MULTILINE))
    assert (limits["build tensorrt"], limits["build tensorrt-rtx"]) == ("400", "120")
    assert sum(int(limit) for name, limit in limits.items() if "rtx" not in name) <= 590


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
        (["--within", "soon"], "not a number of seconds"),
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
    done = _suite("--out", tmp_path / "out", "parity", "train", "table", WORK=str(tmp_path / "work"))
    assert done.returncode == 1
    assert "parity: no plan runs here, torch alone" in done.stdout
    assert "parity, torch in the plan's place" in done.stdout
    assert "train: skipped, it needs --data" in done.stdout
    assert "table: skipped, it needs --data" in done.stdout


@pytest.mark.parametrize(("within", "limit"), [("40", "40"), ("9999", "590")])
def test_no_command_outlasts_the_time_of_all(within: str, limit: str) -> None:
    done = _suite("--dry-run", "--within", within, "speed")
    found = re.findall(r"^speed \(at most (\d+) s\)", done.stdout, re.MULTILINE)
    assert len(found) == 1
    assert int(limit) - 5 <= int(found[0]) <= int(limit)
    own = re.findall(r"--within (\d+)", done.stdout)
    assert len(own) == 1
    assert int(within) - 25 <= int(own[0]) <= int(within) - 20


def test_the_table_is_told_the_time_that_is_left(tmp_path: Path) -> None:
    done = _suite("--dry-run", "--within", "300", "--data", tmp_path, "--encoder-weights", "w.pth", "table")
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("table "))
    left = int(line.split()[-1])
    assert 285 <= left <= 295
    assert f"at most {left + 5} s" in line
    assert " --encoder-weights w.pth " in line


def test_nothing_is_begun_in_the_last_ten_seconds() -> None:
    done = _suite("--dry-run", "--within", "9", "doctor", "tests")
    assert "doctor: not begun, the time was up" in done.stdout
    assert "pytest -m gpu: not begun, the time was up" in done.stdout


@pytest.mark.parametrize(
    ("last", "code", "passed"),
    [
        ("3 passed, 44 skipped, 5070 deselected in 12.30s", 0, True),
        ("47 skipped, 5070 deselected in 49.42s", 0, False),
        ("1 failed, 10 passed in 61.00s (0:01:01)", 1, True),
        ("no tests ran in 0.01s", 5, False),
        ("2 skipped, 1 error in 3.00s", 1, False),
    ],
)
def test_tests_that_were_all_skipped_are_no_success(tmp_path: Path, last: str, code: int, passed: bool) -> None:
    """Pytest's own exit code is 0 then. Its last line is in the summary."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase $* in *pytest*) echo "{last}"; exit {code};; esac\n')
    python.chmod(0o755)
    done = _suite("--out", tmp_path / "out", "tests", PYTHON=str(python), WORK=str(tmp_path / "work"))
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert f"\n  {last}\n" in summary
    assert ("NOTHING was tested" in summary) is not passed
    assert done.returncode == (0 if passed and not code else 1)


def test_tests_that_were_ended_say_so(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase $* in *pytest*) echo "ss...."; kill -9 $$;; esac\n')
    python.chmod(0o755)
    done = _suite("--out", tmp_path / "out", "tests", PYTHON=str(python), WORK=str(tmp_path / "work"))
    assert done.returncode == 1
    assert "  it did not come to its end" in done.stdout


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU here")
def test_without_a_gpu_a_step_that_is_content_with_the_cpu_is_no_success(tmp_path: Path) -> None:
    """The commands are replaced by one that succeeds; whether there is a GPU is asked in earnest."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase $1 in -c) exec {sys.executable} "$@";; esac\n')
    python.chmod(0o755)
    environment = {"PYTHON": str(python), "WORK": str(tmp_path / "work")}
    for step, code in (("host", 0), ("speed", 1), ("bench", 1)):
        done = _suite("--out", tmp_path / "out", step, **environment)
        assert done.returncode == code, done.stdout
        assert (f"{step}: no NVIDIA GPU with a driver here" in done.stdout) is bool(code)


@pytest.mark.parametrize(
    ("built", "said", "tensorrt", "code"),
    [
        # What TensorRT for RTX says on a GPU of 9.0, when it is to build for it, and of plans for others.
        ("has 9.0. Use --target tensorrt for it.", "does not run it (UNSUPPORTED_CC). Build it again", 0, 0),
        ("has 9.0. Use --target tensorrt for it.", "does not run it (UNSUPPORTED_CC). Build it again", 1, 1),
        ("has 9.0. Use --target tensorrt for it.", "could not run a batch of 256", 0, 1),
        ("the plan was built but does not load: (UNSUPPORTED_CC).", "does not run it (UNSUPPORTED_CC).", 0, 1),
    ],
    ids=["refused", "nothing runs", "a plan fails", "a build fails"],
)
def test_a_gpu_that_tensorrt_for_rtx_does_not_know_is_no_failure_where_a_plan_runs(
    tmp_path: Path, built: str, said: str, tensorrt: int, code: int
) -> None:
    for name in ("tensorrt", "tensorrt-rtx", "tensorrt-rtx-8.0", "tensorrt-rtx-current"):
        (tmp_path / "work" / f"engine-{name}").mkdir(parents=True)
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\ncase $* in\n"
        f'*build-engine*"--compute-capability current"*) echo "Error: {built}"; exit 1;;\n'
        f'*segment*engine-tensorrt-rtx*) echo "Error: {said}"; exit 1;;\n'
        f"*segment*engine-tensorrt/*) exit {tensorrt};;\nesac\n"
    )
    python.chmod(0o755)
    done = _suite("--out", tmp_path / "out", "engines", PYTHON=str(python), WORK=str(tmp_path / "work"))
    assert done.returncode == code, done.stdout
    lines = {line.partition(" rc ")[0].strip(): line for line in done.stdout.splitlines()}
    assert lines["build tensorrt-rtx-current"].endswith("s") is ("Use --target" not in built)
    for name in ("run tensorrt-rtx", "run tensorrt-rtx-8.0"):
        assert lines[name].endswith("refused here: not for this GPU's compute capability") is ("_CC" in said)
    assert ("engines: NONE runs here" in done.stdout) is bool(tensorrt)
    assert (tmp_path / "work" / "engine-tensorrt" / "ran").is_file() is not bool(tensorrt)


@pytest.mark.parametrize(("name", "found"), [("isic2016", True), ("other", False)])
def test_the_tests_find_the_data_that_the_suite_is_given(tmp_path: Path, name: str, found: bool) -> None:
    """The suite's commands are replaced by one that says what it sees."""
    (tmp_path / name / "test" / "images").mkdir(parents=True)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "sees ${ISICRT_SHARED_DATA:-nothing} for $*"\n')
    python.chmod(0o755)
    out = tmp_path / "out"
    _suite("--out", out, "--data", tmp_path / name, "tests", PYTHON=str(python), WORK=str(tmp_path / "work"))
    log = (out / "suite.log").read_text()
    assert f"sees {tmp_path if found else 'nothing'} for -m pytest -q -ra -m gpu -W default" in log


@pytest.mark.parametrize("masks", ["", "masks"])
def test_masks_go_where_they_are_wanted_and_what_was_compiled_stays(tmp_path: Path, masks: str) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "masks to $TMPDIR, compiled in $TORCHINDUCTOR_CACHE_DIR: $*"\n')
    python.chmod(0o755)
    out, usual = tmp_path / "out", tmp_path / "usual"
    wanted = tmp_path / masks if masks else usual
    usual.mkdir()
    places = {"TMPDIR": str(usual), "TORCHINDUCTOR_CACHE_DIR": "", "PYTHON": str(python)}
    _suite("--out", out, "compile", "speed", MASKS=str(wanted) if masks else "", **places)
    found = [line for line in (out / "suite.log").read_text().splitlines() if line.startswith("masks to ")]
    kept = f"compiled in {usual}/isicrt-gpu-suite/torchinductor:"
    assert len(found) == 2
    assert found[0].startswith(f"masks to {usual}, {kept} -m isicrt.benchmarks.gpu_torch")
    assert found[1].startswith(f"masks to {wanted}, {kept} -m isicrt.benchmarks.gpu_speed")


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
