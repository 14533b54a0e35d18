"""Models by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from isicrt.benchmarks.rendered import render
from isicrt.engine import shipped
from isicrt.engine.errors import ModelError
from isicrt.engine.images import read_mask
from isicrt.engine.onnx_file import read_onnx_card
from isicrt.engine.scores import score_mask
from isicrt.engine.segmenter import Segmenter
from isicrt.trainer.dataset import find_pairs, split_fold

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.fixture
def shelf(tmp_path: Path, darkness_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped models: three of them, the default among them."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("aaa", shipped.DEFAULT, "zzz"):
        shutil.copy(darkness_onnx, folder / f"{name}.onnx")
    monkeypatch.setattr(shipped, "_FOLDER", folder)
    return folder


def test_the_default_comes_first(shelf: Path) -> None:
    assert shipped.names() == [shipped.DEFAULT, "aaa", "zzz"]


@pytest.mark.parametrize(("model", "file"), [(None, f"{shipped.DEFAULT}.onnx"), ("aaa", "aaa.onnx")])
def test_names_become_files(shelf: Path, model: str | None, file: str) -> None:
    assert shipped.resolve(model) == shelf / file


def test_a_file_is_itself(shelf: Path, darkness_onnx: Path) -> None:
    assert shipped.resolve(darkness_onnx) == darkness_onnx


@pytest.mark.parametrize("model", ["nobody", "../models/aaa", "/absent/model.onnx"])
def test_what_is_neither(shelf: Path, model: str) -> None:
    with pytest.raises(ModelError, match=f"shipped: {shipped.DEFAULT}, aaa, zzz"):
        shipped.resolve(model)


def test_who_looks_again_where_it_is_in_doubt() -> None:
    """What is compiled for a GPU looks once, and masks of either are compared."""
    cards = {name: read_onnx_card(shipped.resolve(name)) for name in shipped.names()}
    looks = {name: (card.second_look, card.second_look_zoom) for name, card in cards.items()}
    assert looks.pop(shipped.DEFAULT) == (0.9, 0)
    assert looks.pop("unet-light-int8-careful") == (0.97, 2)
    assert set(looks.values()) == {(0, 0)}


def test_the_careful_models_network_is_the_defaults() -> None:
    graphs = [onnx.load(str(shipped.resolve(name))).graph for name in (shipped.DEFAULT, "unet-light-int8-careful")]
    assert graphs[0] == graphs[1]


@pytest.mark.parametrize("name", shipped.names())
def test_a_shipped_model_is_whole_and_finds_rendered_lesions(name: str) -> None:
    with Segmenter(name) as segmenter:
        assert segmenter.card.name == name
        assert segmenter.card.scores
        assert segmenter.card.training["data_sha256"]
        rendered = [render(seed, (384, 512)) for seed in range(8)]
        scores = [score_mask(segmenter.segment(image), truth).jaccard for image, truth in rendered]
    # Drawn images are none that it learned from: most of them is what can be asked.
    assert np.median(scores) > 0.8


@pytest.mark.parametrize("name", shipped.names())
def test_what_a_card_says_it_scored_was_measured(name: str) -> None:
    with Segmenter(name) as segmenter:
        (scores,) = [scores for data, scores in segmenter.card.scores.items() if data.startswith("ISIC 2016 test")]
    assert scores["protocol"] == "official"
    for path in RESULTS.glob("isic2016-test*.json"):
        for model in json.loads(path.read_text())["models"]:
            # A card is written into the file after the file was scored.
            if model["sha256"] == scores["model_sha256"]:
                noted = {key: value for key, value in scores.items() if key not in ("protocol", "model_sha256")}
                assert noted == {key: model["summary"][key] for key in noted}
                return
    pytest.fail(f"no evaluation of {scores['model_sha256']} in {RESULTS}")


@pytest.mark.parametrize("name", [shipped.DEFAULT, "unet-light-isic2016"])
def test_a_shipped_model_on_real_images(name: str, real_data: Path) -> None:
    # Fold 0 of 10; the folds go by the hash of the id. The default has learned from them, the other one has not.
    validation = split_fold(find_pairs(real_data / "isic2016" / "train"), 10, 0)[1][::4]
    with Segmenter(name) as segmenter:
        scores = [score_mask(segmenter.segment(pair.image) > 0, read_mask(pair.mask)).jaccard for pair in validation]
    assert len(scores) >= 15
    assert np.mean(scores) > 0.82
