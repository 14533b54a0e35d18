"""The group: help, version, unknown commands, exit codes, and that every command can be loaded."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from isicrt import __version__
from isicrt.cli import main
from isicrt.cli.main import COMMANDS, group
from isicrt.engine.errors import DataError, MissingDependencyError, SettingsError
from isicrt.engine.shipped import DEFAULT
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_every_command(option: str) -> None:
    result = CliRunner().invoke(group, [option])
    assert result.exit_code == 0
    for name, (_, text) in COMMANDS.items():
        assert f"  {name}" in result.output
        assert text in result.output  # on one line


@pytest.mark.parametrize("name", ["bench", "evaluate", "segment"])
def test_help_names_the_default_model(name: str) -> None:
    result = CliRunner().invoke(group, [name, "--help"])
    assert re.search(rf"default:\s+{DEFAULT}\b", result.output, re.IGNORECASE)


def test_version() -> None:
    result = CliRunner().invoke(group, ["--version"])
    assert result.exit_code == 0
    assert result.output == f"isicrt, version {__version__}\n"


@pytest.mark.parametrize("arguments", [["nonsense"], ["--nonsense"]])
def test_unknown_words_are_usage_errors(arguments: list[str]) -> None:
    result = CliRunner().invoke(group, arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_loads_with_the_listed_help(name: str) -> None:
    module, text = COMMANDS[name]
    command = importlib.import_module(module).command
    assert isinstance(command, click.Command)
    assert group.get_command(click.Context(group), name) is command
    assert text.endswith(".")
    result = CliRunner().invoke(group, [name, "--help"])
    assert result.exit_code == 0
    assert f"{name} [OPTIONS]" in result.output


@pytest.mark.parametrize(("set_by_user", "expected"), [(None, "4"), ("20", "20")])
def test_threads_of_numpy_that_have_nothing_to_do_rest(set_by_user: str | None, expected: str) -> None:
    """The library reads it when it is loaded, which must come later."""
    code = (
        "import os, sys\n"
        "from isicrt.cli import main\n"
        "assert 'numpy' not in sys.modules\n"
        "sys.argv = ['isicrt', '--version']\n"
        "try:\n"
        "    main.main()\n"
        "finally:\n"
        "    print(os.environ['OPENBLAS_THREAD_TIMEOUT'])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_THREAD_TIMEOUT"}
    if set_by_user is not None:
        environment["OPENBLAS_THREAD_TIMEOUT"] = set_by_user
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines()[-1] == expected


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (SettingsError("--x: too small"), 2, "Error: --x: too small"),
        (DataError("a.jpg: torn"), 1, "Error: a.jpg: torn"),
        (MissingDependencyError("PyCUDA", "gpu"), 1, "pip install '.[gpu]'"),
    ],
)
def test_errors_become_exit_codes(monkeypatch, error: Exception, code: int, message: str) -> None:
    @click.command("models")
    def failing() -> None:
        raise error

    monkeypatch.setattr("isicrt.cli.models.command", failing)
    result = CliRunner().invoke(group, ["models"])
    assert result.exit_code == code
    assert message in result.output


@pytest.mark.parametrize(
    ("raised", "code"),
    [(KeyboardInterrupt(), 130), (click.Abort(), 130), (click.exceptions.Exit(1), 1), (DataError("torn"), 1)],
)
def test_the_process_ends_with_the_code(monkeypatch, raised: BaseException, code: int) -> None:
    @click.command("models")
    def failing() -> None:
        raise raised

    monkeypatch.setattr("isicrt.cli.models.command", failing)
    monkeypatch.setattr(sys, "argv", ["isicrt", "models"])
    with pytest.raises(SystemExit) as caught:
        main.main()
    assert caught.value.code == code


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["models", "--nonsense"], 2), (["models", "x"], 1)])
def test_as_a_process(arguments: list[str], code: int) -> None:
    done = subprocess.run([sys.executable, "-m", "isicrt.cli.main", *arguments], capture_output=True, check=False)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr


def test_the_process_ends_while_a_thread_of_a_run_is_in_native_code() -> None:
    """Python's own end takes such a thread down inside C++, and the process with it."""
    code = """
import sys, threading, time, click
from isicrt.cli import main
from isicrt.engine.shipped import DEFAULT
from isicrt.engine.errors import DataError
from isicrt.engine.run_threads import THREAD_PREFIX

def fail(*_):
    threading.Thread(target=time.sleep, args=(60,), name=THREAD_PREFIX + "worker-0", daemon=True).start()
    threading.Thread(target=time.sleep, args=(60,)).start()  # which Python would wait for
    raise DataError("torn")

click.Group.invoke = fail
sys.argv = ["isicrt", "models"]
main.main()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (result.returncode, result.stderr) == (1, "Error: torn\n")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cv2", "raise ImportError('libGL.so.1: cannot open shared object file')"),
        ("simplejpeg", "raise ModuleNotFoundError('no simplejpeg', name='simplejpeg')"),
        ("onnxruntime", "raise ImportError('no onnxruntime')"),
    ],
)
def test_a_base_package_that_cannot_be_imported_is_a_line(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / f"{name}.py").write_text(text)
    command = ["segment", "examples/images", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "isicrt.cli.main", *command],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "ISICRT_CPU_RUNTIME": "onnxruntime"},
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert text.split("'")[1] in done.stderr
    assert "pip install --force-reinstall ." in done.stderr
    assert len(done.stderr.splitlines()) == 1
