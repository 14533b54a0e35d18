"""What no option of any command takes."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from isicrt import export
from isicrt._command import NamedPath, Number
from isicrt.cli.main import COMMANDS, group


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


def test_every_path_and_every_number_is_of_these_types() -> None:
    assert [(*words, p.name) for words, p in PARAMETERS if _is_unchecked(p)] == []


def test_so_is_every_one_of_a_module_of_export() -> None:
    modules = [
        importlib.import_module(f"isicrt.export.{module.name}") for module in pkgutil.iter_modules(export.__path__)
    ]
    commands = {m.__name__: m.main for m in modules if isinstance(getattr(m, "main", None), click.Command)}
    assert {"isicrt.export.quantisation", "isicrt.export.views"} <= commands.keys()
    assert [(name, p.name) for name, main in commands.items() for p in main.params if _is_unchecked(p)] == []


def _is_unchecked(parameter: click.Parameter) -> bool:
    of_click = (click.Path, click.FloatRange, type(click.FLOAT))
    return isinstance(parameter.type, of_click) and not isinstance(parameter.type, (NamedPath, Number))


@pytest.mark.parametrize(
    ("module", "option"),
    [
        ("isicrt.export.quantisation", "--max-loss"),
        ("isicrt.export.second_look", "--below"),
        ("isicrt.export.second_look", "--zoom"),
        ("isicrt.benchmarks.decoding", "--max-change"),
        ("isicrt.benchmarks.plain_unet", "--gmac"),
    ],
)
def test_a_number_of_a_modules_own_command_is_finite(module: str, option: str) -> None:
    loaded = importlib.import_module(module)
    result = CliRunner().invoke(getattr(loaded, "main", None) or loaded.command, [option, "nan"])
    assert result.exit_code == 2, result.output
    assert f"Invalid value for '{option}': nan is not a number to go by" in result.stderr


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
