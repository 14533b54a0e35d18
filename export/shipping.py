"""Put a model into the package: give its card a name and the scores that `isicrt evaluate` or `isicrt bench` measured.

    python -m isicrt.export.shipping model.onnx --name unet-light --as "ISIC 2016 test" scores.json engine/models

For maintainers: run it once for each model that ships, after it was frozen and scored. Only the metadata change; the
SHA-256 in the result's JSON is that of the file before it was given its scores.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import click
import onnx

from isicrt._command import ModuleCommand, NamedPath
from isicrt.engine.card import ModelCard
from isicrt.engine.errors import BuildError
from isicrt.engine.masks import replace_file
from isicrt.engine.onnx_file import read_onnx_file
from isicrt.export.onnx_graph import set_card

MAX_BYTES = 15_000_000
SCORES = (
    "images",
    "jaccard",
    "jaccard_low",
    "jaccard_high",
    "dice",
    "threshold_jaccard",
    "accuracy",
    "sensitivity",
    "specificity",
    "failures",
)
"""What the card keeps of a summary."""


def ship(model: Path, name: str, data_set: str, result: Path, folder: Path) -> Path:
    """Write ``NAME.onnx`` into a folder, with the name and the scores in its card.

    Args:
        model: an ONNX file of `isicrt build-engine`.
        name: under which ``--model`` finds it.
        data_set: what the scores were measured on; they are put before those that the card has already.
        result: see `read_scores`.
        folder: of the shipped models.

    Raises:
        ModelError: not such a file.
        BuildError: see `read_scores`; or more than 15 MB.
    """
    card, content = read_onnx_file(model)
    scores = {data_set: read_scores(result, model, card, hashlib.sha256(content).hexdigest())}
    graph = onnx.load_from_string(content)
    card = card.replace(name=name, scores={**scores, **{k: v for k, v in card.scores.items() if k not in scores}})
    set_card(graph, card)
    data = graph.SerializeToString(deterministic=True)
    if len(data) > MAX_BYTES:
        raise BuildError(f"{model}: {len(data) / 1e6:.1f} MB are too many for package data (limit 15 MB)")
    path = folder / f"{name}.onnx"
    replace_file(path, data)
    return path


def read_scores(result: Path, model: Path, card: ModelCard, sha256: str) -> dict[str, Any]:
    """The summary that a JSON of `isicrt evaluate` or `isicrt bench` has of a model, known by its SHA-256.

    Raises:
        BuildError: not such a file, or no scores of this model in it, or of masks that it does not give by itself.
    """
    try:
        found = json.loads(result.read_text(encoding="utf-8"))
        if (protocol := found.get("protocol", {}).get("name", "official")) != "official":
            raise ValueError(f"scored by protocol {protocol}")
        measured = {m["sha256"]: m for m in found["models"]}[sha256]
        # A benchmark runs the model as its card says, and does not note it.
        if (threshold := measured.get("threshold", card.threshold)) != card.threshold:
            raise ValueError(f"scored at threshold {threshold:g}; its card has {card.threshold:g}")
        cleans = card.keep_largest or card.fill_holes
        if bool(measured.get("clean_up", cleans)) != cleans:
            raise ValueError("scored without the clean-up that its card asks for")
        summary = measured.get("accuracy", measured)["summary"]
        return {"protocol": "official", "model_sha256": sha256} | {key: summary[key] for key in SCORES}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BuildError(f"{result}: holds no official scores of {model}: {error!r}") from error


@click.command(cls=ModuleCommand)
@click.argument("model", type=NamedPath(exists=True, dir_okay=False, path_type=Path))
@click.argument("result", type=NamedPath(exists=True, dir_okay=False, path_type=Path))
@click.argument("folder", type=NamedPath(exists=True, file_okay=False, path_type=Path))
@click.option("--name", required=True, help="Name under which --model finds it.")
@click.option("--as", "data_set", required=True, help="What the scores were measured on, as tables show it.")
def main(model: Path, result: Path, folder: Path, name: str, data_set: str) -> None:
    """Put MODEL into FOLDER with the scores in RESULT, the JSON of `isicrt evaluate` or `isicrt bench`."""
    path = ship(model, name, data_set, result, folder)
    click.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
