"""Whole runs on rendered images: tiny, and real in every part."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from isicrt.engine.errors import ModelError, SettingsError, TrainingError
from isicrt.trainer import checkpoint, loop
from isicrt.trainer.loop import Listener, RunSettings, train
from isicrt.trainer.pipelines import TrainingBatches
from isicrt.trainer.recipe import Augmentation, Recipe, Stage

STAGES = (
    Stage("frozen", epochs=1, decoder_lr=2e-3, warmup_epochs=0),
    Stage("tuned", epochs=2, decoder_lr=2e-3, encoder_lr=1e-3),
)


def tiny(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "name": "tiny",
        "architecture": "unet",
        "stages": STAGES,
        "decoder_channels": (8, 8, 8, 8),
        "input_size": 64,
        "batch_size": 4,
        "loss": {"bce": 1, "iou": 1},
        "ema_decay": 0.5,
        "folds": 3,
    }
    return Recipe(**(settings | changes))


def settings(data: Path, out: Path, **changes: Any) -> RunSettings:
    return RunSettings(**({"recipe": tiny(), "data": (data,), "out": out, "pretrained": None} | changes))


@pytest.fixture(scope="module")
def run(rendered_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three epochs."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(settings(rendered_pairs, out))
    return out


class StopAfter(Listener):
    """Ctrl-C after so many epochs."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def finished(self, row: Any) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_run_folder_is_complete(run: Path) -> None:
    assert {p.name for p in run.iterdir() if p.is_file()} == {
        *("best.pt", "config.yaml", "curves.png", "frozen.pt", "last.pt"),
        *("metrics.csv", "samples.png", "tuned.pt", "validation.txt"),
    }
    ids = (run / "validation.txt").read_text().splitlines()
    assert len(set(ids)) == checkpoint.load(run / "best.pt")[0].training["validation_images"] > 1
    rows = checkpoint.read_metrics(run)
    assert [(r["epoch"], r["stage"]) for r in rows] == [("1", "frozen"), ("2", "tuned"), ("3", "tuned")]
    assert float(rows[-1]["images_per_second"]) > 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert Recipe.from_dict(config["recipe"]) == tiny()
    for name in ("curves.png", "samples.png"):
        with Image.open(run / name) as picture:
            picture.load()
            assert min(picture.size) >= 128


def test_checkpoint_gives_the_model_and_its_card(run: Path, rendered_pairs: Path) -> None:
    model, card = checkpoint.load_model(run / "best.pt")
    assert not model.training
    assert card.input_size == (64, 64)
    assert card.training["training_images"] + card.training["validation_images"] == 12
    best = max(float(r["val_jaccard"]) for r in checkpoint.read_metrics(run))
    assert card.scores["validation"]["jaccard"] == pytest.approx(best)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)


def test_the_model_is_called_as_its_run_folder(run: Path) -> None:
    assert {checkpoint.load(run / name)[0].name for name in ("best.pt", "frozen.pt", "last.pt")} == {"whole"}
    assert checkpoint.load(run / "best.pt")[0].training["recipe"] == "tiny"


