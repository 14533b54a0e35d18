"""The mean of several runs' weights, as one model of the same size and speed.

Runs that start from one checkpoint end in one basin, and the mean of their weights generalises better than either
(Wortsman et al. 2022, arXiv:2203.05482). Runs that start apart do not: their mean is worthless.

    isicrt train --start-from trunk/last.pt --seed 1 --out runs/a
    isicrt train --start-from trunk/last.pt --seed 2 --out runs/b
    python -m isicrt.trainer.soup runs/a/last.pt runs/b/last.pt --out soup.pt

A run that was started from a stage of another (``--start-from runs/a/small.pt``) has a mean with what became of that.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import torch

from isicrt._command import ModuleCommand, NamedPath
from isicrt.engine.card import ModelCard
from isicrt.engine.errors import ModelError
from isicrt.trainer import checkpoint


def average(paths: Sequence[Path], out: Path, name: str | None = None) -> None:
    """Write a checkpoint with the mean of the weights and batch-norm statistics of others.

    Args:
        paths: two or more checkpoints of one network that go back to one checkpoint: by ``--start-from``, or as a
            stage of their own run that lies beside them. What is averaged is what each of them validates and exports.
        out: of the new checkpoint; its card has no scores, since nothing has scored it.
        name: of the new model; None for its file's.

    Raises:
        ModelError: fewer than two, `out` is one of them, a file that is no checkpoint, other networks, no start or
            other starts.
        OSError: `out` cannot be written.
    """
    if len(paths) < 2:
        raise ModelError("a mean needs two checkpoints or more")
    if any(out.exists() and path.exists() and out.samefile(path) for path in paths):
        raise ModelError(f"{out}: is one of those that it would be made of, and would be replaced. Choose another file")
    loaded = [checkpoint.load(path) for path in paths]
    first = loaded[0][0]
    for path, (card, _) in zip(paths, loaded, strict=True):
        if (card.architecture, card.network, card.input_size) != (first.architecture, first.network, first.input_size):
            raise ModelError(f"{path}: another network or input size than {paths[0]}: they have no mean")
    starts = [_starts(card) for card, _ in loaded]
    known = set.union(*starts)
    ancestors = [
        start or _stages(path, card) & known for path, (card, _), start in zip(paths, loaded, starts, strict=True)
    ]
    for path, own in zip(paths, ancestors, strict=True):
        if not own:
            raise ModelError(
                f"{path}: its run did not start from a checkpoint (--start-from), nor did another from a stage of it "
                "that lies beside it, so it has no mean with others"
            )
    if not set.intersection(*ancestors):
        raise ModelError(
            f"{', '.join(map(str, paths))}: have no start in common (--start-from), so their mean is no model"
        )
    weights = {}
    for key, value in loaded[0][1]["weights"].items():
        values = [state["weights"][key] for _, state in loaded]
        weights[key] = torch.stack(values).mean(0) if value.is_floating_point() else value
    trainings = [dict(card.training) for card, _ in loaded]
    # What stands at the top is true of all of them: images that one held out another may have learned.
    training: dict[str, Any] = {
        key: value for key, value in trainings[0].items() if all(key in t and t[key] == value for t in trainings)
    }
    training["mean_of"] = trainings
    card = first.replace(name=name or out.stem, training=training, scores={}, created=datetime.date.today().isoformat())
    checkpoint.save(out, card=card, weights=weights)


def _starts(card: ModelCard) -> set[str]:
    """Hashes of the checkpoint that a run started from, the one that this started from, and so on."""
    found = set()
    start = card.training.get("start_from")
    while start is not None:
        found.add(start["sha256"])
        start = start.get("start_from")
    return found


def _run(card: ModelCard) -> dict[str, Any]:
    """What is the same in all checkpoints of a run, also of one that went on elsewhere or with a later isicrt."""
    return {k: v for k, v in card.training.items() if k not in ("arithmetic", "data", "folds")}


def _stages(path: Path, card: ModelCard) -> set[str]:
    """Hashes of the checkpoints of the same run beside one."""
    found = set()
    for other in path.parent.glob("*.pt"):
        with suppress(ModelError):  # another file that is called so
            if _run(checkpoint.load(other)[0]) == _run(card):
                found.add(hashlib.sha256(other.read_bytes()).hexdigest())
    return found


@click.command(cls=ModuleCommand)
@click.argument("checkpoints", nargs=-1, required=True, type=NamedPath(path_type=Path, dir_okay=False))
@click.option("--out", required=True, type=NamedPath(path_type=Path, dir_okay=False))
@click.option("--name", help="Of the new model.  [default: its file's]")
def main(checkpoints: tuple[Path, ...], out: Path, name: str | None) -> None:
    """Average the weights of CHECKPOINTS that started from one checkpoint."""
    average(checkpoints, out, name)
    click.echo(f"Wrote {out}")


if __name__ == "__main__":
    main()
