"""The mean of several runs' weights, as one model of the same size and speed.

Runs that start from one checkpoint end in one basin, and the mean of their weights generalises better than either
(Wortsman et al. 2022, arXiv:2203.05482). Runs that start apart do not: their mean is worthless.

    isicrt train --start-from trunk/last.pt --seed 1 --out runs/a
    isicrt train --start-from trunk/last.pt --seed 2 --out runs/b
    python -m isicrt.trainer.soup runs/a/last.pt runs/b/last.pt --out soup.pt
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from isicrt._command import ModuleCommand
from isicrt.engine.errors import ModelError
from isicrt.trainer import checkpoint


def average(paths: Sequence[Path], out: Path, name: str | None = None) -> None:
    """Write a checkpoint with the mean of the weights and batch-norm statistics of others.

    Args:
        paths: two or more checkpoints of one network that go back to one checkpoint (``--start-from``). What is
            averaged is what each of them validates and exports.
        out: of the new checkpoint; its card has no scores, since nothing has scored it.
        name: of the new model; None for its file's.

    Raises:
        ModelError: fewer than two, a file that is no checkpoint, other networks, no start or other starts.
        OSError: `out` cannot be written.
    """
    if len(paths) < 2:
        raise ModelError("a mean needs two checkpoints or more")
    loaded = [checkpoint.load(path) for path in paths]
    first = loaded[0][0]
    for path, (card, _) in zip(paths, loaded, strict=True):
        if not _ancestors(card.training):
            raise ModelError(
                f"{path}: its run did not start from a checkpoint (--start-from), so it has no mean with others"
            )
    for path, (card, _) in zip(paths, loaded, strict=True):
        if (card.architecture, card.network, card.input_size) != (first.architecture, first.network, first.input_size):
            raise ModelError(f"{path}: another network or input size than {paths[0]}: they have no mean")
        if not _ancestors(card.training) & _ancestors(first.training):
            raise ModelError(
                f"{path}: has no start in common with {paths[0]} (--start-from), so their mean is no model"
            )
    weights = {}
    for key, value in loaded[0][1]["weights"].items():
        values = [state["weights"][key] for _, state in loaded]
        weights[key] = torch.stack(values).mean(0) if value.is_floating_point() else value
    training = {
        **first.training,
        "mean_of": [{"seed": c.training.get("seed"), "recipe": c.training.get("recipe")} for c, _ in loaded],
    }
    card = first.replace(name=name or out.stem, training=training, scores={}, created=datetime.date.today().isoformat())
    checkpoint.save(out, card=card, weights=weights)


def _ancestors(training: Mapping[str, Any]) -> set[str]:
    """Hashes of the checkpoints that a run started from, the one that this started from, and so on."""
    start = training.get("start_from")
    return set() if start is None else {start["sha256"]} | _ancestors(start)


@click.command(cls=ModuleCommand)
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--name", help="Of the new model.  [default: its file's]")
def main(checkpoints: tuple[Path, ...], out: Path, name: str | None) -> None:
    """Average the weights of CHECKPOINTS that started from one checkpoint."""
    average(checkpoints, out, name)
    click.echo(f"Wrote {out}")


if __name__ == "__main__":
    main()
