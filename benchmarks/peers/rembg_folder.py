"""rembg's own way through a folder: `rembg.remove` with one session, masks only. One image after the other.

Its session for a model of the user's feeds 320 x 320 pixels; here it feeds what the network takes. Its own clean-up
(``post_process_mask``, a blur of the native-size mask in float64) is left out: the peers' is used, which is faster.
"""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from isicrt.benchmarks.peers.float_graph import write_float_graph
from isicrt.benchmarks.peers.harness import Segment, clean, run
from isicrt.engine.card import IMAGENET_MEAN, IMAGENET_STD, ModelCard
from isicrt.engine.silent_imports import import_onnxruntime


def prepare(model: Path, card: ModelCard) -> Segment:
    """rembg.remove, one session."""
    folder = tempfile.TemporaryDirectory(prefix="isicrt-rembg-")
    atexit.register(folder.cleanup)
    home = Path(folder.name)
    os.environ["REMBG_HOME"] = str(home)  # it loads models from there and from nowhere else
    write_float_graph(model, home / "model.onnx", mean=IMAGENET_MEAN, std=IMAGENET_STD)

    onnxruntime = import_onnxruntime()
    rembg: Any = import_module("rembg")
    custom: Any = import_module("rembg.sessions.u2net_custom")
    options = onnxruntime.SessionOptions()
    session = custom.U2netCustomSession(
        "isicrt", options, providers=["CPUExecutionProvider"], model_path=str(home / "model.onnx")
    )
    normalise, size = session.normalize, (card.input_width, card.input_height)
    session.normalize = lambda image, mean, std, _: normalise(image, mean, std, size)

    def segment(files: Sequence[Path], out: Path) -> None:
        for file in files:
            found = rembg.remove(Image.open(file), session=session, only_mask=True)
            mask = clean(np.asarray(found) > card.threshold * 255, card)
            Image.fromarray(mask).save(out / f"{file.stem}.png")

    return segment


if __name__ == "__main__":
    run(prepare)
