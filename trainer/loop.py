"""The training loop: flat and explicit. A run folder holds everything that it made and everything needed to go on."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from isicrt._version import __version__
from isicrt.engine.card import ModelCard
from isicrt.engine.errors import SettingsError, TrainingError
from isicrt.trainer import checkpoint, optimisation
from isicrt.trainer.cache import resized_pairs
from isicrt.trainer.curves import draw_curves, draw_samples
from isicrt.trainer.dataset import checked_pairs, split_fold
from isicrt.trainer.features import FeatureBatches, FrozenFeatures
from isicrt.trainer.losses import mix
from isicrt.trainer.mixstyle import mixed_styles
from isicrt.trainer.models import build_model, normalise
from isicrt.trainer.offline import augment_offline
from isicrt.trainer.pipelines import TrainingBatches, cache_size, epoch_seed
from isicrt.trainer.recipe import Recipe
from isicrt.trainer.start import Start
from isicrt.trainer.validation import ValidationSet


@dataclass(frozen=True)
class RunSettings:
    """Where a run gets its data and where it goes; what it does is the recipe's."""

    recipe: Recipe
    data: tuple[Path, ...]
    """One or several data sets, see `find_pairs`."""
    out: Path
    fold: int | None = 0
    """The fold that validates; None to learn from every pair, validate nothing and keep the last epoch."""
    seed: int = 0
    device: str = "cpu"
    """``cpu`` or ``cuda``."""
    cache: bool = True
    """Decode once and keep the resized pairs, see `resized_pairs`; False decodes in every epoch."""
    pretrained: str | os.PathLike[str] | None = "imagenet"
    """Of the encoder, see `MobileNetV2Encoder`."""
    resume: Path | None = None
    """A ``last.pt`` to go on from."""
    start_from: Path | None = None
    """A checkpoint whose weights this run begins with, in place of `pretrained`: the same architecture and widths,
    any input size. Its last epoch where it has one, else its average."""


class Listener:
    """Is told how a run goes. This one says nothing; the command line's draws a progress bar."""

    def started(self, recipe: Recipe, training: int, validation: int, grey_masks: int, done: int) -> None:
        """The data are checked, so many masks are grey; `done` epochs were trained before."""

    def stepped(self, epoch: int, images: int, loss: float) -> None:
        """A batch of so many images is learned."""

    def finished(self, row: Mapping[str, Any]) -> None:
        """An epoch is validated and saved; `row` goes to ``metrics.csv``."""


