"""The file that a model is told to go to, looked at before the work begins."""

from __future__ import annotations

import tempfile
from pathlib import Path

from isicrt.engine.errors import BuildError
from isicrt.engine.shipped import lies_with_them


def check_output(out: Path, source: Path) -> None:
    """Refuse now what would replace the model that `out` is made of, or fail after minutes of work.

    Args:
        out: to be written into a folder that is there.
        source: the model.

    Raises:
        BuildError: they are one file, it would lie among the models that ship, or nothing can be written there.
    """
    if out.exists() and out.samefile(source):
        raise BuildError(f"{out}: is the model that it would be made of, and would be replaced. Choose another file")
    check_not_shipped(out)
    if not out.parent.is_dir():
        raise BuildError(f"{out}: there is no folder {out.parent} to write it to")
    try:
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise BuildError(f"{out}: cannot be written: {error.strerror}") from error


def check_not_shipped(out: Path) -> None:
    """Raise BuildError if a file would lie among the models that ship."""
    if lies_with_them(out):
        raise BuildError(
            f"{out}: lies among the models that ship, and `isicrt segment` would take it for one of them. Choose "
            "a folder of your own"
        )
