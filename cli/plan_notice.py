"""What is said before a plan is opened."""

from __future__ import annotations

from pathlib import Path

import click


def say_plan_is_code(model: Path) -> None:
    """One line on the standard error if the model is a plan: whoever opens one runs what is in it."""
    if model.suffix.lower() == ".plan":
        click.echo(f"{model.name}: a plan is code that runs on this machine; open only plans that you trust.", err=True)
