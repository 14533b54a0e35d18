"""Commands of isicrt and of single modules (``python -m isicrt.benchmarks.ceilings``): what goes wrong is a line for
people, and no traceback."""

from __future__ import annotations

import errno
import math
import os
import sys
import unicodedata
from typing import Any

import click

from isicrt.engine.errors import IsicrtError, SettingsError


def explained(error: IsicrtError | OSError) -> click.ClickException:
    """What a command ends with: exit code 2 for settings, 1 for everything else."""
    if isinstance(error, SettingsError):
        return click.UsageError(spelled_out(error, but="\n"))
    if isinstance(error, OSError) and error.filename and error.strerror:
        return click.ClickException(f"{spelled_out(error.filename)}: {error.strerror}")
    if isinstance(error, OSError) and (lost := unprinted(error)) is not None:
        return lost
    return click.ClickException(spelled_out(error, but="\n"))


def spelled_out(text: object, but: str = "") -> str:
    """File names may hold what a terminal would obey or could not show; of that, only what stands in `but` stays.
    Spaces of all kinds stay too, so that a name can be copied: macOS puts a narrow one into those of screenshots."""
    return "".join(c if _is_shown(c) or c in but else c.encode("unicode_escape").decode() for c in str(text))


def _is_shown(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


_OF_A_STREAM = frozenset({errno.ENOSPC, errno.EIO, errno.EPIPE, errno.EFBIG, errno.EBADF, errno.EDQUOT})
"""Why a stream may take no more."""


def unprinted(error: OSError) -> click.ClickException | None:
    """What a command ends with whose standard output takes no more, such as one that goes to a full disk; None where
    the error is another one. What was not printed is dropped: Python would try once more at its end, and complain."""
    if error.filename is not None or error.errno not in _OF_A_STREAM:
        return None
    try:
        place = sys.stdout.fileno()
    except (AttributeError, OSError):  # a test's, or none at all
        return None
    try:
        sys.stdout.flush()
        os.write(place, b"\n")  # unbuffered, nothing is left to flush
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, place)
        os.close(nowhere)
        return click.ClickException(f"the standard output cannot be written: {error.strerror or error}")
    return None


class Number(click.FloatRange):
    """A number in a range; what is not finite is in none: as a bound, nan would let everything pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a number to go by", param, ctx)
        return number


class NamedPath(click.Path):
    """A path that is not empty: to `Path` an empty one is the current folder, which nobody who says "" means."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty; the current folder is .", param, ctx)
        return super().convert(value, param, ctx)


class ModuleCommand(click.Command):
    """A module's own command, for ``@click.command(cls=ModuleCommand)``."""

    def invoke(self, ctx: click.Context) -> Any:
        """As click's; errors of isicrt and of the disk become click's. What a closed pipe means click knows itself."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (IsicrtError, OSError) as error:
            raise explained(error) from error
