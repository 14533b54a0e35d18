"""What every peer shares: its arguments, its clock, and the clean-up of a mask.

A peer gives `run` a function that loads the network and returns a function that segments files. Loading and a warm-up
on the first images are timed for themselves, so that the loop over all images can be quoted without them and with them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from isicrt.engine.card import METADATA_KEY, ModelCard
from isicrt.engine.silent_imports import import_onnxruntime

Segment = Callable[[Sequence[Path], Path], None]
"""Segment files into a folder: the mask of ``a.jpg`` is ``a.png``, at the image's own size."""
Prepare = Callable[[Path, ModelCard], Segment]
"""Load an ONNX file whose input and output its card describes: uint8 N x H x W x 3 to uint8 N x H x W."""
WARM_UP = 8
"""Images, or the peer's one batch."""


def run(prepare: Prepare, facts: Mapping[str, Any] | None = None) -> None:
    """Do what a peer's command line asks, and write how long it took.

    Args:
        prepare: of the peer.
        facts: written beside the seconds; read when all is done.
    """
    parser = argparse.ArgumentParser(description=prepare.__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--list", type=Path, required=True, help="text file with the path of an image in each line")
    parser.add_argument("--out", type=Path, required=True, help="existing, empty folder for the masks")
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    files = [Path(line) for line in given.list.read_text(encoding="utf-8").splitlines()]

    begun = time.perf_counter()
    segment = prepare(given.model, read_card(given.model))
    loaded = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        segment(files[:WARM_UP], Path(folder))
    warm = time.perf_counter()
    segment(files, given.out)
    done = time.perf_counter()

    seconds = {"load_seconds": loaded - begun, "warmup_seconds": warm - loaded, "seconds": done - warm}
    given.json.write_text(json.dumps({**seconds, "images": len(files), **(facts or {})}), encoding="utf-8")


def read_card(model: Path) -> ModelCard:
    """The card in an ONNX file."""
    onnxruntime = import_onnxruntime()
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return ModelCard.from_json(session.get_modelmeta().custom_metadata_map[METADATA_KEY])


def clean(mask: npt.NDArray[np.bool_], card: ModelCard) -> npt.NDArray[np.uint8]:
    """The largest component without its holes, where the card wants one without: uint8 H x W, 0 and 255.

    A card's `centre_sigma` is not looked at: what peers do is what people do.

    One pass over the contours, the fastest way in OpenCV: no peer is to lose its time here.
    """
    pixels = mask.view(np.uint8)
    if not card.keep_largest or not card.fill_holes:
        return pixels * np.uint8(255)
    contours, _ = cv2.findContours(pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros_like(pixels)
    if contours:
        cv2.drawContours(filled, [max(contours, key=cv2.contourArea)], -1, 255, cv2.FILLED)
    return filled
