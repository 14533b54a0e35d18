"""Names of images and models. No result is written under one of them: it could replace the very file it was made of."""

from __future__ import annotations

from pathlib import Path

from isicrt.engine.errors import SettingsError
from isicrt.engine.image_search import EXTENSIONS

IMAGE, MODEL = "an image", "a model"
_MODELS = frozenset({".onnx", ".plan", ".pt"})


def check_no_input(file: Path, *, name: str | None = None, but: str | None = None) -> None:
    """Raise SettingsError if a file that is to be written is named like an image or a model.

    Args:
        file: it need not be there.
        name: of the file in the message, such as with its option.
        but: `IMAGE` or `MODEL`, where that is what is written.
    """
    suffix = file.suffix.lower()
    kind = IMAGE if suffix in EXTENSIONS else MODEL if suffix in _MODELS else None
    if kind not in (None, but):
        raise SettingsError(f"{name or file}: that is {kind}'s name, and the result would replace it. Choose another")
