"""Soft labels: each image is predicted by a teacher that has not seen it, and half of a target is that prediction."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from isicrt.engine.card import ModelCard
from isicrt.engine.errors import DataError, SettingsError
from isicrt.trainer import checkpoint, loop, soft_labels
from isicrt.trainer.cache import ResizedPairs, resized_pairs
from isicrt.trainer.dataset import Pair, find_pairs, hold_out, split_fold
from isicrt.trainer.features import FrozenFeatures
from isicrt.trainer.loop import Listener, RunSettings, train
from isicrt.trainer.models import build_model
from isicrt.trainer.pipelines import TrainingBatches, cache_size
from isicrt.trainer.recipe import Augmentation, Recipe, SoftLabels, Stage, load_recipe
from isicrt.trainer.twins import TWINS
from tests.trainer.test_loop import StopAfter, tiny
from tests.trainer.test_pipelines import STILL

TEACHER = tiny(
    name="teacher", input_size=32, batch_size=2, folds=5, ema_decay=0.5, stages=(Stage("tuned", 2, 2e-3, 1e-3),)
)


def write_recipe(recipe: Recipe, path: Path) -> str:
    path.write_text(yaml.safe_dump(recipe.to_dict()))
    return str(path)


def settings(data: Path, out: Path, teacher: str, **changes: Any) -> RunSettings:
    recipe = tiny(soft_labels=SoftLabels(teacher, parts=2), stages=(Stage("tuned", 2, 2e-3, 1e-3),))
    return RunSettings(**({"recipe": recipe, "data": (data,), "out": out, "pretrained": None} | changes))


class Watch(Listener):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def teaching(self, teacher: int, teachers: int) -> None:
        self.told.append(f"teacher {teacher} of {teachers}")

    def predicting(self, images: int, teachers: int) -> None:
        self.told.append("predicting")

    def finished(self, row: Any) -> None:
        self.told.append(f"epoch {row['epoch']}")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_recipe(TEACHER, tmp_path_factory.mktemp("recipes") / "teacher.yaml")


@pytest.fixture(scope="module")
def run(rendered_pairs: Path, teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: two teachers of two epochs, a student of two."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    watch = Watch()
    train(settings(rendered_pairs, out, teacher), watch)
    epochs = ["epoch 1", "epoch 2"]
    assert watch.told == ["teacher 1 of 2", *epochs, "teacher 2 of 2", *epochs, "predicting", *epochs]
    return out


def weights(path: Path) -> dict[str, torch.Tensor]:
    state = checkpoint.load(path)[1]
    return {f"{part}.{k}": v for part in ("weights", "model") for k, v in state[part].items()}


def assert_same(a: Path, b: Path) -> None:
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    assert [k for k in one if not torch.equal(one[k], other[k])] == []


def test_parts_are_disjoint_and_share_out_all_pairs() -> None:
    pairs = [Pair(f"ISIC_{n:07d}", Path("i"), Path("m")) for n in range(200)]
    sides = [hold_out(pairs, part, 4) for part in range(4)]
    assert sorted(p.id for _, held in sides for p in held) == [p.id for p in pairs]
    assert all(len(rest) + len(held) == 200 and not set(rest) & set(held) for rest, held in sides)
    assert all(30 <= len(held) <= 70 for _, held in sides)
    # The parts know nothing of the folds: of two halves of either kind, each fold is in both parts.
    validated = split_fold(pairs, 2, 0)[1]
    assert 30 <= len(set(hold_out(pairs, 0, 2)[1]) & set(validated)) <= 70


def test_parts_keep_the_images_of_a_lesion_together() -> None:
    pairs = [Pair(name, Path("i"), Path("m")) for group in TWINS for name in group]
    part = {p.id: k for k in range(4) for p in hold_out(pairs, k, 4)[1]}
    assert all(len({part[name] for name in group}) == 1 for group in TWINS)
    assert len(set(part.values())) == 4


@pytest.mark.parametrize(("count", "part"), [(10, 4), (10, -1), (1, 0)])
def test_parts_that_do_not_exist(count: int, part: int) -> None:
    with pytest.raises(DataError, match="part"):
        hold_out([Pair(f"ISIC_{n:07d}", Path("i"), Path("m")) for n in range(count)], part, 4)


def test_teachers_are_ordinary_runs_that_have_not_learned_from_their_part(run: Path, rendered_pairs: Path) -> None:
    learned, _ = split_fold(find_pairs(rendered_pairs), 3, 0)
    for part in range(2):
        folder = run / "teachers" / str(part)
        rest, held = hold_out(learned, part, 2)
        assert held
        card, state = checkpoint.load(folder / "last.pt")
        assert card.training["training_images"] == len(rest)
        assert card.training["held_out"] == state["identity"]["held_out"] == [part, 2]
        assert state["identity"]["recipe"]["folds"] == 3  # the student's, not its own
        assert {"best.pt", "config.yaml", "metrics.csv", "curves.png"} <= {p.name for p in folder.iterdir()}


def test_a_held_out_part_is_never_fed_to_the_network(
    rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[Pair], ResizedPairs]] = []

    class Watched(TrainingBatches):
        def __init__(self, pairs: list[Pair], **given: Any) -> None:
            seen.append((pairs, given["resized"]))
            super().__init__(pairs, **given)

    monkeypatch.setattr(loop, "TrainingBatches", Watched)
    train(RunSettings(TEACHER, (rendered_pairs,), tmp_path / "run", fold=None, pretrained=None, held_out=(1, 2)))
    everything = find_pairs(rendered_pairs)
    (pairs, resized), *_ = seen
    assert pairs == hold_out(everything, 1, 2)[0]
    alone = resized_pairs(pairs, cache_size(32), tmp_path / "cache")
    np.testing.assert_array_equal(resized.images, alone.images)
    np.testing.assert_array_equal(resized.masks, alone.masks)


def copied(run: Path, out: Path, *, student: bool) -> Path:
    """The finished run, or as it was before its student began."""
    shutil.copytree(run, out)
    if not student:
        for name in ("last.pt", "best.pt", "tuned.pt", "metrics.csv"):
            (out / name).unlink()
    return out


def test_each_image_is_predicted_by_the_teacher_that_has_not_seen_it(
    run: Path, rendered_pairs: Path, teacher: str, tmp_path: Path
) -> None:
    """The first teacher is made to see no lesion anywhere, the second to see nothing else."""
    out = copied(run, tmp_path / "run", student=True)
    for part, bias in enumerate((-9.0, 9.0)):
        path = out / "teachers" / str(part) / "last.pt"
        card, state = checkpoint.load(path)
        state["weights"]["head.bias"].fill_(bias)
        checkpoint.save(path, card=card, **state)
    train(settings(rendered_pairs, out, teacher, resume=out / "last.pt"))
    learned, _ = split_fold(find_pairs(rendered_pairs), 3, 0)
    with np.load(out / "soft-labels.npz") as saved:
        ids, levels = saved["ids"].tolist(), saved["levels"]
    assert ids == [p.id for p in learned]
    assert (levels.shape, levels.dtype) == ((len(learned), 32, 32), np.uint8)
    by_first = [name for name, level in zip(ids, levels, strict=True) if level.max() < 50]
    by_second = [name for name, level in zip(ids, levels, strict=True) if level.min() > 200]
    assert by_first == [p.id for p in hold_out(learned, 0, 2)[1]]
    assert by_second == [p.id for p in hold_out(learned, 1, 2)[1]]


def test_a_prediction_is_the_mean_of_eight_views() -> None:
    """A network that sees brightness and a column's number: what depends on the place averages out over the views."""

    class Slope(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(1, keepdim=True) + torch.linspace(-1, 1, images.shape[3])

    card = ModelCard("slope", "none", 32, 32, mean=(0, 0, 0), std=(1, 1, 1))
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[0, 4:10, 20:30] = 255  # in no symmetrical place
    found = soft_labels.predict(Slope(), card, image)
    slope = np.linspace(-1, 1, 32)
    values = image[0].mean(2) / 255
    views = [values + s for s in (slope, -slope, slope[:, None], -slope[:, None])]
    expected = np.mean([1 / (1 + np.exp(-v)) for v in views], axis=0) * 255
    assert np.abs(found[0] - expected).max() <= 0.51
    grey = soft_labels.predict(Slope(), card, image.transpose(0, 2, 1, 3).copy())
    np.testing.assert_array_equal(grey[0], found[0].T)


def test_targets_are_a_share_of_the_truth_and_the_rest_of_the_prediction() -> None:
    masks = np.zeros((2, 4, 4), np.uint8)
    masks[0, :, :2] = 255
    levels = np.array([[[200, 200], [200, 200]], [[0, 100], [0, 100]]], np.uint8)
    soft = soft_labels.soft_masks(masks, levels, 0.25)
    assert soft.dtype == np.uint8
    assert np.unique(soft[0, :, :2]).tolist() == [214]  # 0.25 * 255 + 0.75 * 200 = 213.75
    assert np.unique(soft[0, :, 2:]).tolist() == [150]
    # Twice as wide: a quarter, three quarters of the way between the two columns.
    assert soft[1].tolist() == [[0, 19, 56, 75]] * 4


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Pair], ResizedPairs]:
    """Images whose red is their soft mask: whatever moves one must move the other, and keep its levels."""
    rows, columns = np.mgrid[0:96, 0:96]
    masks = np.stack([np.clip(200 - 5 * np.hypot(rows - 40 - n, columns - 50), 0, 255) for n in range(4)])
    masks = masks.round().astype(np.uint8)
    images = np.stack([masks, np.full_like(masks, 40), np.full_like(masks, 40)], axis=-1)
    pairs = [Pair(f"ISIC_{n:07d}", Path("i"), Path("m")) for n in range(4)]
    return pairs, ResizedPairs(images, masks, soft=True)


