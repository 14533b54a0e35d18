"""Ultralytics' own way through a folder: `YOLO(model.onnx).predict(files, stream=True)`, its semantic masks as PNG.

It keeps the aspect ratio of an image and pads it, where isicrt's networks were trained on stretched ones, so its masks
agree less well; the work is the same.
"""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2

from isicrt.benchmarks.peers.float_graph import write_float_graph
from isicrt.benchmarks.peers.harness import Segment, clean, run
from isicrt.engine.card import ModelCard


def prepare(model: Path, card: ModelCard) -> Segment:
    """YOLO(...).predict(files, stream=True)."""
    folder = tempfile.TemporaryDirectory(prefix="isicrt-ultralytics-")
    atexit.register(folder.cleanup)
    home = Path(folder.name)
    # Neither updates nor statistics, and its settings are nobody else's.
    os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": str(home)}
    size = [card.input_height, card.input_width]
    metadata = {"task": "semantic", "stride": "32", "batch": "1", "channels": "3", "imgsz": str(size)}
    metadata |= {"names": "{0: 'lesion'}", "args": "{'dynamic': False}"}
    write_float_graph(model, home / "model.onnx", offset=0.5, metadata=metadata)

    ultralytics: Any = import_module("ultralytics")
    network = ultralytics.YOLO(home / "model.onnx", task="semantic")

    def segment(files: Sequence[Path], out: Path) -> None:
        paths = [str(file) for file in files]
        for result in network.predict(
            paths, stream=True, rect=False, imgsz=size, device="cpu", verbose=False, save=False
        ):
            mask = clean(result.semantic_mask.data.cpu().numpy() > 0, card)
            cv2.imwrite(str(out / f"{Path(result.path).stem}.png"), mask)

    return segment


if __name__ == "__main__":
    run(prepare)
