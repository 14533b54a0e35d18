"""Segment skin lesions in dermoscopy images; train, compile and measure the models that do it.

>>> from isicrt import Segmenter
>>> with Segmenter() as segmenter:  # doctest: +SKIP
...     mask = segmenter.segment("lesion.jpg")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from isicrt._version import __version__

if TYPE_CHECKING:
    from isicrt.engine.card import ModelCard
    from isicrt.engine.segmenter import Segmenter

__all__ = ["ModelCard", "Segmenter", "__version__"]

_HOMES = {"ModelCard": "isicrt.engine.card", "Segmenter": "isicrt.engine.segmenter"}


def __getattr__(name: str) -> Any:
    # Lazy, so that `isicrt --help` does not load numpy, OpenCV and ONNX Runtime.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'isicrt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
