"""Commands that write results keep their arguments as they were typed."""

from __future__ import annotations

import click

from isicrt.benchmarks.environment import recorded_command

_ARGUMENTS = "isicrt.arguments"


class RecordingCommand(click.Command):
    """A command whose line `command_line` gives back."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)


def command_line(ctx: click.Context) -> str:
    """The command as it was typed, quoted for a shell: what a result says that it was made with."""
    return recorded_command(["isicrt", str(ctx.command.name), *ctx.meta[_ARGUMENTS]])
