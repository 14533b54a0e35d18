"""Training runs one after the other, with lines that say how far they are and how long the rest takes."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isicrt.engine.errors import IsicrtError

if TYPE_CHECKING:
    from isicrt.trainer.report_runs import Run

_SPOKEN_SECONDS = 10.0


class RunQueue:
    """Trains runs one after the other and says how far they are. A run that fails does not stop the others."""

    def __init__(self, data: Path, device: str, pretrained: str | None) -> None:
        self._data, self._device, self._pretrained = data, device, pretrained
        self._known: list[Run] = []
        self.failures: dict[Path, str] = {}

    def run(self, title: str, runs: Sequence[Run]) -> None:
        """Train what is not finished."""
        if not runs:
            return
        click.echo(f"{title}, on {self._device}:")
        width = max(len(run.label) for run in runs)
        self._known = [*runs, *self._known]
        for run in runs:
            click.echo(f"  {run.label:<{width}}  {self._state(run)}")
        for run in runs:
            if not run.finished:
                self._train(run)

    def _state(self, run: Run) -> str:
        total = run.recipe.epochs
        if run.finished:
            return f"done, {total} epochs"
        begun = f"stopped after epoch {run.epochs_done} of {total}" if run.epochs_done else f"to do, {total} epochs"
        return f"{begun}, {self._left([run])}"

    def _left(self, runs: Iterable[Run]) -> str:
        from isicrt.trainer.report_runs import seconds_left

        found = [seconds_left(run, self._known) for run in runs]
        seconds, known = sum(s for s, _ in found), all(k for _, k in found)
        if not seconds:
            return "an estimate comes with its epochs"
        return f"{'about' if known else 'more than'} {_duration(seconds)} left"

    def _train(self, run: Run) -> None:
        from isicrt.benchmarks.environment import read_environment
        from isicrt.trainer.loop import Listener, RunSettings, train
        from isicrt.trainer.recipe import Recipe
        from isicrt.trainer.report_runs import note_machine, note_memory

        left = self._left
        spoken = float("-inf")

        class Lines(Listener):
            """A line for an epoch now and then, and for the last one of each stage."""

            def started(self, recipe: Recipe, training: int, validation: int, grey_masks: int, done: int) -> None:
                note_machine(run, read_environment().to_dict(), training=training, validation=validation)
                resumed = f", going on after epoch {done}" if done else ""
                click.echo(f"{run.label}: {training} training images, {validation} validation images{resumed}")

            def finished(self, row: Mapping[str, Any]) -> None:
                nonlocal spoken
                stage, start = run.recipe.stage_of(row["epoch"] - 1)
                last = row["epoch"] == start + stage.epochs
                if not last and time.monotonic() - spoken < _SPOKEN_SECONDS:
                    return
                spoken = time.monotonic()
                click.echo(
                    f"{run.label}: epoch {row['epoch']} of {run.recipe.epochs}, {row['stage']}, loss "
                    f"{row['train_loss']:.4f}; validation: loss {row['val_loss']:.4f}, "
                    f"Jaccard {row['val_jaccard']:.4f}; {row['images_per_second']:.1f} images/s, {left([run])}"
                )

        settings = RunSettings(
            recipe=run.recipe,
            data=(self._data,),
            out=run.folder,
            fold=run.fold,
            seed=run.seed,
            device=self._device,
            pretrained=self._pretrained,
            resume=run.last_checkpoint,
        )
        gc.collect()  # of a run that failed, tensors on the GPU may be left
        if self._device == "cuda":
            import torch

            cuda: Any = torch.cuda
            if cuda.is_initialized():  # by a run before this one
                cuda.reset_peak_memory_stats()
        try:
            train(settings, Lines())
            if self._device == "cuda":
                note_memory(run, torch.cuda.max_memory_allocated())
        except IsicrtError as error:
            reason = " ".join(str(error).removeprefix(f"{run.folder}: ").split())  # it stands in a line of a table
            self.failures[run.folder] = f"failed: {reason}"
            click.echo(f"{run.label} failed: {error}", err=True)
        except KeyboardInterrupt:
            click.echo(
                f"\nStopped in {run.label} after epoch {run.epochs_done} of {run.recipe.epochs}. "
                "The same command goes on from there.",
                err=True,
            )
            raise


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
