"""A shipped model is the model that was scored: same pixels out, with its name and scores in the card."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.export.shipping import SCORES, main
from tests.tiny_models import write_darkness_model

SUMMARY = dict.fromkeys(SCORES, 0.5) | {"images": 3, "jaccard_median": 0.6}


def write_result(path: Path, model: Path) -> Path:
    """The JSON of a benchmark of two models, this one second."""
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    other = {"sha256": "0" * 64, "accuracy": {"summary": dict.fromkeys(SCORES, 0.1)}}
    path.write_text(json.dumps({"models": [other, {"sha256": sha256, "accuracy": {"summary": SUMMARY}}]}))
    return path


def call(model: Path, result: Path, folder: Path) -> tuple[int, str]:
    arguments = [str(model), str(result), str(folder), "--name", "dark", "--as", "rendered"]
    outcome = CliRunner().invoke(main, arguments)
    return outcome.exit_code, outcome.output


def test_name_and_scores_are_added_and_nothing_else_changes(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    before = write_darkness_model(model, scores={"validation": {"jaccard": 0.7}}, threshold=0.4)
    assert call(model, write_result(tmp_path / "bench.json", model), tmp_path)[0] == 0
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    with OnnxRuntime(model) as old, OnnxRuntime(tmp_path / "dark.onnx") as new:
        assert np.array_equal(old.infer(images), new.infer(images))
        assert new.card.replace(name=before.name, scores=before.scores) == before
        assert new.card.name == "dark"
        assert list(new.card.scores) == ["rendered", "validation"]
        assert new.card.scores["rendered"] == {
            "protocol": "official",
            "model_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
            **{k: SUMMARY[k] for k in SCORES},
        }


def test_the_result_of_evaluate_is_read_too(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    write_darkness_model(model)
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    result = {"protocol": {"name": "official"}, "models": [{"sha256": sha256, "summary": SUMMARY}]}
    (tmp_path / "r.json").write_text(json.dumps(result))
    assert call(model, tmp_path / "r.json", tmp_path)[0] == 0
    with OnnxRuntime(tmp_path / "dark.onnx") as shipped:
        assert shipped.card.scores["rendered"]["jaccard"] == SUMMARY["jaccard"]
    (tmp_path / "r.json").write_text(json.dumps(result | {"protocol": {"name": "report"}}))
    code, output = call(model, tmp_path / "r.json", tmp_path)
    assert (code, "scored by protocol report" in output) == (1, True)


@pytest.mark.parametrize(
    ("scored", "message"),
    [
        ({"threshold": 0.4, "clean_up": ["keep_largest", "fill_holes"]}, ""),
        ({"threshold": 0.5, "clean_up": ["keep_largest", "fill_holes"]}, "scored at threshold 0.5; its card has 0.4"),
        ({"threshold": 0.4, "clean_up": []}, "scored without the clean-up"),
    ],
)
def test_scores_of_other_settings_are_refused(tmp_path: Path, scored: dict[str, object], message: str) -> None:
    model = tmp_path / "m.onnx"
    write_darkness_model(model, threshold=0.4)
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    result = {"protocol": {"name": "official"}, "models": [{"sha256": sha256, "summary": SUMMARY, **scored}]}
    (tmp_path / "r.json").write_text(json.dumps(result))
    code, output = call(model, tmp_path / "r.json", tmp_path)
    assert (code, message in output, (tmp_path / "dark.onnx").exists()) == (bool(message), True, not message), output


@pytest.mark.parametrize("content", ["[]", "{", '{"models": []}', '{"models": [{"accuracy": null}]}'])
def test_a_result_without_scores_is_refused(tmp_path: Path, content: str) -> None:
    write_darkness_model(tmp_path / "m.onnx")
    (tmp_path / "r.json").write_text(content)
    code, output = call(tmp_path / "m.onnx", tmp_path / "r.json", tmp_path)
    assert code == 1
    assert "holds no official scores" in output
    assert not (tmp_path / "dark.onnx").exists()


def test_scores_of_another_model_are_refused(tmp_path: Path) -> None:
    write_darkness_model(tmp_path / "m.onnx")
    write_darkness_model(tmp_path / "other.onnx", threshold=0.4)
    code, output = call(tmp_path / "m.onnx", write_result(tmp_path / "r.json", tmp_path / "other.onnx"), tmp_path)
    assert code == 1
    assert "holds no official scores" in output


def test_a_model_without_card_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    write_darkness_model(model)
    graph = onnx.load(model)
    graph.ClearField("metadata_props")
    onnx.save(graph, model)
    code, output = call(model, write_result(tmp_path / "r.json", model), tmp_path)
    assert code == 1
    assert "carries no model card" in output
