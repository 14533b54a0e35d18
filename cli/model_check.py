"""`isicrt models verify FILE`: is this a model, a plan, a checkpoint or a recipe of isicrt, whole and safe to load?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from isicrt.engine.errors import IsicrtError, ModelError

if TYPE_CHECKING:
    from isicrt.engine.card import ModelCard

MAX_RECIPE_BYTES = 1 << 20
MAX_CHECKPOINT_BYTES = 1 << 32


def verify(path: Path) -> list[str]:
    """Check a file of a stranger.

    Args:
        path: ``.onnx``, ``.plan``, ``.pt``, ``.yaml`` or ``.yml``.

    Returns:
        What was checked, a line each.

    Raises:
        ModelError: it did not pass; the message says where.
        MissingDependencyError: the package that reads it is not installed.
    """
    checks: dict[str, Callable[[Path], list[str]]] = {
        ".onnx": _verify_onnx,
        ".plan": _verify_plan,
        ".pt": _verify_checkpoint,
        ".yaml": _verify_recipe,
        ".yml": _verify_recipe,
    }
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    if (ending := path.suffix.lower()) not in checks:
        raise ModelError(f"{path}: expected one of {', '.join(checks)}")
    return checks[ending](path)


def _verify_onnx(path: Path) -> list[str]:
    import numpy as np

    from isicrt.engine.onnx_file import read_onnx_card
    from isicrt.engine.onnx_runtime import OnnxRuntime

    card = read_onnx_card(path)
    with OnnxRuntime(path, threads=1) as runtime:
        probability = runtime.infer(np.full((1, *card.input_size, 3), 128, np.uint8))
    if probability.dtype != np.uint8 or probability.shape != (1, *card.input_size):
        raise ModelError(f"{path}: gives {probability.dtype} of {probability.shape}, and its card says otherwise")
    return [
        "one file: no tensor has its data elsewhere, none is too large",
        _of(card),
        "input and output are as the card says",
        "ONNX Runtime loads it, and it segments a grey image",
    ]


def _verify_plan(path: Path) -> list[str]:
    from isicrt.engine.plan import read_plan

    card, plan = read_plan(path)
    return [
        "length, and SHA-256 of the card and of the plan",
        _of(card),
        f"not loaded: the plan's {len(plan)} bytes are code for a GPU, so trust who made it",
    ]


def _verify_checkpoint(path: Path) -> list[str]:
    if path.stat().st_size > MAX_CHECKPOINT_BYTES:
        raise ModelError(f"{path}: larger than {MAX_CHECKPOINT_BYTES >> 30} GiB, as no checkpoint of isicrt is")
    from isicrt.trainer.checkpoint import load_model

    _, card = load_model(path)
    return [
        "tensors, numbers and text only: no pickled code was run",
        _of(card),
        "the weights fit the architecture that the card names",
    ]


def _verify_recipe(path: Path) -> list[str]:
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise ModelError(f"{path}: larger than {MAX_RECIPE_BYTES >> 20} MiB, as no recipe is")
    from isicrt.trainer.recipe import load_recipe

    try:
        load_recipe(path)
    except ModelError:
        raise
    except IsicrtError as error:
        raise ModelError(str(error)) from error
    except RecursionError as error:
        raise ModelError(f"{path}: nested too deeply to be a recipe") from error
    return ["plain YAML: no object was built", "every field is known, of its type and in its range"]


def _of(card: ModelCard) -> str:
    return f"the card: {card.name}, {card.architecture}, {card.input_height} x {card.input_width}, {card.precision}"
