"""Commands of isicrt and of single modules (``python -m isicrt.benchmarks.ceilings``): what goes wrong is a line for
people, and no traceback."""

from __future__ import annotations

from typing import Any

import click

from isicrt.engine.errors import IsicrtError, SettingsError


def explained(error: IsicrtError | OSError) -> click.ClickException:
    """What a command ends with: exit code 2 for settings, 1 for everything else."""
    if isinstance(error, SettingsError):
        return click.UsageError(str(error))
    if isinstance(error, OSError) and error.filename and error.strerror:
        return click.ClickException(f"{error.filename}: {error.strerror}")
    return click.ClickException(str(error))


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
