"""Put a model into the package: give its card a name and the scores that `isicrt evaluate` or `isicrt bench` measured.

    python -m isicrt.export.shipping model.onnx --name unet-light --as "ISIC 2016 test" scores.json engine/models

For maintainers: run it once for each model that ships, after it was frozen and scored. Only the metadata change; the
SHA-256 in the result's JSON is that of the file before it was given its scores.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import onnx

from isicrt._command import ModuleCommand
from isicrt.engine.card import METADATA_KEY, ModelCard
from isicrt.engine.errors import BuildError
from isicrt.engine.masks import replace_file
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


def ship(model: Path, name: str, scores: Mapping[str, Mapping[str, Any]], folder: Path) -> Path:
    """Write ``NAME.onnx`` into a folder, with the name and the scores in its card.

    Args:
        model: an ONNX file of `isicrt build-engine`.
        name: under which ``--model`` finds it.
        scores: by data set; they are put before those that the card has already.
        folder: of the shipped models.

    Raises:
        BuildError: no card in the file, or more than 15 MB.
    """
    graph = onnx.load(str(model))
    text = {p.key: p.value for p in graph.metadata_props}.get(METADATA_KEY)
    if text is None:
        raise BuildError(f"{model}: carries no model card; make it with isicrt build-engine")
    card = ModelCard.from_json(text)
    card = card.replace(name=name, scores={**scores, **{k: v for k, v in card.scores.items() if k not in scores}})
    set_card(graph, card)
    data = graph.SerializeToString(deterministic=True)
    if len(data) > MAX_BYTES:
        raise BuildError(f"{model}: {len(data) / 1e6:.1f} MB are too many for package data (limit 15 MB)")
    path = folder / f"{name}.onnx"
    replace_file(path, data)
    return path


def read_scores(result: Path, model: Path) -> dict[str, Any]:
    """The summary that a JSON of `isicrt evaluate` or `isicrt bench` has of a model, known by its SHA-256.

    Raises:
        BuildError: not such a file, or no scores of this model in it.
    """
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    try:
        found = json.loads(result.read_text(encoding="utf-8"))
        if (protocol := found.get("protocol", {}).get("name", "official")) != "official":
            raise ValueError(f"scored by protocol {protocol}")
        measured = {m["sha256"]: m.get("accuracy", m) for m in found["models"]}
        return {"protocol": "official", "model_sha256": sha256} | {
            key: measured[sha256]["summary"][key] for key in SCORES
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BuildError(f"{result}: holds no official scores of {model}: {error!r}") from error


@click.command(cls=ModuleCommand)
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("result", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", required=True, help="Name under which --model finds it.")
@click.option("--as", "data_set", required=True, help="What the scores were measured on, as tables show it.")
def main(model: Path, result: Path, folder: Path, name: str, data_set: str) -> None:
    """Put MODEL into FOLDER with the scores in RESULT, the JSON of `isicrt evaluate` or `isicrt bench`."""
    path = ship(model, name, {data_set: read_scores(result, model)}, folder)
    click.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
