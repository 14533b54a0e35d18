"""`isicrt`: the group of commands, each loaded when it is called, and the one place where errors become exit codes.

Exit codes: 0 all done; 1 the command ran and something failed; 2 usage; 3 `models verify` could not check something;
130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from isicrt._command import explained, unprinted
from isicrt._version import __version__
from isicrt.cli.stopping import leave_if_stuck
from isicrt.engine.errors import IsicrtError

# name -> (module, one-line help). The help stands here so that `isicrt --help` imports no command.
COMMANDS = {
    "train": ("isicrt.cli.train", "Train a segmentation model on pairs of images and masks."),
    "build-engine": ("isicrt.cli.build_engine", "Compile a trained model to ONNX and to a TensorRT plan."),
    "segment": ("isicrt.cli.segment", "Turn a folder of images into a folder of lesion masks."),
    "bench": ("isicrt.cli.bench", "Measure latency, throughput and accuracy side by side."),
    "evaluate": ("isicrt.cli.evaluate", "Score a model against true masks."),
    "reproduce": ("isicrt.cli.reproduce", "Train and score the rows of the report's table."),
    "check-parity": ("isicrt.cli.check_parity", "Compare the masks of two models, image by image."),
    "doctor": ("isicrt.cli.doctor", "Say what this machine has, what is missing and how to get it."),
    "data": ("isicrt.cli.data", "Download ISIC 2016; check a data set; find lesions seen twice."),
    "models": ("isicrt.cli.models", "List the models that ship with isicrt."),
}


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own, imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except IsicrtError as error:
            raise explained(error) from error
        except ImportError as error:
            if (error.name or "").startswith("isicrt"):  # a bug, and no matter of the installation
                raise
            raise click.ClickException(
                f"{error}. A package that isicrt needs is missing or broken: pip install --force-reinstall . in "
                "isicrt's repository; isicrt doctor says more"
            ) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="isicrt")
def group() -> None:
    """Skin-lesion segmentation of dermoscopy images: train, compile, segment, measure.

    Start with: isicrt segment ./images --out ./masks

    Shell completion: eval "$(_ISICRT_COMPLETE=bash_source isicrt)" (or zsh_source, fish_source).
    """


def main() -> None:
    """Console entry point."""
    # Else a thread of NumPy's BLAS for every further core spins for some 100 ms when NumPy is imported, after this.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # the least it takes
    try:
        code = group.main(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("Interrupted.", err=True)
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.exceptions.Exit as error:
        code = error.exit_code
    except OSError as error:  # click has dealt with a closed pipe
        if (lost := unprinted(error)) is None:
            raise
        lost.show()
        code = lost.exit_code
    code = code if isinstance(code, int) else 0
    leave_if_stuck(code=code)
    sys.exit(code)


if __name__ == "__main__":
    main()
