"""Whether 8-bit networks compute what they should on this processor.

An int8 convolution sums products of uint8 and int8. x86 processors with VNNI (Intel since Cascade Lake, AMD since Zen
4) and Arm's sum them in 32 bits; on older ones libraries sum pairs in 16 bits, where 255 x 127 + 255 x 127 does not fit
and becomes 32,767. https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

from functools import cache

import numpy as np

from isicrt.engine.silent_imports import import_onnxruntime

_PRODUCT = (
    b'\x08\x08:b\n\x18\n\x01a\n\x01b\x12\x01c"\rMatMulInteger\x12\x01gZ\x15\n\x01a\x12\x10\n\x0e\x08\x02\x12\n\n\x03\x12'
    b"\x01m\n\x03\x12\x01kZ\x15\n\x01b\x12\x10\n\x0e\x08\x03\x12\n\n\x03\x12\x01k\n\x03\x12\x01nb\x15\n\x01c\x12\x10\n"
    b"\x0e\x08\x06\x12\n\n\x03\x12\x01m\n\x03\x12\x01nB\x04\n\x00\x10\r"
)
"""An ONNX file: the matrix product of uint8 m x k and int8 k x n."""
_SIDE = 64


@cache
def sums_are_exact() -> bool:
    """Whether ONNX Runtime, left to itself, sums products of 8 bits exactly. It is tried, which takes milliseconds and
    tells more than the system does: Windows and macOS have no list of what a processor can do."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    a, b = np.full((_SIDE, _SIDE), 255, np.uint8), np.full((_SIDE, _SIDE), 127, np.int8)
    try:
        session = onnxruntime.InferenceSession(_PRODUCT, options, providers=["CPUExecutionProvider"])
        product = session.run(None, {"a": a, "b": b})[0]
    except Exception:  # ONNX Runtime's exceptions have no common root; one that cannot do this is not to be relied on
        return False
    return bool((product == _SIDE * 255 * 127).all())