@pytest.mark.parametrize(
    "augmentation",
    [
        None,
        STILL,
        dataclasses.replace(STILL, flip=True, min_zoom=0.5, max_zoom=1.5, max_aspect=1.5, max_shear=8.0),
        dataclasses.replace(STILL, rotate_probability=1.0, max_zoom=1.5, border="reflect"),
    ],
)
def test_a_soft_mask_moves_with_its_image_and_keeps_its_levels(
    graded: tuple[list[Pair], ResizedPairs], augmentation: Augmentation | None
) -> None:
    pairs, resized = graded
    batches = TrainingBatches(pairs, size=64, batch_size=4, augmentation=augmentation, seed=1, resized=resized)
    ((images, masks),) = list(batches)
    assert masks.dtype == torch.float32
    assert len(masks.unique()) > 50
    assert masks.max() <= 1
    # Both are resampled by the same rule, so they differ by no more than the rounding of the image's colours.
    assert (images[..., 0].float() / 255 - masks[:, 0]).abs().max() < 2.5 / 255


def test_frozen_features_keep_soft_masks(graded: tuple[list[Pair], ResizedPairs]) -> None:
    model = build_model("unet", pretrained=None, decoder_channels=[8, 8, 8, 8]).eval()
    card = ModelCard("x", "unet", 96, 96)
    batches = FrozenFeatures(model, graded[1], card, device="cpu").batches(4, seed=2)
    ((_, masks),) = list(batches)
    torch.testing.assert_close(masks[:, 0], torch.from_numpy(graded[1].masks[batches.order]) / 255)