def train(settings: RunSettings, listener: Listener | None = None) -> Path:
    """Train a model.

    Args:
        settings: of the run.
        listener: is told of every batch and epoch.

    Returns:
        ``best.pt``, the epoch with the highest mean Jaccard index on the validation fold; the last one where there is
        no validation.

    Raises:
        DataError: the data set cannot be used.
        SettingsError: the run folder holds another run, or the checkpoint to resume does not belong to these settings.
        TrainingError: the loss is not a number any more, or the disk is full; the last checkpoint is good.
    """
    listener = listener or Listener()
    recipe, out = settings.recipe, settings.out
    if settings.resume is None and (out / checkpoint.LAST).exists():
        raise SettingsError(f"{out} holds a run already: go on with --resume auto, or name another folder with --out")
    pairs, report = checked_pairs(settings.data, "train")
    training, validation = (pairs, []) if settings.fold is None else split_fold(pairs, recipe.folds, settings.fold)
    identity: dict[str, Any] = {
        "recipe": recipe.to_dict(),
        "data_sha256": report.sha256,
        "fold": settings.fold,
        "seed": settings.seed,
    }
    start = None if settings.start_from is None else Start.read(settings.start_from, recipe)
    if start is not None:
        identity["start_from"] = start.origin

    torch.manual_seed(settings.seed)
    channels = {} if recipe.decoder_channels is None else {"decoder_channels": list(recipe.decoder_channels)}
    network: dict[str, Any] = {"layout": recipe.layout} | channels
    card = _card(settings, network, report.sha256, len(training), len(validation), start)
    given = settings.resume or settings.start_from
    weights_source = None if given else settings.pretrained
    model = build_model(recipe.architecture, pretrained=weights_source, **network)
    model = model.to(settings.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if start is not None:
        model.load_state_dict(start.weights)
    average = optimisation.make_average(model, recipe.ema_decay)
    history: list[dict[str, Any]] = []
    optimiser_state: dict[str, Any] | None = None
    scaler_state: dict[str, Any] = {}
    if settings.resume is not None:
        _, state = checkpoint.load(settings.resume)
        _check_identity(settings.resume, state, identity)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser_state, scaler_state, history = state["optimiser"], state["scaler"], state["history"]

    try:
        out.mkdir(parents=True, exist_ok=True)
        _write_config(settings, identity)
        if history:  # a kill may have come between the checkpoint and its row
            _write_metrics(history, out / checkpoint.METRICS)
    except OSError as error:
        raise SettingsError(
            f"{out}: the run folder cannot be written: {error.strerror}. Name another with --out"
        ) from error
    if recipe.augmented_copies and recipe.augmentation is not None:
        training = training + augment_offline(
            training,
            out / "augmented",
            copies=recipe.augmented_copies,
            size=recipe.input_size,
            augmentation=recipe.augmentation,
            seed=settings.seed,
        )
    validation_set = ValidationSet(validation, card) if validation else None
    online = None if recipe.augmented_copies else recipe.augmentation
    kept = cache_size(recipe.largest_size) if online else recipe.input_size
    resized = resized_pairs(training, kept) if settings.cache else None
    listener.started(recipe, len(training), len(validation), report.grey_masks, len(history))
    loss_function = mix(recipe.loss)
    half = half_type(settings.device)
    scaler = torch.amp.GradScaler(settings.device, enabled=half == torch.float16)
    if scaler_state:
        scaler.load_state_dict(scaler_state)
    board = _tensorboard(out)

    optimiser: torch.optim.Optimizer | None = None
    previous_stage = None
    features: FrozenFeatures | None = None
    for epoch in range(len(history), recipe.epochs):
        begun = time.perf_counter()
        stage, stage_start = recipe.stage_of(epoch)
        if stage is not previous_stage or optimiser is None:
            optimisation.set_stage(model, stage, recipe.frozen_layers)
            optimiser = optimisation.make_optimiser(model, stage, recipe.weight_decay)
            if optimiser_state is not None and epoch != stage_start:
                optimiser.load_state_dict(optimiser_state)
            optimiser_state, previous_stage, features = None, stage, None
        optimisation.set_stage(model, stage, recipe.frozen_layers)
        size, seed = stage.input_size or recipe.input_size, epoch_seed(settings.seed, epoch)
        still = stage.frozen and online is None and resized is not None and size == recipe.input_size
        if still and resized is not None and FrozenFeatures.fit(len(training), size):
            features = features or FrozenFeatures(model, resized, card, device=settings.device)
            batches: TrainingBatches | FeatureBatches = features.batches(recipe.batch_size, seed)
        else:
            batches = TrainingBatches(
                training,
                size=size,
                batch_size=recipe.batch_size,
                augmentation=stage.augmentation or online,
                seed=seed,
                resized=resized,
                device=settings.device,
                threads=torch.get_num_threads(),
            )
        total, seen = 0.0, 0
        for step, (inputs, masks) in enumerate(batches):
            if isinstance(inputs, Tensor) and not (out / "samples.png").exists():
                draw_samples(inputs, masks, out / "samples.png")
            factor = optimisation.learning_rate_factor(stage, epoch - stage_start + (step + 1) / len(batches))
            for group in optimiser.param_groups:
                group["lr"] = group["base_lr"] * factor
            with (
                torch.autocast(settings.device, half, enabled=half is not None),
                mixed_styles(model.encoder.layers, recipe.mixstyle, epoch_seed(seed, step)),
            ):
                if isinstance(inputs, Tensor):
                    logits = model(normalise(inputs, card.mean, card.std))
                else:
                    logits = model.decode(inputs)
            loss = loss_function(logits.float(), masks)
            value = float(loss.detach())
            if not math.isfinite(value):
                last = f"{checkpoint.LAST} is of the epoch before" if history else "No epoch was finished"
                raise TrainingError(
                    f"{out}: the loss became {value} in epoch {epoch + 1}. {last}. "
                    "Try a lower decoder_lr and encoder_lr, or a longer warm-up, in the recipe."
                )
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimiser)
            scaler.update()
            if recipe.ema_decay:
                average.update_parameters(model)
            total, seen = total + value * len(masks), seen + len(masks)
            listener.stepped(epoch + 1, len(masks), value)
        trained = time.perf_counter()
        judged = average.module if recipe.ema_decay else model
        judged.eval()
        scores = (
            {} if validation_set is None else validation_set.evaluate(judged, loss_function, device=settings.device)
        )
        row = {
            "epoch": epoch + 1,
            "stage": stage.name,
            "train_loss": total / seen,
            **{f"val_{name}": scores.get(name, math.nan) for name in ("loss", "jaccard", "dice", "threshold_jaccard")},
            "encoder_lr": stage.encoder_lr * factor,
            "decoder_lr": stage.decoder_lr * factor,
            "images_per_second": seen / (trained - begun),
            "seconds": time.perf_counter() - begun,
        }
        history.append(row)
        weights = judged.state_dict()
        is_best = not scores or row["val_jaccard"] == max(r["val_jaccard"] for r in history)
        scored = card.replace(scores=_noted(scores, recipe, settings.fold))
        try:
            if is_best:
                chosen = card.replace(scores=_noted(scores, recipe, settings.fold, "; chose the epoch"))
                checkpoint.save(out / checkpoint.BEST, card=chosen, weights=weights, epoch=epoch + 1)
            if epoch + 1 == stage_start + stage.epochs:
                checkpoint.save(out / f"{stage.name}.pt", card=scored, weights=weights, epoch=epoch + 1)
            checkpoint.save(
                out / checkpoint.LAST,
                card=scored,
                weights=weights,
                model=model.state_dict(),
                average=average.state_dict(),
                optimiser=optimiser.state_dict(),
                scaler=scaler.state_dict(),
                history=history,
                identity=identity,
            )
            _write_metrics(history, out / checkpoint.METRICS)
            draw_curves(checkpoint.read_metrics(out), out / "curves.png", title=_title(settings))
        except OSError as error:
            raise TrainingError(f"{out}: epoch {epoch + 1} could not be saved: {error}") from error
        if board is not None:
            for name, number in row.items():
                if isinstance(number, float):
                    board.add_scalar(name, number, epoch + 1)
        listener.finished(row)
    if board is not None:
        board.close()
    return out / checkpoint.BEST


