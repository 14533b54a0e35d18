"""torch's DataLoader with a worker a core, batches of 8, and torch.compile where it works."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from isicrt.benchmarks.peers.harness import Segment, clean, run
from isicrt.benchmarks.peers.onnx_module import load_module
from isicrt.engine.card import ModelCard

BATCH = 8
facts: dict[str, Any] = {"batch_size": BATCH}


class Images:
    """What a DataLoader's workers read: pixels, native (width, height), name."""

    def __init__(self, files: Sequence[Path], card: ModelCard) -> None:
        self.files, self.size = files, (card.input_width, card.input_height)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, n: int) -> tuple[Any, tuple[int, int], str]:
        import torch

        image = Image.open(self.files[n])
        # Scaled decoding, never below the network's size: Pillow can do it too, and a good script asks for it.
        native = image.size
        image.draft("RGB", self.size)
        pixels = np.array(image.convert("RGB").resize(self.size, Image.Resampling.BILINEAR))
        return torch.from_numpy(pixels), native, self.files[n].stem


def _collate(items: list[tuple[Any, tuple[int, int], str]]) -> tuple[Any, list[tuple[int, int]], list[str]]:
    import torch

    pixels, sizes, names = zip(*items, strict=True)
    return torch.stack(pixels), list(sizes), list(names)


def prepare(model: Path, card: ModelCard) -> Segment:
    """DataLoader + torch.compile + Pillow."""
    import torch

    eager = load_module(model)
    network: Any = torch.compile(eager)
    example = torch.zeros(BATCH, card.input_height, card.input_width, 3, dtype=torch.uint8)
    with torch.inference_mode():
        try:
            network(example)
            facts["compiled"] = True
        except Exception as error:  # no C++ compiler, most often; torch raises a dozen kinds
            facts["compiled"] = f"no: {type(error).__name__}"
            network = eager

    def segment(files: Sequence[Path], out: Path) -> None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        images: Any = Images(files, card)
        batches: Any = torch.utils.data.DataLoader(images, batch_size=BATCH, num_workers=workers, collate_fn=_collate)
        for pixels, sizes, names in batches:
            # The compiled network has one shape: a batch of another would compile again.
            padded = torch.cat([pixels, example[len(pixels) :]])
            with torch.inference_mode():
                probabilities = network(padded).numpy()
            for probability, size, name in zip(probabilities, sizes, names, strict=False):
                full = Image.fromarray(probability).resize(size, Image.Resampling.BILINEAR)
                mask = clean(np.asarray(full) > card.threshold * 255, card)
                Image.fromarray(mask).save(out / f"{name}.png")

    return segment


if __name__ == "__main__":
    run(prepare, facts)
