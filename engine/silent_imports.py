"""Libraries that report their use to their makers unless they are told not to, imported so that they do not.

Whoever segments a clinic's photographs has not agreed to that. ONNX Runtime (1.32 on Linux) gives the machine a number
and collects events for Microsoft in ``~/.cache/Microsoft`` from its import on. ``import openvino`` (2026.4) sends an
event to Google Analytics and gives the machine a number in ``~/intel``.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

ORT_SWITCH = "ORT_DISABLE_TELEMETRY"
_OPENVINO_REPORTS = "openvino_telemetry"


def silence_onnxruntime() -> None:
    """For this process and those that it starts, if nobody has imported it yet. A user's own setting stays."""
    os.environ.setdefault(ORT_SWITCH, "1")


def import_onnxruntime(module: str = "") -> Any:
    """ONNX Runtime, or a module in it, such as ``quantization``. Raises ImportError."""
    silence_onnxruntime()
    return importlib.import_module(f"onnxruntime.{module}" if module else "onnxruntime")


def import_openvino() -> Any:
    """OpenVINO. Its package for reports is optional to it, and is not to be found meanwhile. Raises ImportError."""
    if "openvino" in sys.modules or _OPENVINO_REPORTS in sys.modules:  # somebody else's, as he wants it
        return importlib.import_module("openvino")
    sys.modules[_OPENVINO_REPORTS] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules[_OPENVINO_REPORTS]
