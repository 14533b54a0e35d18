"""The models that ship as package data, by name."""

from __future__ import annotations

import os
from pathlib import Path

from isicrt.engine.errors import ModelError

DEFAULT = "unet-light-int8"
"""Whatever the processor, so that two machines give the same masks. Without VNNI `FLOAT` may be faster."""
FLOAT = "unet-light"
"""The network of the default in float32: what is compiled for a GPU, and what one goes on training."""

_FOLDER = Path(__file__).resolve().parent / "models"


def names() -> list[str]:
    """Names of the shipped models, the default first."""
    found = sorted(p.stem for p in _FOLDER.glob("*.onnx"))
    return sorted(found, key=lambda name: name != DEFAULT)


def lies_with_them(file: Path) -> bool:
    """Whether a file lies, or would lie, in the folder of the models that ship."""
    return file.resolve().parent == _FOLDER


def resolve(model: str | os.PathLike[str] | None) -> Path:
    """The file of a model: a path as it is, a shipped model's name as its file, None as the default's.

    Raises:
        ModelError: neither a file nor a name that ships.
    """
    if model is None:
        model = DEFAULT
    if Path(model).is_file():
        return Path(model)
    shipped = _FOLDER / f"{model}.onnx"
    if shipped.parent == _FOLDER and shipped.is_file():
        return shipped
    known = ", ".join(names()) or "none"
    raise ModelError(f"{model}: no such model file, and no shipped model has that name (shipped: {known})")
