"""Checkpoints: weights, card and, in ``last.pt``, all that a run needs to go on as if it had not stopped."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isicrt.engine.card import ModelCard
from isicrt.engine.errors import ModelError
from isicrt.trainer.models import build_model

FORMAT = 1
_LONGEST_REASON = 500
"""Characters: torch lists every weight that is missing."""
BEST, LAST, METRICS, CONFIG = "best.pt", "last.pt", "metrics.csv", "config.yaml"
VALIDATION = "validation.txt"


def save(path: Path, *, card: ModelCard, weights: Mapping[str, Tensor], **state: Any) -> None:
    """Write a checkpoint whole or not at all.

    Args:
        path: of the file.
        card: of the model.
        weights: what is validated and exported: the moving average, where the recipe has one.
        state: tensors, numbers, strings, and lists and dicts of them, for `load`.

    Raises:
        OSError: the file cannot be written; one that stood there before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            torch.save({"isicrt": FORMAT, "card": card.to_json(), "weights": dict(weights), **state}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _remove_leftovers(path)
    except RuntimeError as error:
        # torch's zip writer closes its archive after a failed write, and that error hides the cause.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Temporary files of processes that were killed while they saved this checkpoint, up to 100 MB each."""
    if os.name != "posix":  # on Windows, asking whether a process is there would end it
        return
    for leftover in path.parent.glob(f".{path.name}.*"):
        number = leftover.name.rpartition(".")[2]
        with suppress(OSError, OverflowError):
            if number.isdecimal():
                try:
                    os.kill(int(number), 0)
                except ProcessLookupError:
                    leftover.unlink()


def load(
    path: Path | str, *, read: Callable[[bytes], object] | None = None, mapped: bool = False
) -> tuple[ModelCard, dict[str, Any]]:
    """Read a checkpoint onto the CPU, with ``weights_only=True``.

    Args:
        path: of the file.
        read: is given the bytes that are loaded, such as a hash's `update`: another file may lie there a moment later.
        mapped: whether the tensors stay in the file, for whoever wants what is beside them alone.

    Raises:
        ModelError: no such file, or not a checkpoint of isicrt.
    """
    path = Path(path)
    source: Path | io.BytesIO = path
    try:
        if read is not None:
            content = path.read_bytes()
            read(content)
            source = io.BytesIO(content)
        data = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such checkpoint") from None
    except Exception as error:  # torch.load raises whatever the unpickler and zipfile do
        raise ModelError(
            f"{path}: not a checkpoint that can be read safely: {_reason(error)}. Only tensors, numbers and text are "
            "read, as `isicrt train` writes them"
        ) from error
    if (
        not isinstance(data, dict)
        or data.get("isicrt") != FORMAT
        or not all(_is_weights(data.get(name, {})) for name in ("weights", "model"))
        or "weights" not in data
    ):
        raise ModelError(f"{path}: not a checkpoint of isicrt (expected one that `isicrt train` wrote)")
    card = data.pop("card", "")
    if not isinstance(card, str):
        raise ModelError(f"{path}: its model card is no text")
    try:
        return ModelCard.from_json(card), data
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def _is_weights(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _reason(error: Exception) -> str:
    """What torch says of a file, without its advice to read it by running what is in it."""
    lines = [line.strip() for line in str(error).splitlines()]
    found = [line for line in lines if line.startswith(("Unsupported", "Trying to", "PytorchStreamReader"))]
    found += [line for line in lines if "weights_only" not in line]
    # Of bytes that are none of its own the unpickler may say no more than the number that it stumbled over.
    found = [line for line in found if any(map(str.isalpha, line)) and not line.startswith("Unsupported operand")]
    return (found[0] if found else "it is damaged, or of another kind").split(". ")[0].rstrip(".")


def load_model(path: Path | str, *, read: Callable[[bytes], object] | None = None) -> tuple[nn.Module, ModelCard]:
    """The trained module in eval mode (see `build_model`) and its card.

    Args:
        path: of the file.
        read: see `load`.

    Raises:
        ModelError: see `load`; or weights that do not fit the card's architecture.
    """
    card, data = load(path, read=read)
    try:
        # A stranger's card has no say in what else is read or fetched.
        model = build_model(card.architecture, pretrained=None, **card.network)
        model.load_state_dict(data["weights"])
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    except (TypeError, RuntimeError) as error:
        reason = str(error) if len(str(error)) <= _LONGEST_REASON else f"{str(error)[:_LONGEST_REASON]} ..."
        raise ModelError(f"{path}: its weights do not fit its card ({card.architecture}): {reason}") from error
    return model.eval(), card


def best_run(runs: Path = Path("runs")) -> Path | None:
    """``best.pt`` of the run with the highest validation Jaccard index, as its card has it: rows of the metrics may be
    of epochs that were not saved.

    None if there is no run, or none with a validation fold: what was never validated is not the best of anything.
    """
    scored = [(jaccard, best) for best in runs.glob(f"*/{BEST}") if (jaccard := _validated(best)) is not None]
    return max(scored)[1] if scored else None


def _validated(best: Path) -> float | None:
    """None where the card has no such score, or the file is no checkpoint of isicrt."""
    try:
        validation = load(best, mapped=True)[0].scores.get("validation")
    except ModelError:
        return None
    jaccard = validation.get("jaccard") if isinstance(validation, Mapping) else None
    return jaccard if isinstance(jaccard, float) else None


def read_metrics(run: Path) -> list[dict[str, str]]:
    """Rows of a run's ``metrics.csv``, one an epoch; empty where there is none."""
    path = run / METRICS
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
