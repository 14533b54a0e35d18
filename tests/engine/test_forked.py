"""A process that was forked has none of the threads of the one that it comes from, and waits for none of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from isicrt.engine.runtime import CPU_RUNTIME_VARIABLE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems' own libraries do not survive it")

# What hangs in native code no exception ends: an alarm does.
_PROGRAM = """
import os, signal, sys
import cv2, numpy as np
from isicrt import Segmenter

model, images, out, state = sys.argv[1:]
cv2.setNumThreads(4)
image = np.zeros((1500, 1500, 3), np.uint8)
segmenter = Segmenter(model, threads=2)
segmenter.segment(image)
if state == "closed":
    segmenter.close()
elif state == "unused":
    segmenter = Segmenter(model, threads=2)
if not (child := os.fork()):
    signal.alarm(60)
    if state == "left":
        segmenter.close()
    if state in ("closed", "left"):
        segmenter = Segmenter(model, threads=2)
    segmenter.segment(image)
    summary = segmenter.segment_folder(images, out)
    segmenter.close()
    os._exit(summary.images)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), segmenter.runtime.name)
"""


@pytest.mark.parametrize("state", ["used", "unused", "closed", "left"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "auto"])
def test_a_forked_process_segments_a_folder(
    rendered_pairs: Path, darkness_onnx: Path, tmp_path: Path, runtime: str, state: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(darkness_onnx), str(rendered_pairs / "images"), str(tmp_path), state],
        env={**os.environ, CPU_RUNTIME_VARIABLE: runtime},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    images, used = done.stdout.split()
    assert images == "12"
    assert ("was forked" in done.stderr) == (used == "openvino-cpu")
    assert len(list(tmp_path.glob("*.png"))) == 12
