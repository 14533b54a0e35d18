"""Pillow, torch as it comes, Pillow: one image after the other, as most scripts are written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from isicrt.benchmarks.peers.harness import Segment, clean, run
from isicrt.benchmarks.peers.onnx_module import load_module
from isicrt.engine.card import ModelCard


def prepare(model: Path, card: ModelCard) -> Segment:
    """Pillow + torch eager + Pillow."""
    import torch

    network = load_module(model)

    def segment(files: Sequence[Path], out: Path) -> None:
        for file in files:
            image = Image.open(file).convert("RGB")
            pixels = np.array(image.resize((card.input_width, card.input_height), Image.Resampling.BILINEAR))
            with torch.inference_mode():
                probability = network(torch.from_numpy(pixels)[None])[0].numpy()
            full = Image.fromarray(probability).resize(image.size, Image.Resampling.BILINEAR)
            mask = clean(np.asarray(full) > card.threshold * 255, card)
            Image.fromarray(mask).save(out / f"{file.stem}.png")

    return segment


if __name__ == "__main__":
    run(prepare)
