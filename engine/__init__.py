"""The lowest floor: what a trained model is, how images are decoded, the runtimes, folders into masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isicrt.engine.card import ModelCard
    from isicrt.engine.errors import IsicrtError
    from isicrt.engine.runtime import Runtime, open_runtime

__all__ = ["IsicrtError", "ModelCard", "Runtime", "open_runtime"]

_HOMES = {
    "IsicrtError": "isicrt.engine.errors",
    "ModelCard": "isicrt.engine.card",
    "Runtime": "isicrt.engine.runtime",
    "open_runtime": "isicrt.engine.runtime",
}


def __getattr__(name: str) -> Any:
    # Lazy: the command line needs the errors at once, and numpy and OpenCV only when a command runs.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'isicrt.engine' has no attribute {name!r}")
