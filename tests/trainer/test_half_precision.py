"""Training in 16 bits: which type, and that float16, whose gradients are scaled, stops and goes on like the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from isicrt.engine.errors import TrainingError
from isicrt.trainer import checkpoint, loop
from isicrt.trainer.loop import Listener, half_type, train
from isicrt.trainer.losses import mix
from tests.trainer.test_loop import StopAfter, settings, tiny


@pytest.mark.parametrize(("major", "expected"), [(7, torch.float16), (8, torch.bfloat16), (12, torch.bfloat16)])
def test_a_gpu_that_emulates_bfloat16_trains_in_float16(
    monkeypatch: pytest.MonkeyPatch, major: int, expected: torch.dtype
) -> None:
    """Turing (T4, RTX 20) is 7.5."""

    class Properties:
        pass

    Properties.major = major  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)
    assert half_type("cuda") == expected


@pytest.fixture
def float16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "half_type", lambda _: torch.float16)


@pytest.mark.usefixtures("float16")
def test_a_stopped_run_in_float16_resumes_to_the_very_same_weights(rendered_pairs: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    best = train(settings(rendered_pairs, whole))
    assert checkpoint.load(best)[0].training["arithmetic"] == "float16"
    for stop in (1, 1):  # once between the stages, once within one
        resume = stopped / "last.pt" if stopped.exists() else None
        with pytest.raises(KeyboardInterrupt):
            train(settings(rendered_pairs, stopped, resume=resume), StopAfter(stop))
    path = stopped / "last.pt"
    card, state = checkpoint.load(path)
    train(settings(rendered_pairs, stopped, resume=path))
    ours, theirs = (checkpoint.load(out / "last.pt")[1] for out in (whole, stopped))
    assert ours["scaler"] == theirs["scaler"]
    for part in ("weights", "model"):
        assert [k for k in ours[part] if not torch.equal(ours[part][k], theirs[part][k])] == []

    # The scale is that of the checkpoint, and no new one.
    state["scaler"]["scale"] = 2.0**7
    checkpoint.save(path, card=card, **{k: v for k, v in state.items() if k != "isicrt"})
    train(settings(rendered_pairs, stopped, resume=path))
    assert checkpoint.load(path)[1]["scaler"]["scale"] == 2.0**7


class Spoiled:
    """A loss whose gradients are no numbers in these steps, counted from 1."""

    def __init__(self, steps: range) -> None:
        self.steps, self.count = steps, 0

    def __call__(self, recipe: Any) -> Any:
        plain = mix(recipe)

        def loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
            if logits.requires_grad:
                self.count += 1
                if self.count in self.steps:
                    logits.register_hook(lambda gradient: gradient * torch.nan)
            return plain(logits, masks)

        return loss


@pytest.mark.usefixtures("float16")
def test_a_step_whose_gradients_overflow_is_left_out(
    rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "mix", Spoiled(range(1, 3)))
    train(settings(rendered_pairs, tmp_path / "run"))
    _, state = checkpoint.load(tmp_path / "run" / "last.pt")
    assert state["scaler"]["scale"] <= 2.0**14
    assert all(value.isfinite().all() for value in state["model"].values())


@pytest.mark.usefixtures("float16")
def test_a_run_without_gradients_stops(rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss and its weights are numbers: without this it would go to its end and learn nothing."""
    monkeypatch.setattr(loop, "mix", Spoiled(range(1, 1000)))
    monkeypatch.setattr(loop, "LEAST_SCALE", 2.0**13)
    given = settings(rendered_pairs, tmp_path / "run", recipe=tiny(ema_decay=0))
    with pytest.raises(TrainingError, match=r"the gradients became infinite or no numbers in epoch 2\. last\.pt is of"):
        train(given, Listener())
