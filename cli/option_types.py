"""Kinds of values that options take."""

from __future__ import annotations

from typing import Any

import click

from isicrt._command import Number as Number  # modules' own commands have it too


class NamedPath(click.Path):
    """A path that is not empty: to `Path` an empty one is the current folder, which nobody who says "" means."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty; the current folder is .", param, ctx)
        return super().convert(value, param, ctx)
