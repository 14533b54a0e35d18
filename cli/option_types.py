"""Kinds of values that options take."""

from __future__ import annotations

import math
from typing import Any

import click


class NamedPath(click.Path):
    """A path that is not empty: to `Path` an empty one is the current folder, which nobody who says "" means."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty; the current folder is .", param, ctx)
        return super().convert(value, param, ctx)


class Number(click.FloatRange):
    """A number in a range; what is not finite is in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a number to go by", param, ctx)
        return number
