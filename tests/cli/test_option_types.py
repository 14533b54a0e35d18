"""What no option of any command takes."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from isicrt.cli.main import COMMANDS, group
from isicrt.cli.option_types import NamedPath


def _parameters(
    command: click.Command, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Parameter]]:
    """Every parameter of a command and of those below it, with the words that call the command."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _parameters(below, (*words, name))
        return
    yield from ((words, parameter) for parameter in command.params)


PARAMETERS = list(_parameters(group))
NUMBERS = [(*words, p.opts[0]) for words, p in PARAMETERS if isinstance(p.type, (click.FloatRange, type(click.FLOAT)))]

PATHS = [
    (*words, *p.opts[:1]) for words, p in PARAMETERS if isinstance(p, click.Option) and isinstance(p.type, NamedPath)
]


def test_every_command_is_walked() -> None:
    assert {words[0] for words, _ in PARAMETERS} == set(COMMANDS)
    assert ("check-parity", "--min-jaccard") in NUMBERS
    assert ("data", "isic2016", "--out") in PATHS


@pytest.mark.parametrize("number", ["nan", "inf"])
@pytest.mark.parametrize("words", NUMBERS, ids=" ".join)
def test_a_number_is_finite(words: tuple[str, ...], number: str) -> None:
    """A gate whose bound is nan would let everything pass."""
    result = CliRunner().invoke(group, [*words, number])
    assert result.exit_code == 2, result.output
    assert f"Invalid value for '{words[-1]}'" in result.stderr


@pytest.mark.parametrize("words", PATHS, ids=" ".join)
def test_a_path_is_not_empty(words: tuple[str, ...]) -> None:
    """What the shell makes of "$DATA" where that is not set; to `Path` it is the current folder."""
    result = CliRunner().invoke(group, [*words, ""])
    assert result.exit_code == 2, result.output
    assert f"Invalid value for '{words[-1]}'" in result.stderr
    assert "it is empty; the current folder is ." in result.stderr
