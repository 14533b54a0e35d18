"""A run that is killed, or whose disk is full, loses no more than its last epoch."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from isicrt.engine.errors import TrainingError
from isicrt.trainer import checkpoint, loop
from isicrt.trainer.loop import RunSettings
from isicrt.trainer.recipe import Recipe, Stage

SCRIPT = """
import resource, sys
from pathlib import Path
from isicrt.engine.errors import IsicrtError
from isicrt.trainer.loop import RunSettings, train
from isicrt.trainer.recipe import Recipe, Stage
data, out, epochs, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
recipe = Recipe(name="tiny", architecture="unet", decoder_channels=(8, 8, 8, 8), input_size=32, batch_size=4, folds=3,
                augmentation=None, stages=(Stage("tuned", epochs, 1e-3, 1e-4, schedule="constant"),))
last = out / "last.pt"
try:
    train(RunSettings(recipe, (data,), out, pretrained=None, resume=last if last.exists() else None))
except IsicrtError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def run(data: Path, out: Path, epochs: int, limit: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(data), str(out), str(epochs), str(limit)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def test_a_kill_at_any_moment_leaves_a_checkpoint_to_go_on_from(rendered_pairs: Path, tmp_path: Path) -> None:
    """Epochs take milliseconds here, so that most kills fall into the writing of checkpoints."""
    out = tmp_path / "run"
    rng = random.Random(0)
    done = 0
    for _ in range(3):
        process = run(rendered_pairs, out, 100_000)
        before = done
        deadline = time.monotonic() + 300
        begun = (out / checkpoint.LAST).stat().st_mtime_ns if (out / checkpoint.LAST).exists() else 0
        saves = 0
        while saves < 2 and process.poll() is None:  # at least two, so the checkpoint was used
            assert time.monotonic() < deadline
            time.sleep(0.02)
            if (out / checkpoint.LAST).exists() and (now := (out / checkpoint.LAST).stat().st_mtime_ns) != begun:
                begun, saves = now, saves + 1
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
        _, state = checkpoint.load(out / checkpoint.LAST)
        checkpoint.load_model(out / checkpoint.BEST)
        rows = checkpoint.read_metrics(out)
        # The metrics are written after the checkpoint, and in every epoch, which the checkpoint is not where epochs are
        # as short as here. What it does not know is cut off when the run goes on.
        assert len(state["history"]) - len(rows) <= 1
        known = [str(row["epoch"]) for row in state["history"]]
        assert known[: len(rows)] == [row["epoch"] for row in rows][: len(known)]
        assert [int(r["epoch"]) for r in rows] == list(range(1, len(rows) + 1))
        done = len(state["history"])
        assert done > before


def test_a_full_disk_names_the_run_and_keeps_the_last_checkpoint(rendered_pairs: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: a checkpoint of this model has 8 MB and more."""
    out = tmp_path / "run"
    first = run(rendered_pairs, out, 100_000)
    while not (out / checkpoint.METRICS).exists() and first.poll() is None:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    kept = (out / checkpoint.LAST).read_bytes()
    full = run(rendered_pairs, out, 100_000, 2_000_000)
    _, errors = full.communicate()
    assert full.returncode == 1
    assert errors.startswith("TrainingError:"), errors
    assert str(out) in errors
    assert "could not be saved" in errors
    assert (out / checkpoint.LAST).read_bytes() == kept


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("draw_samples", r"samples\.png could not be saved: .*No space left"),
        ("write_config", r"the run folder cannot be written: No space left on device\. Name another"),
    ],
)
def test_what_cannot_be_written_is_an_error_of_this_run(
    rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, message: str
) -> None:
    """Not of the settings: a queue of runs goes on with the next."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loop, step, full)
    recipe = Recipe("tiny", "unet", (Stage("tuned", 1, 1e-3, 1e-4),), decoder_channels=(8, 8, 8, 8), input_size=32)
    with pytest.raises(TrainingError, match=f"run: {message}"):
        loop.train(RunSettings(recipe, (rendered_pairs,), tmp_path / "run", pretrained=None))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 8 GiB."),
        RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` to see more.\n"),
    ],
)
def test_a_gpu_that_is_too_small_is_an_error_of_this_run(
    rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(loop.optimisation, "set_stage", full)
    recipe = Recipe("tiny", "unet", (Stage("tuned", 1, 1e-3, 1e-4),), decoder_channels=(8, 8, 8, 8), input_size=32)
    with pytest.raises(TrainingError, match=r"run: the GPU's memory .* out of memory.* Lower batch_size or input_size"):
        loop.train(RunSettings(recipe, (rendered_pairs,), tmp_path / "run", pretrained=None))
