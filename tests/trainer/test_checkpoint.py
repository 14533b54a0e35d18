"""Checkpoints of strangers: what is read of them, and what is said of the others."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from isicrt.engine.card import ModelCard
from isicrt.engine.errors import ModelError
from isicrt.trainer import checkpoint

CARD = ModelCard(name="tiny", architecture="unet", input_height=32, input_width=32)


class _Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


def _with_network(**network: object) -> dict[str, object]:
    return {"card": CARD.replace(network=network).to_json()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"card": 5}, "its model card is no text", id="card_of_another_type"),
        pytest.param({"card": None}, "its model card is no text", id="no_card"),
        pytest.param({"card": "{"}, "model card: not valid JSON", id="card_torn"),
        pytest.param({"weights": {1: torch.zeros(1)}}, "not a checkpoint of isicrt", id="weight_without_a_name"),
        pytest.param({"weights": {"a": 3}}, "not a checkpoint of isicrt", id="weight_that_is_no_tensor"),
        pytest.param({"weights": [1]}, "not a checkpoint of isicrt", id="list_of_weights"),
        pytest.param({"model": {"a": [1]}}, "not a checkpoint of isicrt", id="last_weights_that_are_no_tensors"),
        pytest.param({}, r"do not fit its card \(unet\): .* \.\.\.$", id="no_weights"),
        pytest.param(_with_network(decoder_channels=[10**9] * 4), "four widths from 1 to 4096", id="giant"),
        pytest.param(_with_network(decoder_channels=3), "do not fit its card", id="widths_of_another_type"),
        pytest.param(_with_network(pretrained="/etc/passwd"), "do not fit its card", id="another_file"),
        pytest.param(_with_network(pretrained="imagenet"), "do not fit its card", id="a_download"),
    ],
)
def test_what_does_not_load(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "x.pt"
    torch.save({"isicrt": 1, "card": CARD.to_json(), "weights": {}} | change, path)
    with pytest.raises(ModelError, match=rf"(?s)x\.pt: .*{message}") as caught:
        checkpoint.load_model(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("kind", ["bare", "in_a_checkpoint", "old"])
def test_pickled_code_is_not_run_and_nobody_is_told_how_to(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "bare":
        Path("x.pt").write_bytes(pickle.dumps(_Evil(), protocol=2))
    else:
        torch.save({"isicrt": 1, "x": _Evil()}, "x.pt", _use_new_zipfile_serialization=kind != "old")
    with pytest.raises(ModelError, match=r"x\.pt: not a checkpoint that can be read safely: .*Only tensors") as caught:
        checkpoint.load("x.pt")
    assert "weights_only" not in str(caught.value)
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\x80\x02j\xe5\x7e\x6b\x0a.", id="number_of_no_object"),
        pytest.param(b"rubbish", id="no_pickle"),
        pytest.param(b"", id="empty"),
    ],
)
def test_bytes_of_another_kind_have_a_reason_in_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ModelError, match=r"read safely: ([^.0-9]+)\. Only tensors"):
        checkpoint.load(tmp_path / "x.pt")


@pytest.mark.skipif(os.name != "posix", reason="leftovers are left there")
def test_what_a_kill_left_of_a_checkpoint_is_removed_by_the_next_one(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    kept = [f".last.pt.{os.getppid()}", ".last.pt.x", f".best.pt.{ended.pid}"]
    for name in (*kept, f".last.pt.{ended.pid}"):
        (tmp_path / name).write_bytes(b"half")
    checkpoint.save(tmp_path / "last.pt", card=CARD, weights={})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "last.pt"])


def test_the_best_run_is_that_whose_best_model_has_the_highest_validation_jaccard(tmp_path: Path) -> None:
    """Metrics may have rows of epochs that were not saved, or be another program's, beside a ``best.pt`` of its own."""
    assert checkpoint.best_run(tmp_path) is None
    scores: dict[str, Any] = {"a": {"jaccard": 0.8}, "b": {"jaccard": 0.9}}
    for name, validation in {
        **scores,
        "unvalidated": None,
        "other": {},
        "strange": [1.0],
        "text": {"jaccard": "1"},
    }.items():
        (tmp_path / name).mkdir()
        card = CARD.replace(scores={} if validation is None else {"validation": validation})
        checkpoint.save(tmp_path / name / "best.pt", card=card, weights={})
    (tmp_path / "a" / "metrics.csv").write_text("epoch,val_jaccard\n1,0.8\n2,0.99\n")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "best.pt").write_bytes(b"rubbish")
    (tmp_path / "theirs" / "metrics.csv").write_text("epoch,val/mAP\n1,0.99\n")
    assert checkpoint.best_run(tmp_path) == tmp_path / "b" / "best.pt"