def test_the_student_learns_from_soft_masks(run: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    card, state = checkpoint.load(run / "last.pt")
    assert card.training["soft_labels"] == {"teacher": "teacher", "parts": 2, "share": 0.5}
    assert state["identity"]["teacher"]["name"] == "teacher"
    assert Recipe.from_dict(yaml.safe_load((run / "config.yaml").read_text())["recipe"]).soft_labels is not None
    plain = tiny(stages=(Stage("tuned", 2, 2e-3, 1e-3),))
    train(RunSettings(plain, (rendered_pairs,), tmp_path / "plain", pretrained=None))
    soft, hard = weights(run / "last.pt"), weights(tmp_path / "plain" / "last.pt")
    assert soft.keys() == hard.keys()
    assert not all(torch.equal(soft[k], hard[k]) for k in soft)


@pytest.mark.parametrize("stops", [[1, 1, 2, 1], [5]])
def test_a_stopped_run_ends_with_the_very_same_weights(
    run: Path, rendered_pairs: Path, teacher: str, tmp_path: Path, stops: list[int]
) -> None:
    """Stopped after so many epochs of six: within a teacher, between it and what comes next, within the student."""
    out = tmp_path / "run"
    for stop in stops:
        resume = out / "last.pt" if out.exists() else None
        with pytest.raises(KeyboardInterrupt):
            train(settings(rendered_pairs, out, teacher, resume=resume), StopAfter(stop))
    watch = Watch()
    train(settings(rendered_pairs, out, teacher, resume=out / "last.pt"), watch)
    assert len([line for line in watch.told if line.startswith("epoch")]) == 6 - sum(stops)
    for name in ("last.pt", "teachers/0/last.pt", "teachers/1/last.pt"):
        assert_same(run / name, out / name)


def test_a_folder_of_teachers_is_not_overwritten(run: Path, rendered_pairs: Path, teacher: str, tmp_path: Path) -> None:
    out = copied(run, tmp_path / "run", student=False)
    with pytest.raises(SettingsError, match="holds a run already: go on with --resume auto"):
        train(settings(rendered_pairs, out, teacher))


def test_predictions_are_used_again_or_made_anew(
    run: Path, rendered_pairs: Path, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copied(run, tmp_path / "run", student=True)
    given = settings(rendered_pairs, out, teacher, resume=out / "last.pt")
    predicted: list[int] = []
    predict = soft_labels.predict

    def counted(model: Any, card: ModelCard, images: Any, device: str = "cpu") -> Any:
        predicted.append(len(images))
        return predict(model, card, images, device)

    monkeypatch.setattr(soft_labels, "predict", counted)
    (out / "teachers").rename(out / "moved")  # to save space: what they predicted is enough
    train(given)
    assert predicted == []
    assert not (out / "teachers").exists()

    (out / "moved").rename(out / "teachers")
    labels = out / "soft-labels.npz"
    with np.load(labels) as saved:
        content = dict(saved)
    other = content | {"levels": np.zeros_like(content["levels"])}
    other["origin"] = np.array(str(content["origin"]).replace('"weights": ["', '"weights": ["0'))  # of other teachers
    np.savez(labels, **other)
    train(given)
    assert sum(predicted) == len(content["ids"])
    with np.load(labels) as saved:
        np.testing.assert_array_equal(saved["levels"], content["levels"])

    labels.write_bytes(labels.read_bytes()[:-200])  # not whole
    (out / "last.pt").unlink()
    train(given)
    assert sum(predicted) == 2 * len(content["ids"])
    assert_same(run / "last.pt", out / "last.pt")


@pytest.mark.parametrize("student", [True, False])
def test_a_changed_teacher_is_refused(
    run: Path, rendered_pairs: Path, teacher: str, tmp_path: Path, student: bool
) -> None:
    """Its file has the same name, so the recipe of the run is the same."""
    out = copied(run, tmp_path / "run", student=student)
    write_recipe(dataclasses.replace(TEACHER, batch_size=3), Path(teacher))
    try:
        with pytest.raises(SettingsError, match=r"teacher\.batch_size: 2 then, 3 now"):
            train(settings(rendered_pairs, out, teacher, resume=out / "last.pt"))
    finally:
        write_recipe(TEACHER, Path(teacher))


def test_a_teachers_folder_with_another_run_is_refused(
    run: Path, rendered_pairs: Path, teacher: str, tmp_path: Path
) -> None:
    out = copied(run, tmp_path / "run", student=False)
    (out / "soft-labels.npz").unlink()
    shutil.copy(out / "teachers" / "1" / "last.pt", out / "teachers" / "0" / "last.pt")
    with pytest.raises(SettingsError, match=r"held_out\.0: 1 then, 0 now"):
        train(settings(rendered_pairs, out, teacher, resume=out / "last.pt"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 0.75}, r"recipe\.soft_labels\.share: 0\.5 then, 0\.75 now"),
        ({"parts": 3}, r"recipe\.soft_labels\.parts: 2 then, 3 now"),
        (None, r"recipe\.soft_labels: .*then, None now"),
    ],
)
def test_other_settings_cannot_go_on_with_the_teachers(
    run: Path, rendered_pairs: Path, teacher: str, tmp_path: Path, change: dict[str, Any] | None, message: str
) -> None:
    out = copied(run, tmp_path / "run", student=False)
    given = settings(rendered_pairs, out, teacher, resume=out / "last.pt")
    other = None if change is None else SoftLabels(**({"teacher": teacher, "parts": 2} | change))
    with pytest.raises(SettingsError, match=message):
        train(dataclasses.replace(given, recipe=dataclasses.replace(given.recipe, soft_labels=other)))
    (out / "config.yaml").unlink()
    with pytest.raises(SettingsError, match="does not say which run this is"):
        train(given)


