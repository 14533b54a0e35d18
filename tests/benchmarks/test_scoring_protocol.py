from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from isicrt.benchmarks.report_protocol import ReportProtocol
from isicrt.benchmarks.scoring_protocol import OfficialProtocol, ScoringProtocol
from isicrt.engine.masks import write_mask
from isicrt.engine.scores import ImageScores
from tests.tiny_models import darkness_card

# Two components, the smaller of one pixel, the larger with a hole.
RING = np.zeros((8, 8), np.uint8)
RING[0:3, 0:3] = 200
RING[1, 1] = 0
RING[7, 7] = 140


@pytest.mark.parametrize("protocol", [OfficialProtocol(), ReportProtocol()])
def test_both_are_protocols(protocol: ScoringProtocol, tmp_path: Path) -> None:
    card = darkness_card((64, 64))
    write_mask(np.eye(64, dtype=bool), tmp_path / "m.png")
    truth, size = protocol.read_truth(tmp_path / "m.png")
    assert size == (64, 64)
    prediction = protocol.mask(np.full((64, 64), 255, np.uint8), size, card)
    assert 0 < protocol.score(prediction, truth).jaccard < protocol.score(truth, truth).jaccard == 1
    assert protocol.name in ("official", "report")
    assert "mean over the images" in protocol.title
    assert protocol.describe_input(card).startswith("64 x 64 px")


@pytest.mark.parametrize(
    ("arguments", "card", "pixels", "steps"),
    [
        ({}, {}, 9, ("keep_largest", "fill_holes")),
        ({"clean": False}, {}, 9, ()),
        ({}, {"keep_largest": False, "fill_holes": False}, 9, ()),
        ({}, {"fill_holes": False}, 8, ("keep_largest",)),
        ({"clean": False, "threshold": 0.6}, {}, 8, ()),
        ({"threshold": 0.9}, {}, 0, ("keep_largest", "fill_holes")),
        ({}, {"threshold": 0.6, "keep_largest": False}, 9, ("fill_holes",)),
    ],
)
def test_threshold_and_clean_up(
    arguments: dict[str, float | bool], card: dict[str, float | bool], pixels: int, steps: tuple[str, ...]
) -> None:
    protocol = OfficialProtocol(**arguments)  # type: ignore[arg-type]
    model = darkness_card((8, 8), **card)
    assert protocol.clean_up(model) == steps
    assert protocol.threshold(model) == arguments.get("threshold", model.threshold)
    assert protocol.mask(RING, (8, 8), model).sum() == pixels


def test_masks_have_the_images_own_size_and_all_scores() -> None:
    protocol = OfficialProtocol()
    mask = protocol.mask(RING, (24, 40), darkness_card((8, 8)))
    assert mask.shape == (24, 40)
    assert isinstance(protocol.score(mask, mask), ImageScores)
