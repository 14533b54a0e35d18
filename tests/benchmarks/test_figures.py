from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isicrt.benchmarks.evaluation import Candidate, Case, score_model
from isicrt.benchmarks.figures import (
    AGREED,
    CELL,
    GAP,
    INVENTED,
    MISSED,
    Prediction,
    Row,
    draw_difference,
    draw_panel,
    draw_panels,
    pick_cases,
)
from isicrt.benchmarks.report_protocol import ReportProtocol
from isicrt.benchmarks.scoring_protocol import OfficialProtocol
from isicrt.engine.errors import DataError
from isicrt.engine.onnx_runtime import OnnxRuntime
from tests.benchmarks.sample_evaluation import sample_scores

JACCARDS = {"a": 0.9, "b": 0.1, "c": 0.5, "d": 0.7, "e": 0.5}


@pytest.mark.parametrize(
    ("count", "best", "median", "worst"),
    [(1, "a", "c", "b"), (2, "ad", "dc", "bc"), (3, "adc", "dce", "bce"), (9, "adceb", "adceb", "bceda")],
)
def test_picked_cases(count: int, best: str, median: str, worst: str) -> None:
    picked = pick_cases(sample_scores(JACCARDS), count)
    assert {kind: "".join(c.case.id for c in cases) for kind, cases in picked.items()} == {
        "best": best,
        "median": median,
        "worst": worst,
    }


def test_difference_is_tinted_by_its_kind() -> None:
    image = np.full((2, 2, 3), 100, np.uint8)
    truth = np.array([[True, True], [False, False]])
    drawn = draw_difference(image, truth, truth.T)

    def tinted(colour: tuple[int, int, int]) -> list[int]:
        return [round(50 + c / 2) for c in colour]

    assert drawn.tolist() == [[tinted(AGREED), tinted(MISSED)], [tinted(INVENTED), [100] * 3]]


def test_masks_of_another_grid_are_brought_to_the_image() -> None:
    image = np.full((4, 8, 3), 100, np.uint8)
    truth = np.array([[True, False]])
    drawn = draw_difference(image, truth, truth)
    assert np.array_equal(drawn[..., 0] == 100, np.repeat([[False, True]], 4, axis=1).repeat(4, axis=0))


@pytest.mark.parametrize("models", [1, 2])
def test_panel_shows_image_truth_prediction_and_difference(models: int) -> None:
    image = np.full((CELL // 2, CELL, 3), 200, np.uint8)
    truth, nothing = np.ones((64, 64), bool), np.zeros((64, 64), bool)
    row = Row("ISIC_0000001", image, truth, (Prediction(nothing, 0.0), Prediction(truth, None))[:models])
    panel = np.asarray(draw_panel([row, row], ["a" * 300, "b"][:models], "title"))
    columns = 2 + 2 * models
    assert panel.shape[1] == GAP + columns * (CELL + GAP)
    assert panel.shape[0] < 48 + 2 * CELL, "a flat image takes no more room than it needs"
    middle = [panel[GAP + 48 + 24 + CELL // 4, GAP + c * (CELL + GAP) + CELL // 2].tolist() for c in range(columns)]
    missed = [round(100 + c / 2) for c in MISSED]
    agreed = [round(100 + c / 2) for c in AGREED]
    assert middle == [[200] * 3, [255] * 3, [32] * 3, missed, [255] * 3, agreed][:columns]


@pytest.mark.parametrize("protocol", [OfficialProtocol(), ReportProtocol()])
def test_panels_of_two_models(
    darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path, protocol: OfficialProtocol | ReportProtocol
) -> None:
    images, masks = rendered_pairs / "images", rendered_pairs / "masks"
    cases = [Case(p.stem, p, masks / f"{p.stem}_Segmentation.png") for p in sorted(images.iterdir())][:5]
    with OnnxRuntime(darkness_onnx) as runtime:
        pair = [Candidate(label, "f", "0", runtime) for label in ("frozen", "tuned")]
        # The second has not scored every image that the first has.
        scored = [score_model(pair[0], cases, protocol), score_model(pair[1], cases[:2], protocol)]
        paths = draw_panels(pair, scored, protocol, tmp_path, count=2)
        with pytest.raises(DataError, match=r"best\.png: cannot be written"):
            draw_panels(pair, scored, protocol, tmp_path / "nowhere", count=1)
    assert [path.name for path in paths] == ["best.png", "median.png", "worst.png"]
    for path in paths:
        with Image.open(path) as picture:
            assert picture.width == GAP + 6 * (CELL + GAP)
            assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 100