def test_a_stopped_run_resumes_to_the_very_same_weights(run: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    for stop in (1, 1):  # once between the stages, once within one
        resume = out / "last.pt" if out.exists() else None
        with pytest.raises(KeyboardInterrupt):
            train(settings(rendered_pairs, out, resume=resume), StopAfter(stop))
    train(settings(rendered_pairs, out, resume=out / "last.pt"))
    _, whole = checkpoint.load(run / "last.pt")
    _, resumed = checkpoint.load(out / "last.pt")
    for part in ("weights", "model"):
        assert whole[part].keys() == resumed[part].keys()
        different = [k for k in whole[part] if not torch.equal(whole[part][k], resumed[part][k])]
        assert different == []
    assert len(resumed["history"]) == 3


def test_a_stopped_run_that_mixes_styles_resumes_to_the_very_same_weights(rendered_pairs: Path, tmp_path: Path) -> None:
    weights = []
    for name, stops, recipe in (
        ("whole", 0, tiny(mixstyle=0.5)),
        ("stopped", 1, tiny(mixstyle=0.5)),
        ("plain", 0, tiny()),
    ):
        out = tmp_path / name
        for _ in range(stops):
            with pytest.raises(KeyboardInterrupt):
                train(settings(rendered_pairs, out, recipe=recipe), StopAfter(1))
        train(settings(rendered_pairs, out, recipe=recipe, resume=out / "last.pt" if stops else None))
        weights.append(checkpoint.load(out / "last.pt")[1]["model"])
    whole, stopped, plain = weights
    assert all(torch.equal(whole[k], stopped[k]) for k in whole)
    assert not all(torch.equal(whole[k], plain[k]) for k in whole)


def test_a_run_starts_from_the_weights_of_another(run: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    still = (Stage("still", epochs=1, decoder_lr=1e-12, warmup_epochs=0),)
    changes = {"recipe": tiny(stages=still, input_size=96, ema_decay=0), "start_from": run / "last.pt"}
    train(settings(rendered_pairs, tmp_path / "next", **changes))
    _, before = checkpoint.load(run / "last.pt")
    card, after = checkpoint.load(tmp_path / "next" / "last.pt")
    for name in ("encoder.layers.0.0.weight", "encoder.layers.17.conv.2.weight", "head.weight"):
        torch.testing.assert_close(after["weights"][name], before["model"][name])
    assert (card.training["start_from"]["epochs"], card.training["start_from"]["folds"]) == (3, 3)
    assert card.input_size == (96, 96)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": tiny(decoder_channels=(8, 8, 8, 16))}, r"the recipe asks for decoder_channels \[8, 8, 8, 16\]"),
        ({"recipe": tiny(standardise=1.0)}, r"holds standardise 0\.0; the recipe asks for standardise 1\.0"),
        ({"start_from": Path("nowhere.pt")}, "no such checkpoint"),
        ({"fold": 1}, r"last\.pt: has learned from images that would validate .* fold 0 of 3, not fold 1 of 3"),
    ],
)
def test_what_a_run_cannot_start_from_is_named(
    run: Path, rendered_pairs: Path, tmp_path: Path, change: dict, message: str
) -> None:
    with pytest.raises((ModelError, SettingsError), match=message):
        train(settings(rendered_pairs, tmp_path / "next", **({"start_from": run / "last.pt"} | change)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start_from": "whole"}, "start_from"),
        ({"recipe": tiny(batch_size=5)}, r"recipe\.batch_size: 4 then, 5 now"),
        ({"recipe": tiny(stages=STAGES[:1])}, r"recipe\.stages"),
        ({"seed": 1}, "seed: 0 then, 1 now"),
        ({"fold": 1}, "fold: 0 then, 1 now"),
    ],
)
def test_other_settings_cannot_be_resumed(run: Path, rendered_pairs: Path, change: dict, message: str) -> None:
    if "start_from" in change:
        change = {"start_from": run / "last.pt"}
    with pytest.raises(SettingsError, match=message):
        train(settings(rendered_pairs, run, resume=run / "last.pt", **change))


