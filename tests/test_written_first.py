"""A command writes its files before it prints, so that nothing is lost where nobody reads what it prints."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import rich.console
from click.testing import CliRunner

COMMANDS = {
    "evaluate": ("isicrt.cli.evaluate:command", "MODEL --data DATA --json OUT --csv OUT2"),
    "bench": (
        "isicrt.cli.bench:command",
        "--model MODEL --images DATA/images --quick --repeats 1 --json OUT --csv OUT2",
    ),
    "check-parity": ("isicrt.cli.check_parity:command", "MODEL MODEL --images DATA/images --json OUT"),
    "data audit": ("isicrt.cli.data:audit", "--data DATA --json OUT"),
    "ceilings": ("isicrt.benchmarks.ceilings:main", "--model MODEL --images DATA/images --limit 2 --json OUT"),
    "robustness": ("isicrt.benchmarks.robustness:command", "MODEL --data DATA --json OUT"),
    "gpu_host": (
        "isicrt.benchmarks.gpu_host:main",
        "--images DATA/images --count 8 --own-count 8 --processes 1 --repeats 1 --json OUT",
    ),
    "memory": (
        "isicrt.benchmarks.memory:command",
        "--images DATA/images --model MODEL --counts 2 --batch-sizes 2 --large-images DATA/images --large-count 1 "
        "--json OUT",
    ),
    "peers": (
        "isicrt.benchmarks.peers.__main__:command",
        "--images DATA/images --model MODEL --runs 1 --peers opencv-onnx --json OUT --markdown OUT2",
    ),
}

needs_full = pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_pipe_that_is_closed_costs_no_file(
    name: str, darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, line = COMMANDS[name]
    module, attribute = place.split(":")
    command = getattr(importlib.import_module(module), attribute)
    echo, show = click.echo, rich.console.Console.print

    def closed_echo(message: Any = None, *arguments: Any, err: bool = False, **options: Any) -> None:
        if not err:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        echo(message, *arguments, err=err, **options)

    def closed_print(console: rich.console.Console, *arguments: Any, **options: Any) -> None:
        if not console.stderr:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        show(console, *arguments, **options)

    monkeypatch.setattr(click, "echo", closed_echo)
    monkeypatch.setattr(rich.console.Console, "print", closed_print)
    words = {"MODEL": str(darkness_onnx), "DATA": str(rendered_pairs), "OUT": str(tmp_path / "a")}
    words |= {"OUT2": str(tmp_path / "b"), "DATA/images": str(rendered_pairs / "images")}
    result = CliRunner().invoke(command, [words.get(word, word) for word in line.split()])
    assert result.exit_code == 1, result.output
    assert "rror" not in result.output
    for out in ("OUT", "OUT2"):
        assert (out not in line.split()) or Path(words[out]).stat().st_size > 0


MAIN = "from isicrt.cli.main import main; main()"
MODULE = """
import click
from isicrt._command import ModuleCommand
click.command(cls=ModuleCommand)(lambda: click.echo("x" * 20000))()
"""


@needs_full
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["-c", MAIN, "--help"], ["-c", MAIN, "models"], ["-c", MODULE]])
def test_a_full_disk_behind_the_standard_output_is_one_line(arguments: list[str], unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=env)
    assert done.stderr == "Error: the standard output cannot be written: No space left on device\n"
    assert done.returncode == 1
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize("arguments", [["-c", MAIN, "models"], ["-c", MODULE]])
def test_a_closed_pipe_ends_a_command_quietly(arguments: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 1
