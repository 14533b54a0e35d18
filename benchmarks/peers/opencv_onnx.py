"""OpenCV, ONNX Runtime, OpenCV: one image after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2

from isicrt.benchmarks.peers.harness import Segment, clean, run
from isicrt.engine.card import ModelCard
from isicrt.engine.silent_imports import import_onnxruntime

READ = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION


def prepare(model: Path, card: ModelCard) -> Segment:
    """OpenCV + ONNX Runtime + OpenCV."""
    onnxruntime = import_onnxruntime()
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def segment(files: Sequence[Path], out: Path) -> None:
        for file in files:
            image: Any = cv2.imread(str(file), READ)
            height, width = image.shape[:2]
            small = cv2.resize(image, (card.input_width, card.input_height), interpolation=cv2.INTER_AREA)
            (probability,) = session.run(None, {name: cv2.cvtColor(small, cv2.COLOR_BGR2RGB)[None]})
            full = cv2.resize(probability[0], (width, height), interpolation=cv2.INTER_LINEAR)
            cv2.imwrite(str(out / f"{file.stem}.png"), clean(full > card.threshold * 255, card))

    return segment


if __name__ == "__main__":
    run(prepare)