def test_what_began_before_its_start_was_refused_goes_on(run: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    out, changes = tmp_path / "next", {"start_from": run / "last.pt", "fold": 1}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop.Start, "check_unseen", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            train(settings(rendered_pairs, out, **changes), StopAfter(1))
    assert train(settings(rendered_pairs, out, resume=out / "last.pt", **changes))


def test_a_run_is_not_overwritten(run: Path, rendered_pairs: Path) -> None:
    with pytest.raises(SettingsError, match="--resume auto"):
        train(settings(rendered_pairs, run))


def test_the_samples_are_of_this_run(rendered_pairs: Path, tmp_path: Path) -> None:
    """Not of one that was stopped in its first epoch; a run that goes on keeps its own."""
    changes = {"recipe": tiny(stages=STAGES[1:], augmentation=None), "cache": False}
    train(settings(rendered_pairs, tmp_path / "whole", **changes))
    out = tmp_path / "stopped"

    class Stopped(Listener):
        def stepped(self, *_: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings(rendered_pairs, out), Stopped())
    stale = (out / "samples.png").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        train(settings(rendered_pairs, out, **changes), StopAfter(1))
    expected = (tmp_path / "whole" / "samples.png").read_bytes()
    assert expected != stale
    train(settings(rendered_pairs, out, **changes, resume=out / "last.pt"))
    assert (out / "samples.png").read_bytes() == expected


def test_a_run_folder_that_cannot_be_made_is_named(rendered_pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="the run folder cannot be written"):
        train(settings(rendered_pairs, tmp_path / "file" / "run"))


def test_best_pt_cannot_be_resumed(run: Path, rendered_pairs: Path) -> None:
    with pytest.raises(SettingsError, match=r"name the last\.pt"):
        train(settings(rendered_pairs, run, resume=run / "best.pt"))


def test_a_loss_that_is_no_number_stops_the_run(rendered_pairs: Path, tmp_path: Path) -> None:
    wild = Stage("wild", epochs=2, decoder_lr=1e30, encoder_lr=1e30, warmup_epochs=0)
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf).*lower decoder_lr"):
        train(settings(rendered_pairs, tmp_path / "wild", recipe=tiny(stages=(wild,))))


@pytest.mark.parametrize(
    ("fold", "rate", "message"),
    [
        (0, 1e30, r"the validation loss became (nan|inf) in epoch 1\. No epoch was saved"),
        (None, 1e39, r"the weights became infinite or no numbers in epoch 1\. No epoch was saved"),
    ],
)
def test_an_epoch_whose_last_step_destroys_the_weights_is_not_saved(
    rendered_pairs: Path, tmp_path: Path, fold: int | None, rate: float, message: str
) -> None:
    """One step an epoch: the loss before it is good."""
    wild = Stage("wild", epochs=2, decoder_lr=rate, encoder_lr=rate, warmup_epochs=0, schedule="constant")
    recipe, out = tiny(stages=(wild,), batch_size=16, ema_decay=0), tmp_path / "wild"
    with pytest.raises(TrainingError, match=message):
        train(settings(rendered_pairs, out, recipe=recipe, fold=fold))
    assert not list(out.glob("*.pt"))


def test_each_stage_leaves_its_last_weights(run: Path) -> None:
    (_, frozen), (_, tuned), (_, last) = (checkpoint.load(run / f"{name}.pt") for name in ("frozen", "tuned", "last"))
    assert (frozen["epoch"], tuned["epoch"]) == (1, 3)
    assert all(torch.equal(tuned["weights"][k], last["weights"][k]) for k in tuned["weights"])
    assert not all(torch.equal(frozen["weights"][k], tuned["weights"][k]) for k in tuned["weights"])


