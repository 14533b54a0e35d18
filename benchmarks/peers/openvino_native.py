"""OpenVINO as it comes: bfloat16 on processors that have it, and masks that differ for it."""

from __future__ import annotations

from pathlib import Path

from isicrt.benchmarks.peers.harness import Segment, run
from isicrt.benchmarks.peers.openvino_async import prepare_with
from isicrt.engine.card import ModelCard


def prepare(model: Path, card: ModelCard) -> Segment:
    """OpenCV + OpenVINO's AsyncInferQueue in the arithmetic that it chooses + OpenCV."""
    return prepare_with(model, card, {})


if __name__ == "__main__":
    run(prepare)
