"""Checkpoints that are saved now and then: nothing that was promised is lost by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from isicrt.engine.errors import TrainingError
from isicrt.trainer import checkpoint, saving
from isicrt.trainer.loop import Listener, RunSettings, train
from isicrt.trainer.recipe import Recipe, Stage
from isicrt.trainer.saving import PATIENCE, Intervals

STAGES = (Stage("frozen", 2, 2e-3, warmup_epochs=0), Stage("tuned", 5, 2e-3, 1e-3, warmup_epochs=0))


def settings(data: Path, out: Path, **changes: Any) -> RunSettings:
    recipe = Recipe(
        name="tiny",
        architecture="unet",
        decoder_channels=(8, 8, 8, 8),
        input_size=32,
        batch_size=4,
        folds=3,
        augmentation=None,
        stages=STAGES,
    )
    return RunSettings(**({"recipe": recipe, "data": (data,), "out": out, "pretrained": None} | changes))


@pytest.fixture
def rare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A save is followed by none for as long as any test runs."""
    monkeypatch.setattr(saving, "PATIENCE", 1e9)


class Watch(Listener):
    """Notes after each epoch which epoch ``last.pt`` is of; stops after so many epochs."""

    def __init__(self, out: Path, stop: int = 0) -> None:
        self.out, self.stop, self.saved, self.rows = out, stop, list[int](), list[int]()

    def finished(self, row: Any) -> None:
        self.saved.append(len(checkpoint.load(self.out / checkpoint.LAST)[1]["history"]))
        self.rows.append(len(checkpoint.read_metrics(self.out)))
        if row["epoch"] == self.stop:
            raise KeyboardInterrupt


def test_what_took_long_is_due_later() -> None:
    now = [100.0]
    intervals = Intervals(lambda: now[0])
    assert intervals.due
    with intervals.timed():
        now[0] += 3
    for waited, due in ((0, False), (3 * PATIENCE - 0.1, False), (3 * PATIENCE, True)):
        now[0] = 103 + waited
        assert intervals.due is due
    with pytest.raises(OSError, match="full"), intervals.timed():
        raise OSError("full")
    assert intervals.due


@pytest.mark.usefixtures("rare")
def test_a_run_that_saves_seldom_ends_as_one_that_was_stopped_and_went_on(rendered_pairs: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    watch = Watch(whole)
    best = train(settings(rendered_pairs, whole), watch)
    # The first epoch, then each stage's end.
    assert watch.saved == [1, 2, 2, 2, 2, 2, 7]
    assert watch.rows == [1, 2, 3, 4, 5, 6, 7]

    with pytest.raises(KeyboardInterrupt):
        train(settings(rendered_pairs, stopped), Watch(stopped, stop=5))
    assert len(checkpoint.read_metrics(stopped)) == 5
    assert len(checkpoint.load(stopped / checkpoint.LAST)[1]["history"]) == 2

    class Begun(Listener):
        def started(self, *_: Any) -> None:
            """Metrics that the checkpoint does not know are gone when the run goes on."""
            assert len(checkpoint.read_metrics(stopped)) == 2

    train(settings(rendered_pairs, stopped, resume=stopped / checkpoint.LAST), Begun())
    for name in ("best.pt", "last.pt", "frozen.pt", "tuned.pt"):
        ours, theirs = (checkpoint.load(out / name)[1]["weights"] for out in (whole, stopped))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    rows = checkpoint.read_metrics(whole)
    scores = [float(row["val_jaccard"]) for row in rows]
    # The last of equals, as it is when every epoch is saved.
    assert checkpoint.load(best)[1]["epoch"] == len(scores) - scores[::-1].index(max(scores))


@pytest.mark.usefixtures("rare")
def test_the_best_epoch_that_waits_keeps_its_weights(
    rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third of seven epochs is made the best: it is not saved at once, and steps follow."""
    from isicrt.trainer.validation import ValidationSet

    plain, seen = ValidationSet.evaluate, list[dict[str, torch.Tensor]]()

    def evaluate(self: ValidationSet, model: torch.nn.Module, *rest: Any, **named: Any) -> Any:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return plain(self, model, *rest, **named) | {"jaccard": 0.9 if len(seen) == 3 else 0.1}

    monkeypatch.setattr(ValidationSet, "evaluate", evaluate)
    best = train(settings(rendered_pairs, tmp_path / "run"))
    card, state = checkpoint.load(best)
    assert state["epoch"] == 3
    assert card.scores["validation"]["jaccard"] == 0.9
    assert all(torch.equal(state["weights"][name], value) for name, value in seen[2].items())
    assert not all(torch.equal(state["weights"][name], value) for name, value in seen[6].items())


def test_without_its_best_epoch_a_run_keeps_the_best_of_those_to_come(
    rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody moved ``best.pt`` away, or took ``last.pt`` elsewhere alone. The run is stopped once more after that."""
    from isicrt.trainer.validation import ValidationSet

    monkeypatch.setattr(saving, "PATIENCE", 0.0)  # each epoch is saved
    out, plain = tmp_path / "run", ValidationSet.evaluate
    scores = iter((0.9, 0.1, 0.5, 0.4, 0.6, 0.3, 0.2))
    monkeypatch.setattr(
        ValidationSet, "evaluate", lambda *given, **named: plain(*given, **named) | {"jaccard": next(scores)}
    )
    with pytest.raises(KeyboardInterrupt):
        train(settings(rendered_pairs, out), Watch(out, stop=2))
    assert "compared_from" not in checkpoint.load(out / checkpoint.LAST)[1]
    (out / checkpoint.BEST).unlink()
    for stop, epoch in ((4, 3), (0, 5)):
        run = settings(rendered_pairs, out, resume=out / checkpoint.LAST)
        if stop:
            with pytest.raises(KeyboardInterrupt):
                train(run, Watch(out, stop=stop))
        else:
            assert train(run) == out / checkpoint.BEST
        assert checkpoint.load(out / checkpoint.BEST)[1]["epoch"] == epoch
    (out / checkpoint.BEST).unlink()
    assert train(settings(rendered_pairs, out, resume=out / checkpoint.LAST)) == out / checkpoint.LAST


def test_a_run_without_an_average_stores_its_weights_once(rendered_pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(settings(rendered_pairs, out), Watch(out, stop=1))
    _, state = checkpoint.load(out / checkpoint.LAST)
    assert "average" not in state
    assert all(state["weights"][key].data_ptr() == state["model"][key].data_ptr() for key in state["weights"])
    # A checkpoint from before has one, which nothing needs.
    card, old = checkpoint.load(out / checkpoint.LAST)
    old = {name: value for name, value in old.items() if name != "isicrt"}
    checkpoint.save(out / checkpoint.LAST, card=card, **old, average=old["model"])
    train(settings(rendered_pairs, out, resume=out / checkpoint.LAST))
    assert len(checkpoint.read_metrics(out)) == 7


@pytest.mark.usefixtures("rare")
def test_a_loss_that_is_no_number_names_the_epoch_that_is_saved(rendered_pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    class Spoil(Listener):
        def finished(self, row: Any) -> None:
            if row["epoch"] == 4:
                monkey.setattr("isicrt.trainer.late_losses.float", lambda _: float("nan"), raising=False)

    with (
        pytest.MonkeyPatch.context() as monkey,
        pytest.raises(TrainingError, match=r"in epoch 5\. last\.pt is of epoch 2"),
    ):
        train(settings(rendered_pairs, out), Spoil())
    assert len(checkpoint.load(out / checkpoint.LAST)[1]["history"]) == 2