def test_without_a_fold_all_pairs_are_learned_and_the_last_epoch_is_kept(rendered_pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "all"
    best = train(settings(rendered_pairs, out, fold=None))
    _, card = checkpoint.load_model(best)
    assert (card.training["training_images"], card.training["validation_images"]) == (12, 0)
    assert card.scores == {}
    rows = checkpoint.read_metrics(out)
    assert [r["val_jaccard"] for r in rows] == ["nan"] * 3
    assert checkpoint.load(best)[1]["epoch"] == 3


def test_stages_of_different_sizes_train_one_model(rendered_pairs: Path, tmp_path: Path) -> None:
    stages = (Stage("small", 1, 1e-3, 1e-4, input_size=32), Stage("large", 1, 1e-3, 1e-4))
    best = train(settings(rendered_pairs, tmp_path / "run", recipe=tiny(stages=stages)))
    assert checkpoint.load_model(best)[1].input_size == (64, 64)


def test_a_run_without_a_cache_learns_the_same(rendered_pairs: Path, tmp_path: Path) -> None:
    losses = []
    for cache in (True, False):
        out = tmp_path / str(cache)
        train(settings(rendered_pairs, out, recipe=tiny(stages=STAGES[1:], augmentation=None), cache=cache))
        losses.append(float(checkpoint.read_metrics(out)[0]["train_loss"]))
    # Pillow's and DALI's resize differ by rounding, see docs/design.md.
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_frozen_stage_from_cached_features_learns_the_same(rendered_pairs: Path, tmp_path: Path) -> None:
    losses = []
    for cache in (True, False):  # features are cached where pairs are
        out = tmp_path / str(cache)
        stage = Stage("frozen", epochs=3, decoder_lr=2e-3, warmup_epochs=0)
        train(settings(rendered_pairs, out, recipe=tiny(stages=(stage,), augmentation=None), cache=cache))
        losses.append([float(r["train_loss"]) for r in checkpoint.read_metrics(out)])
    cached, plain = losses
    assert cached == pytest.approx(plain, rel=0.02)
    assert cached[-1] < cached[0]


def test_offline_copies_are_made_once_and_added(rendered_pairs: Path, tmp_path: Path) -> None:
    large = Stage("frozen", epochs=1, decoder_lr=2e-3, input_size=96)  # the recipe's is 64
    recipe = tiny(stages=(large,), augmented_copies=1, augmentation=Augmentation())
    out = tmp_path / "offline"
    seen: list[int] = []

    class Count(Listener):
        def started(self, recipe: Recipe, training: int, validation: int, grey_masks: int, done: int) -> None:
            seen.append(training)
            seen.append(validation)

    train(settings(rendered_pairs, out, recipe=recipe), Count())
    assert (training := seen[0]) == 2 * (12 - seen[1])
    copies = sorted((out / "augmented" / "images").iterdir())
    assert len(copies) == training // 2
    with Image.open(copies[0]) as image:
        assert image.size == (96, 96)


def test_offline_copies_of_other_settings_are_not_taken_over(
    rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was stopped after its copies were made, before its first epoch."""
    recipe, out = tiny(stages=STAGES[:1], augmented_copies=1, augmentation=Augmentation()), tmp_path / "offline"

    class Stopped(Listener):
        def started(self, *_: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings(rendered_pairs, out, recipe=recipe), Stopped())
    assert not (out / "last.pt").exists()
    made = {path: path.read_bytes() for path in (out / "augmented" / "images").iterdir()}
    with pytest.raises(SettingsError, match="holds a run already"):
        train(settings(rendered_pairs, out, recipe=recipe, seed=1))
    with pytest.raises(SettingsError, match="seed: 0 then, 1 now"):
        train(settings(rendered_pairs, out, recipe=recipe, seed=1, resume=out / "last.pt"))
    train(settings(rendered_pairs, out, recipe=recipe, resume=out / "last.pt"))
    assert (out / "last.pt").exists()
    assert {path: path.read_bytes() for path in made} == made


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "read safely"), (b"PK\x03\x04 junk", "read safely"), (None, "no such checkpoint")],
)
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        checkpoint.load_model(path)


def test_pickled_code_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"isicrt": 1, "card": "{}", "weights": {}, "x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="read safely"):
        checkpoint.load_model(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


def test_weights_of_another_architecture_are_refused(run: Path, tmp_path: Path) -> None:
    card, data = checkpoint.load(run / "best.pt")
    other = card.replace(architecture="segnet-attention")
    checkpoint.save(tmp_path / "mixed.pt", card=other, weights=data["weights"])
    with pytest.raises(ModelError, match="do not fit its card"):
        checkpoint.load_model(tmp_path / "mixed.pt")


def test_a_stage_may_augment_in_its_own_way(
    rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    class Watched(TrainingBatches):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            given.append(settings["augmentation"])
            super().__init__(*arguments, **settings)

    monkeypatch.setattr(loop, "TrainingBatches", Watched)
    milder = Augmentation(min_zoom=0.9, rotate_probability=0.0)
    stages = (STAGES[0], dataclasses.replace(STAGES[1], augmentation=milder))
    train(settings(rendered_pairs, tmp_path / "run", recipe=tiny(stages=stages)))
    assert given == [Augmentation(), milder, milder]
    kept = Recipe.from_dict(yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["recipe"])
    assert kept.stages == stages
