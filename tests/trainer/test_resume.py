"""What a run goes on from, and what it does not write over."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torchvision.models import mobilenet_v2

from isicrt.engine.errors import ModelError, SettingsError
from isicrt.trainer import checkpoint, loop
from isicrt.trainer.loop import Listener, train
from isicrt.trainer.offline import augment_offline
from isicrt.trainer.recipe import Augmentation, SoftLabels, Stage
from isicrt.trainer.start import encoder_weights
from tests.trainer.test_loop import STAGES, StopAfter, settings, tiny


@pytest.fixture(scope="module")
def stopped(rendered_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs that was stopped after one."""
    out = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.raises(KeyboardInterrupt):
        train(settings(rendered_pairs, out), StopAfter(1))
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("held", [True, False])
def test_a_run_goes_on_in_its_own_folder_only(stopped: Path, rendered_pairs: Path, tmp_path: Path, held: bool) -> None:
    """Elsewhere it would write over what is there, or end without the best model of its first epochs."""
    out = tmp_path / "other"
    if held:
        shutil.copytree(stopped, out)
    before = contents(out) if held else {}
    with pytest.raises(SettingsError, match=rf"goes on in its own folder.*--out {stopped}, or leave --out away"):
        train(settings(rendered_pairs, out, resume=stopped / "last.pt"))
    assert (contents(out) if out.exists() else {}) == before
    with pytest.raises(ModelError, match=r"missing\.pt: no such checkpoint"):
        train(settings(rendered_pairs, out, resume=tmp_path / "missing.pt"))


def test_a_folder_has_several_names(
    stopped: Path, rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    train(settings(rendered_pairs, out, resume=Path(os.curdir) / "run" / "last.pt"))
    assert len(checkpoint.read_metrics(out)) == 3


@pytest.mark.parametrize("gone", [["last.pt"], ["last.pt", "metrics.csv"]])
def test_a_best_model_that_was_kept_is_not_written_over(
    rendered_pairs: Path, stopped: Path, tmp_path: Path, gone: list[str]
) -> None:
    """Its ``last.pt`` was deleted to save space."""
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    card, state = checkpoint.load(out / "best.pt")
    checkpoint.save(out / "best.pt", card=card, weights=state["weights"], epoch=2)
    for name in gone:
        (out / name).unlink()
    before = contents(out)
    with pytest.raises(SettingsError, match=r"holds the best\.pt of a run already.*--out"):
        train(settings(rendered_pairs, out))
    assert contents(out) == before


def test_a_run_that_was_killed_between_its_first_two_checkpoints_begins_anew(
    rendered_pairs: Path, stopped: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    for name in ("last.pt", "metrics.csv"):
        (out / name).unlink()
    train(settings(rendered_pairs, out))
    assert len(checkpoint.read_metrics(out)) == 3


@pytest.fixture
def encoders(tmp_path: Path) -> list[Path]:
    """Files of two encoders' weights."""
    paths = [tmp_path / "one.pth", tmp_path / "two.pth"]
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        torch.save(mobilenet_v2(weights=None).state_dict(), path)
    return paths


def first_weights(out: Path) -> tuple[Any, ...]:
    """What the config and the cards say that the encoder began with."""
    config = yaml.safe_load((out / "config.yaml").read_text())
    cards = [checkpoint.load(out / name)[0] for name in ("last.pt", "best.pt") if (out / name).exists()]
    return config.get("encoder_weights"), *(card.training.get("encoder_weights") for card in cards)


def test_a_run_says_what_its_encoder_began_with(
    rendered_pairs: Path, stopped: Path, tmp_path: Path, encoders: list[Path]
) -> None:
    assert first_weights(stopped) == ("none",) * 3
    assert encoder_weights("imagenet") == "imagenet"
    out = tmp_path / "run"
    begun = f"sha256:{hashlib.sha256(encoders[0].read_bytes()).hexdigest()}"
    with pytest.raises(KeyboardInterrupt):
        train(settings(rendered_pairs, out, pretrained=encoders[0]), StopAfter(1))
    assert first_weights(out) == (begun,) * 3
    encoders[0].unlink()  # which nothing reads any more
    train(settings(rendered_pairs, out, pretrained=encoders[0], resume=out / "last.pt"))
    assert first_weights(out) == (begun,) * 3
    # What starts from a checkpoint says so, and not what it does not begin with.
    train(settings(rendered_pairs, tmp_path / "next", pretrained=encoders[0], start_from=out / "last.pt"))
    assert first_weights(tmp_path / "next") == (None,) * 3
    card, _ = checkpoint.load(tmp_path / "next" / "best.pt")
    assert card.training["start_from"]["encoder_weights"] == begun


def test_a_run_from_before_goes_on_and_says_nothing_of_its_encoder(
    rendered_pairs: Path, stopped: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    card, state = checkpoint.load(out / "last.pt")
    del state["encoder_weights"]
    checkpoint.save(out / "last.pt", card=card, **{k: v for k, v in state.items() if k != "isicrt"})
    train(settings(rendered_pairs, out, resume=out / "last.pt"))
    assert first_weights(out)[:2] == (None, None)


def test_weights_that_are_still_to_be_read_are_those_of_before(
    rendered_pairs: Path, tmp_path: Path, encoders: list[Path]
) -> None:
    """A run that was stopped after its copies were made, before its first epoch."""
    recipe, out = tiny(stages=STAGES[:1], augmented_copies=1, augmentation=Augmentation()), tmp_path / "run"

    class Stopped(Listener):
        def started(self, *_: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings(rendered_pairs, out, recipe=recipe, pretrained=encoders[0]), Stopped())
    given = settings(rendered_pairs, out, recipe=recipe, resume=out / "last.pt")
    with pytest.raises(SettingsError, match=r"encoder_weights: 'sha256:.* then, .* now \(--encoder-weights\)"):
        train(dataclasses.replace(given, pretrained=encoders[1]))
    config = out / "config.yaml"
    lines = [line for line in config.read_text().splitlines() if not line.startswith("encoder_weights")]
    config.write_text("\n".join(lines))
    train(dataclasses.replace(given, pretrained=encoders[1]))  # a run of before did not say


def test_a_teacher_that_was_stopped_while_its_copies_were_made_goes_on(
    rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    still = (Stage("tuned", 1, 2e-3, 1e-3),)
    teacher = tiny(name="teacher", input_size=32, stages=still, augmented_copies=1, augmentation=Augmentation())
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(teacher.to_dict()))
    recipe = tiny(input_size=32, stages=still, soft_labels=SoftLabels(str(tmp_path / "teacher.yaml"), parts=2))
    out = tmp_path / "run"

    def stop(*arguments: Any, **given: Any) -> Any:
        augment_offline(*arguments, **given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop, "augment_offline", stop)
        with pytest.raises(KeyboardInterrupt):
            train(settings(rendered_pairs, out, recipe=recipe))
    first = out / "teachers" / "0"
    assert not (first / "last.pt").exists()
    made = {path: path.read_bytes() for path in (first / "augmented" / "images").iterdir()}
    train(settings(rendered_pairs, out, recipe=recipe, resume=out / "last.pt"))
    assert (out / "best.pt").exists()
    assert {path: path.read_bytes() for path in made} == made
