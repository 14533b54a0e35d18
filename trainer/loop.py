"""The training loop: flat and explicit. A run folder holds everything that it made and everything needed to go on."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isicrt.engine.errors import TrainingError
from isicrt.trainer import checkpoint, optimisation, soft_labels
from isicrt.trainer.cache import resized_pairs
from isicrt.trainer.curves import check_matplotlib, draw_curves, draw_samples
from isicrt.trainer.dataset import DatasetReport, Pair, checked_pairs, hold_out, split_fold
from isicrt.trainer.features import FeatureBatches, FrozenFeatures
from isicrt.trainer.late_losses import LateLosses
from isicrt.trainer.locks import locked_run
from isicrt.trainer.losses import mix
from isicrt.trainer.mixstyle import mixed_styles
from isicrt.trainer.models import build_model, normalise
from isicrt.trainer.offline import augment_offline
from isicrt.trainer.pipelines import TrainingBatches, cache_size, check_dali, epoch_seed, needs_dali
from isicrt.trainer.recipe import Recipe
from isicrt.trainer.run import Listener, RunSettings
from isicrt.trainer.run_card import card_of, noted
from isicrt.trainer.run_folder import (
    COPIES,
    SAMPLES,
    check_config,
    check_free,
    check_identity,
    check_place,
    has_begun,
    identity_of,
    write_config,
    write_metrics,
    write_validation,
)
from isicrt.trainer.saving import Best, Intervals
from isicrt.trainer.start import Blend, Start, encoder_weights, with_network
from isicrt.trainer.still_batches import StillBatches, StillPairs
from isicrt.trainer.validation import ValidationSet

__all__ = ["Listener", "RunSettings", "half_type", "train"]

LEAST_SCALE = 2.0**-10
"""Of the loss, for gradients in float16: a run that needs less has no gradients."""


def train(
    settings: RunSettings,
    listener: Listener | None = None,
    *,
    checked: tuple[list[Pair], DatasetReport] | None = None,
) -> Path:
    """Train a model; where the recipe has soft labels, its teachers first.

    Args:
        settings: of the run.
        listener: is told of every batch and epoch.
        checked: the data, where they were found and checked a moment ago.

    Returns:
        ``best.pt``, the epoch with the highest mean Jaccard index on the validation fold; the last one where there is
        no validation. Where a run goes on without the ``best.pt`` of its first epochs, that of the others; ``last.pt``
        where there were no others.

    Raises:
        DataError: the data set cannot be used.
        SettingsError: the run folder holds another run, or one that is running now, or the checkpoint to resume does
            not belong to these settings, or the one to start from has learned what would validate the run.
        MissingDependencyError: matplotlib is not installed, or DALI where it is needed.
        TrainingError: the loss is not a number any more, the disk is full, or the GPU's memory is; the last checkpoint
            is good.
    """
    settings = with_network(settings)
    with locked_run(settings.out), optimisation.chosen_convolutions(settings.device):
        try:
            return _train(settings, listener or Listener(), checked)
        except RuntimeError as error:  # torch's own kind, and what CUDA and cuDNN say of it
            if not any(sign in str(error) for sign in ("out of memory", "_STATUS_ALLOC_FAILED")):
                raise
            raise TrainingError(
                f"{settings.out}: the GPU's memory is too small for this: {_first_sentence(error)}. Lower "
                "batch_size or input_size in the recipe, or end what else runs on the GPU"
            ) from error


def _train(settings: RunSettings, listener: Listener, checked: tuple[list[Pair], DatasetReport] | None) -> Path:
    recipe, out = settings.recipe, settings.out
    if settings.resume is not None:
        check_place(settings.resume, out)
    else:
        check_free(out)
    # A run that was stopped while its teachers learned, or its copies were made, has no checkpoint of its own.
    preparing = settings.resume is not None and settings.resume.name == checkpoint.LAST
    preparing = preparing and not (out / checkpoint.LAST).exists() and has_begun(out)
    resume = None if preparing else settings.resume
    teacher = soft_labels.teacher_of(settings)
    _check_packages(settings, teacher, copied=resume is not None)
    pairs, report = checked or checked_pairs(settings.data, "train")
    if checked is None:
        listener.checked(report)
    learned, validation = (pairs, []) if settings.fold is None else split_fold(pairs, recipe.folds, settings.fold)
    training = learned if settings.held_out is None else hold_out(learned, *settings.held_out)[0]
    if recipe.soft_labels is not None:
        soft_labels.check_parts(training, recipe.soft_labels.parts)
    start = None if settings.start_from is None else Start.read(settings.start_from, recipe)
    # What has begun goes on: a run from before this was refused could neither change its fold nor its start.
    begins = settings.resume is None
    if begins and start is not None and settings.start_from is not None and settings.fold is not None:
        validates = (settings.fold, recipe.folds, [pair.id for pair in validation], report.also_known_as)
        start.check_unseen(settings.start_from, report.sha256, *validates)
    identity = identity_of(settings, report.sha256, start=start, teacher=teacher)
    state: dict[str, Any] = {}
    if resume is not None:
        _, state = checkpoint.load(resume)
        check_identity(resume, state, identity, report.also_known_as)
    # Read where the run begins, by itself or its teachers; one that goes on says what it said then.
    encoder: str | None = state.get("encoder_weights")
    if resume is None and (start is None or teacher is not None):
        encoder = encoder_weights(settings.pretrained)
    if preparing:
        check_config(out, identity, encoder, report.also_known_as)

    torch.manual_seed(settings.seed)
    channels = {} if recipe.decoder_channels is None else {"decoder_channels": list(recipe.decoder_channels)}
    shares = {"standardise": recipe.standardise} if recipe.standardise else {}
    network: dict[str, Any] = {"layout": recipe.layout} | channels | shares
    half = half_type(settings.device)
    card = card_of(settings, network, report.sha256, len(training), len(validation), start, teacher, half, encoder)
    given = resume or settings.start_from
    weights_source = None if given else settings.pretrained
    model = build_model(recipe.architecture, pretrained=weights_source, **network)
    model = model.to(settings.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    unlearned = min(32, recipe.batch_size)  # a GPU that has room for a batch to learn has room for this one
    if start is not None and resume is None:
        start.begin(model, training, card, unlearned)
    blend = Blend(model, state.get("start", model.state_dict()), recipe.start_share) if recipe.start_share else None
    average = optimisation.make_average(model, recipe.ema_decay) if recipe.ema_decay else None
    history: list[dict[str, Any]] = []
    optimiser_state: dict[str, Any] | None = None
    scaler_state: dict[str, Any] = {}
    compared_from = 0  # epochs before are not in the running for `best.pt`: where it is gone, so are their weights
    if resume is not None:
        model.load_state_dict(state["model"])
        if average is not None:
            average.load_state_dict(state["average"])
        optimiser_state, scaler_state, history = state["optimiser"], state["scaler"], state["history"]
        compared_from = state.get("compared_from", 0) if (out / checkpoint.BEST).exists() else len(history)

    try:
        write_config(settings, identity, encoder)
        write_validation(validation, out)
        if history:  # a kill may have come between the checkpoint and its row
            write_metrics(history, out / checkpoint.METRICS)
        else:  # one that was stopped before its first save may have had other settings
            (out / SAMPLES).unlink(missing_ok=True)
    except OSError as error:
        raise TrainingError(
            f"{out}: the run folder cannot be written: {error.strerror}. Name another with --out"
        ) from error
    copies = recipe.augmented_copies
    if copies and recipe.augmentation is not None:
        training = training + augment_offline(
            training,
            out / COPIES,
            copies=copies,
            size=max(recipe.input_size, recipe.largest_size),
            augmentation=recipe.augmentation,
            seed=settings.seed,
        )
    validation_set = ValidationSet(validation, card) if validation else None
    online = None if copies else recipe.augmentation
    kept = cache_size(recipe.largest_size) if online else max(recipe.input_size, recipe.largest_size)
    # Offline copies are a run's own; without them all folds and all teachers share one cache.
    cached: dict[str, Any] = {"within": None if copies else pairs, "sha256": report.sha256}
    resized = resized_pairs(training, kept, **cached) if settings.cache else None
    if teacher is not None and resized is not None:
        resized = soft_labels.soften(settings, teacher, training, (pairs, report), resized, listener, train)
    listener.started(recipe, len(training), len(validation), report.grey_masks, len(history))
    loss_function = mix(recipe.loss)
    scaler = torch.amp.GradScaler(settings.device, enabled=half == torch.float16)
    if scaler_state:
        scaler.load_state_dict(scaler_state)
    board = _tensorboard(out)

    optimiser: torch.optim.Optimizer | None = None
    previous_stage = None
    features: FrozenFeatures | None = None
    still: StillPairs | None = None
    still_size = 0
    losses, saves, drawings = LateLosses(), Intervals(), Intervals()
    waiting: Best | None = None
    saved = len(history)
    for epoch in range(len(history), recipe.epochs):
        begun = time.perf_counter()
        stage, stage_start = recipe.stage_of(epoch)
        if stage is not previous_stage or optimiser is None:
            optimisation.set_stage(model, stage, recipe.frozen_layers)
            optimiser = optimisation.make_optimiser(model, stage, recipe.weight_decay)
            if optimiser_state is not None and epoch != stage_start:
                optimisation.restore(optimiser, optimiser_state)
            optimiser_state, previous_stage, features = None, stage, None
        optimisation.set_stage(model, stage, recipe.frozen_layers)
        size, seed = stage.input_size or recipe.input_size, epoch_seed(settings.seed, epoch)
        # The pairs of a cache, where they are what the network sees.
        plain = None
        if online is None and stage.augmentation is None and resized is not None:
            if size == kept:
                plain = resized
            elif teacher is None:
                plain = resized_pairs(training, size, **cached)
        batches: TrainingBatches | FeatureBatches | StillBatches
        if plain is not None and stage.frozen and FrozenFeatures.fit(len(training), size):
            features = features or FrozenFeatures(model, plain, card, device=settings.device, batch_size=unlearned)
            batches = features.batches(recipe.batch_size, seed)
        elif plain is not None:
            if still is None or still_size != size:
                still, still_size = StillPairs(plain, settings.device), size
            batches = still.batches(recipe.batch_size, seed)
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

        def diverged(what: str, epoch: int = epoch, saved: int = saved) -> TrainingError:
            last = f"{checkpoint.LAST} is of epoch {saved}" if saved else "No epoch was saved"
            return TrainingError(
                f"{out}: {what} in epoch {epoch + 1}. {last}. "
                "Try a lower decoder_lr and encoder_lr, or a longer warm-up, in the recipe."
            )

        def count(read: list[tuple[float, int]], epoch: int = epoch) -> None:
            nonlocal total, seen
            for value, images in read:
                if not math.isfinite(value):
                    raise diverged(f"the loss became {value}")
                total, seen = total + value * images, seen + images
                listener.stepped(epoch + 1, images, value)

        for step, (inputs, masks) in enumerate(batches):
            if isinstance(inputs, Tensor) and not (out / SAMPLES).exists():
                try:
                    draw_samples(inputs, masks, out / SAMPLES)
                except OSError as error:
                    raise TrainingError(f"{out}: {SAMPLES} could not be saved: {error}") from error
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
            known = losses.read(loss, len(masks))
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimiser)
            scaler.update()
            if average is not None:
                average.update_parameters(model)
            count(known)
        count(losses.rest())
        trained = time.perf_counter()
        judged = model if average is None else average.module
        judged = judged if blend is None else blend.of(judged)
        judged.eval()
        scores: dict[str, float | int] = {}
        if validation_set is not None:
            scores = validation_set.evaluate(judged, loss_function, device=settings.device, batch_size=unlearned)
        # What the last step has done shows in no loss before it.
        if not math.isfinite(scores.get("loss", 0.0)):
            raise diverged(f"the validation loss became {scores['loss']}")
        # A step whose float16 gradients are no numbers is left out, and the next one is tried at half the scale.
        if scaler.is_enabled() and scaler.get_scale() < LEAST_SCALE:
            raise diverged("the gradients became infinite or no numbers")
        if not optimisation.all_finite(judged):
            raise diverged("the weights became infinite or no numbers")
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
        scored = card.replace(scores=noted(scores, recipe, settings.fold))
        ends = epoch + 1 == stage_start + stage.epochs
        if not scores or row["val_jaccard"] == max(r["val_jaccard"] for r in history[compared_from:]):
            chosen = card.replace(scores=noted(scores, recipe, settings.fold, "; chose the epoch"))
            waiting = Best(chosen, weights, epoch + 1)
        try:
            if ends or saves.due:
                with saves.timed():
                    if waiting is not None:
                        checkpoint.save(
                            out / checkpoint.BEST, card=waiting.card, weights=waiting.weights, epoch=waiting.epoch
                        )
                    if ends:
                        checkpoint.save(out / f"{stage.name}.pt", card=scored, weights=weights, epoch=epoch + 1)
                    checkpoint.save(
                        out / checkpoint.LAST,
                        card=scored,
                        weights=weights,
                        model=model.state_dict(),
                        **({} if average is None else {"average": average.state_dict()}),
                        **({} if blend is None else {"start": blend.start}),
                        **({} if encoder is None else {"encoder_weights": encoder}),
                        **({"compared_from": compared_from} if compared_from else {}),
                        optimiser=optimiser.state_dict(),
                        scaler=scaler.state_dict(),
                        history=history,
                        identity=identity,
                    )
                saved, waiting = epoch + 1, None
            elif waiting is not None and waiting.epoch == epoch + 1:
                waiting = waiting.kept()
            write_metrics(history, out / checkpoint.METRICS)
            if ends or drawings.due:
                with drawings.timed():
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
    return out / (checkpoint.BEST if (out / checkpoint.BEST).exists() else checkpoint.LAST)


def _check_packages(settings: RunSettings, teacher: Recipe | None, *, copied: bool) -> None:
    """Refuse what is sure to fail for want of a package, before the data are checked and decoded."""
    check_matplotlib()
    needed = needs_dali(settings.recipe, cache=settings.cache, copied=copied)
    if teacher is not None and not (settings.out / soft_labels.LABELS).exists():
        needed |= needs_dali(teacher, cache=True)
    if needed:
        check_dali()


def half_type(device: str) -> torch.dtype | None:
    """The 16-bit type that this device is fast in: bfloat16 where there is hardware for it, else float16 on a GPU, such
    as those before Ampere, where torch would emulate bfloat16, and None (float32 throughout) on a CPU."""
    if device == "cpu":
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _first_sentence(error: RuntimeError) -> str:
    return " ".join(str(error).split()).partition(". ")[0].rstrip(".")


def _title(settings: RunSettings) -> str:
    fold = "all pairs" if settings.fold is None else f"fold {settings.fold}"
    without = "" if settings.held_out is None else ", without part {} of {}".format(*settings.held_out)
    return f"{settings.recipe.name}, {fold}{without}"


def _tensorboard(out: Path) -> Any:
    """A TensorBoard writer where TensorBoard is installed, else None."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out / "tensorboard"))
