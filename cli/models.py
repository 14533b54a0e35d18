"""`isicrt models`: the models that ship, and what is known about each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isicrt._command import NamedPath
from isicrt.engine.errors import IsicrtError, MissingDependencyError, ModelError, install_line

if TYPE_CHECKING:
    from isicrt.engine.card import ModelCard


@click.command("models")
@click.argument("model", required=False, metavar="[MODEL | verify FILE]")
@click.argument("file", required=False, metavar="", type=NamedPath(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the card, or all cards, as JSON.")
def command(model: str | None, file: Path | None, as_json: bool) -> None:
    """List the models that ship with isicrt, or show what is known about one: MODEL is a name or a file.

    `isicrt models verify FILE` checks an .onnx, a .plan, a checkpoint (.pt), a recipe (.yaml) or a model that ships
    before you trust it, and says what it checked; the exit code is 1 if it did not pass, and 3 if it cannot be checked
    here because a package is not installed.
    """
    from isicrt.engine import shipped

    if model == "verify" and not (file is None and Path(model).is_file()):
        if file is None:
            raise click.UsageError("Missing argument 'FILE': isicrt models verify FILE")
        _verify(shipped.resolve(file) if not file.exists() and str(file) in shipped.names() else file, as_json)
        return
    if file is not None:
        raise click.UsageError(f"Got unexpected extra argument ({file})")
    if model is not None:
        card = _read_card(shipped.resolve(model))
        click.echo(json.dumps(card.to_dict(), indent=2) if as_json else _describe(card))
        return
    files = [shipped.resolve(name) for name in shipped.names()]
    cards = [(file, _read_card(file)) for file in files]
    if as_json:
        click.echo(json.dumps([card.to_dict() for _, card in cards], indent=2))
    elif cards:
        _print_table(cards)
    else:
        click.echo("No model ships with this copy of isicrt. Train one with: isicrt train")


class CannotCheckError(click.ClickException):
    """A file of which nothing can be said, good or bad."""

    exit_code = 3


def _verify(file: Path, as_json: bool) -> None:
    checked: list[str] = []
    problem: IsicrtError | CannotCheckError | None = None
    try:
        checked = _check(file)
    except (IsicrtError, CannotCheckError) as error:
        problem = error
    if as_json:
        passed = None if isinstance(problem, CannotCheckError) else problem is None
        reason = None if problem is None else str(problem)
        found = {"file": str(file), "passed": passed, "checked": checked, "reason": reason}
        click.echo(json.dumps(found, indent=2))
    if problem is not None:
        raise problem
    if not as_json:
        click.echo(f"{file}: passed")
        for line in checked:
            click.echo(f"  {line}")


def _check(file: Path) -> list[str]:
    """What was checked. Raises IsicrtError where it did not pass, and CannotCheckError."""
    from isicrt.cli.model_check import verify

    try:
        return verify(file)
    except MissingDependencyError as error:
        raise CannotCheckError(f"{file}: cannot be checked here: {error}") from error
    except IsicrtError:
        raise
    except ImportError as error:  # it says nothing of the file
        reason = f"{error.name} is not installed" if isinstance(error, ModuleNotFoundError) else str(error)
        needed = file.suffix.lower() not in (".onnx", ".plan")
        install = install_line("train") if needed else "pip install . in isicrt's repository"
        raise CannotCheckError(f"{file}: cannot be checked here: {reason}. Install it with: {install}") from error
    except Exception as error:  # the libraries that read it raise whatever a stranger's file makes them run into
        reason = str(error).strip() or "no reason given"
        raise ModelError(f"{file}: did not pass: {type(error).__name__}: {reason}") from error


def _read_card(path: Path) -> ModelCard:
    if path.suffix.lower() == ".plan":  # its card is readable where its GPU is not
        from isicrt.engine.plan import read_plan

        return read_plan(path)[0]
    if path.suffix.lower() == ".pt":
        try:
            from isicrt.trainer.checkpoint import load
        except ImportError as error:
            raise MissingDependencyError(error.name or "torch", "train", str(error)) from error
        return load(path)[0]
    from isicrt.engine.runtime import open_runtime

    with open_runtime(path, threads=1) as runtime:
        return runtime.card


def _describe(card: ModelCard) -> str:
    lines = []
    about = card.to_dict()
    width = max(map(len, about)) + 2
    for name, value in about.items():
        if isinstance(value, Mapping):
            value = json.dumps(value)
        lines.append(f"{name + ':':<{width}}{value}")
    return "\n".join(lines)


def _print_table(cards: list[tuple[Path, ModelCard]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("Name", "Architecture", "Input", "Precision"):
        table.add_column(heading, no_wrap=True)
    for heading in ("MB", "Jaccard", "Dice"):
        table.add_column(heading, justify="right", no_wrap=True)
    notes = []
    for path, card in cards:
        data_set, scores = _headline(card.scores)
        table.add_row(
            card.name,
            card.architecture,
            f"{card.input_height} x {card.input_width}",
            card.precision,
            f"{path.stat().st_size / 1e6:.1f}",
            *(f"{scores[key]:.3f}" if key in scores else "-" for key in ("jaccard", "dice")),
        )
        learned = card.training.get("training_images")
        said = [f"trained on {learned} images"] if learned else []
        said += [f"mean of {card.views} views of each image"] if card.views > 1 else []
        if card.second_look:
            zoom = " and zooms in on what it found" if card.second_look_zoom else ""
            said.append(f"looks again where its confidence is below {card.second_look:g}{zoom}")
        notes.append(f"{card.name}: " + "; ".join([*said, f"scores on {data_set}" if scores else "no scores"]))
    Console().print(table)
    click.echo("\n" + "\n".join(notes))


def _headline(scores: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The first data set that has a Jaccard index, with its scores."""
    for data_set, values in scores.items():
        if isinstance(values, Mapping) and "jaccard" in values:
            return data_set, values
    return "-", {}
