"""What goes wrong in a command is a line for people, and no traceback."""

from __future__ import annotations

import errno
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from isicrt._command import ModuleCommand
from isicrt.engine.errors import DataError, SettingsError
from isicrt.engine.masks import replace_file


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("no such image"), 1, "Error: no such image"),
        (SettingsError("--size 100: a multiple of 32"), 2, "Error: --size 100: a multiple of 32"),
        (FileNotFoundError(2, "No such file or directory", "a.json"), 1, "Error: a.json: No such file or directory"),
        (OSError("device lost"), 1, "Error: device lost"),
        (DataError("a.jpg: no image:\n  not\ta \x9b31mJPEG"), 1, "  not\\ta \\x9b31mJPEG"),
        (SettingsError("--out a\x1b[2Jb"), 2, "Error: --out a\\x1b[2Jb"),
        (FileNotFoundError(2, "Not there", "a\x1b[31m\nb"), 1, "Error: a\\x1b[31m\\nb: Not there"),
    ],
)
def test_an_error_is_a_line_and_an_exit_code(error: Exception, code: int, line: str) -> None:
    @click.command(cls=ModuleCommand)
    def command() -> None:
        raise error

    done = CliRunner().invoke(command)
    assert done.exit_code == code
    assert line in done.output.splitlines()
    assert isinstance(done.exception, SystemExit)


def test_a_file_that_cannot_be_written_is_named_as_it_was_given(tmp_path: Path) -> None:
    @click.command(cls=ModuleCommand)
    def command() -> None:
        replace_file(tmp_path / "gone" / "result.json", b"{}")

    done = CliRunner().invoke(command)
    assert done.output == f"Error: {tmp_path / 'gone' / 'result.json'}: No such file or directory\n"
    with pytest.raises(IsADirectoryError) as raised:
        replace_file(tmp_path, b"{}")
    assert (raised.value.filename, raised.value.filename2) == (str(tmp_path), None)


def test_whoever_reads_may_stop_reading() -> None:
    @click.command(cls=ModuleCommand)
    def command() -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    done = CliRunner().invoke(command)
    assert done.exit_code == 1
    assert not done.output


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    @click.command(cls=ModuleCommand)
    def command() -> None:
        raise KeyError("schema")

    assert isinstance(CliRunner().invoke(command).exception, KeyError)
