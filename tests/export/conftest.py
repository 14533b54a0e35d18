"""Fixtures of the export room: a small network, exported once."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from isicrt.benchmarks.rendered import render
from isicrt.engine.geometry import UInt8Array
from isicrt.export.onnx_export import Deployed, export_onnx
from isicrt.export.parity import Sample
from tests.export.tiny_network import tiny_card, tiny_network


@pytest.fixture(scope="session")
def deployed() -> Deployed:
    """`tiny_network` with its normalisation and sigmoid."""
    return Deployed(tiny_network(), tiny_card()).eval()


@pytest.fixture(scope="session")
def tiny_onnx(deployed: Deployed) -> onnx.ModelProto:
    """`deployed` as a float32 graph."""
    return export_onnx(deployed, tiny_card())


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    """Five rendered images of 64 x 96 px with their truth."""
    drawn = [render(n, (64, 96)) for n in range(5)]
    return [Sample(f"rendered {n}", image, mask > 0) for n, (image, mask) in enumerate(drawn)]


@pytest.fixture(scope="session")
def pixels(samples: list[Sample]) -> UInt8Array:
    """The samples' pixels: uint8, 5 x 64 x 96 x 3."""
    return np.stack([sample.pixels for sample in samples])