def test_what_cannot_teach_is_named(rendered_pairs: Path, teacher: str, tmp_path: Path) -> None:
    given = settings(rendered_pairs, tmp_path / "run", teacher)
    with pytest.raises(SettingsError, match="leave --no-cache away"):
        train(dataclasses.replace(given, cache=False))
    own = write_recipe(dataclasses.replace(TEACHER, soft_labels=SoftLabels(teacher)), tmp_path / "own.yaml")
    for name, message in ((own, "has soft_labels itself"), ("nobody", "nobody: no such recipe")):
        with pytest.raises(SettingsError, match=rf"soft_labels\.teacher: .*{message}"):
            train(settings(rendered_pairs, tmp_path / "run", name))
    assert not (tmp_path / "run").exists()


def test_a_recipe_without_soft_labels_says_nothing_of_them() -> None:
    """So that runs of before can be resumed."""
    assert "soft_labels" not in tiny().to_dict()
    soft = tiny(soft_labels=SoftLabels("t"))
    assert soft.to_dict()["soft_labels"] == {"teacher": "t", "parts": 4, "share": 0.5}
    assert Recipe.from_dict(soft.to_dict()) == soft


def test_the_shipped_recipe_is_the_default_with_soft_labels() -> None:
    recipe = load_recipe("unet-light-soft")
    assert recipe.soft_labels == SoftLabels("unet-light-teacher", parts=4, share=0.5)
    default = load_recipe("unet-light")
    # As it was measured, when the default did not standardise.
    plain = default.to_dict()
    for stage in plain["stages"]:
        if stage["augmentation"] is not None:
            assert stage["augmentation"]["artefacts"].pop("frame") > 0  # the recipe is older than plain borders
    expected = Recipe.from_dict(plain)
    assert dataclasses.replace(recipe, name=default.name, soft_labels=None, standardise=default.standardise) == expected
    assert soft_labels.teacher_of(RunSettings(recipe, (), Path("out"))) == load_recipe("unet-light-teacher")
