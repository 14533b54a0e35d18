"""Libraries that report their use to their makers unless they are told not to, imported so that they do not, and that
Ctrl-C comes through.

Whoever segments a clinic's photographs has not agreed to that. ONNX Runtime (1.32 on Linux) gives the machine a number
and collects events for Microsoft in ``~/.cache/Microsoft`` from its import on. ``import openvino`` (2026.4) sends an
event to Google Analytics and gives the machine a number in ``~/intel``.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ORT_SWITCH = "ORT_DISABLE_TELEMETRY"
_OPENVINO_REPORTS = "openvino_telemetry"


def silence_onnxruntime() -> None:
    """For this process and those that it starts, if nobody has imported it yet. A user's own setting stays."""
    os.environ.setdefault(ORT_SWITCH, "1")


def import_onnxruntime(module: str = "") -> Any:
    """ONNX Runtime, or a module in it, such as ``quantization``. Raises ImportError."""
    silence_onnxruntime()
    with _uninterrupted():
        return importlib.import_module(f"onnxruntime.{module}" if module else "onnxruntime")


def import_openvino() -> Any:
    """OpenVINO. Its package for reports is optional to it, and is not to be found meanwhile. Raises ImportError."""
    with _uninterrupted():
        if "openvino" in sys.modules or _OPENVINO_REPORTS in sys.modules:  # somebody else's, as he wants it
            return importlib.import_module("openvino")
        sys.modules[_OPENVINO_REPORTS] = None  # type: ignore[assignment]
        try:
            return importlib.import_module("openvino")
        finally:
            del sys.modules[_OPENVINO_REPORTS]


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the end, where Python would handle them. Of an exception in the midst of its
    start a native module makes an ImportError ("initialization failed"), or it ends the process."""
    came: list[int] = []
    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():  # no other is interrupted
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(handler := signal.getsignal(number)):
                    before[number] = handler
                    signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        for held, handler in before.items():
            signal.signal(held, handler)
        _raise(came)


def _raise(numbers: list[int]) -> None:
    """Raise signals one after the other, the rest too where a handler raises."""
    if numbers:
        try:
            signal.raise_signal(numbers[0])
        finally:
            _raise(numbers[1:])