def _card(
    settings: RunSettings,
    network: Mapping[str, Any],
    data_sha256: str,
    training: int,
    validation: int,
    start: Start | None,
) -> ModelCard:
    recipe = settings.recipe
    return ModelCard(
        name=recipe.name,
        architecture=recipe.architecture,
        input_height=recipe.input_size,
        input_width=recipe.input_size,
        network=network,
        training={
            # The last two names of the path tell data sets apart and tell nothing of the machine.
            "data": ["/".join(root.absolute().parts[-2:]) for root in settings.data],
            "data_sha256": data_sha256,
            "training_images": training,
            "validation_images": validation,
            "recipe": recipe.name,
            "epochs": recipe.epochs,
            "fold": settings.fold,
            "seed": settings.seed,
            "arithmetic": str(half_type(settings.device) or torch.float32).removeprefix("torch."),
            **({} if start is None else {"start_from": dict(start.origin)}),
        },
        versions={"isicrt": __version__, "python": platform.python_version(), "torch": str(torch.__version__)},
        created=datetime.date.today().isoformat(),
    )


def half_type(device: str) -> torch.dtype | None:
    """The 16-bit type that this device is fast in: bfloat16 where there is hardware for it, else float16 on a GPU and
    None (float32 throughout) on a CPU."""
    if device == "cpu":
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _title(settings: RunSettings) -> str:
    fold = "all pairs" if settings.fold is None else f"fold {settings.fold}"
    return f"{settings.recipe.name}, {fold}"


def _noted(scores: Mapping[str, Any], recipe: Recipe, fold: int | None, remark: str = "") -> dict[str, Any]:
    """What a card says of the validation; nothing where there was none."""
    if not scores:
        return {}
    kept = ("images", "jaccard", "dice", "threshold_jaccard", "jaccard_low", "jaccard_high")
    protocol = {"protocol": f"official, without clean-up{remark}", "fold": f"{fold} of {recipe.folds}"}
    return {"validation": {name: scores[name] for name in kept} | protocol}


def _check_identity(path: Path, state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuse to go on with other data or another recipe, and say what differs."""
    if "identity" not in state:
        raise SettingsError(f"{path}: cannot be resumed; name the {checkpoint.LAST} of a run")
    differences = _differences(state["identity"], identity, "")
    if differences:
        raise SettingsError(
            "\n  ".join([f"{path}: was made with other settings; give the same ones or start anew:", *differences])
        )


def _differences(then: Any, now: Any, prefix: str) -> list[str]:
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        keys = sorted(set(then) | set(now))
        return [d for k in keys for d in _differences(then.get(k), now.get(k), f"{prefix}{k}.")]
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        pairs = enumerate(zip(then, now, strict=True))
        return [d for i, (a, b) in pairs for d in _differences(a, b, f"{prefix}{i}.")]
    return [] if then == now else [f"{prefix.rstrip('.')}: {then!r} then, {now!r} now"]


def _write_config(settings: RunSettings, identity: Mapping[str, Any]) -> None:
    config = {
        **identity,
        "data": [str(root) for root in settings.data],
        "device": settings.device,
        "isicrt": __version__,
        "torch": str(torch.__version__),
    }
    text = yaml.safe_dump(_plain(config), sort_keys=False)
    (settings.out / checkpoint.CONFIG).write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    """The value in YAML's own types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _write_metrics(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)
    temporary.replace(path)


def _tensorboard(out: Path) -> Any:
    """A TensorBoard writer where TensorBoard is installed, else None."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out / "tensorboard"))
