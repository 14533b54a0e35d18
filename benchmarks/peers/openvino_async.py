"""OpenVINO with its queue of asynchronous requests, set for throughput and for float32; OpenCV around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2

from isicrt.benchmarks.peers.harness import Segment, clean, run
from isicrt.benchmarks.peers.opencv_onnx import READ
from isicrt.engine.card import ModelCard
from isicrt.engine.silent_imports import import_openvino


def prepare(model: Path, card: ModelCard) -> Segment:
    """OpenCV + OpenVINO's AsyncInferQueue in float32 + OpenCV."""
    return prepare_with(model, card, {"INFERENCE_PRECISION_HINT": "f32"})


def prepare_with(model: Path, card: ModelCard, settings: Mapping[str, str]) -> Segment:
    """OpenCV + OpenVINO's AsyncInferQueue, with further settings of the compiler + OpenCV."""
    openvino = import_openvino()
    core = openvino.Core()
    network = core.read_model(model)
    network.reshape([1, card.input_height, card.input_width, 3])
    compiled = core.compile_model(network, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT", **settings})
    queue: Any = openvino.AsyncInferQueue(compiled)

    def finish(request: Any, job: tuple[Path, tuple[int, int]]) -> None:
        target, size = job
        full = cv2.resize(request.get_output_tensor().data[0], size, interpolation=cv2.INTER_LINEAR)
        cv2.imwrite(str(target), clean(full > card.threshold * 255, card))

    queue.set_callback(finish)

    def segment(files: Sequence[Path], out: Path) -> None:
        for file in files:
            image: Any = cv2.imread(str(file), READ)
            small = cv2.resize(image, (card.input_width, card.input_height), interpolation=cv2.INTER_AREA)
            pixels = cv2.cvtColor(small, cv2.COLOR_BGR2RGB)[None]
            queue.start_async({0: pixels}, (out / f"{file.stem}.png", image.shape[1::-1]))
        queue.wait_all()

    return segment


if __name__ == "__main__":
    run(prepare)
