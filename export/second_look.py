"""A model that takes a second look where it is in doubt: only its card changes.

    python -m isicrt.export.second_look model.onnx model-looking.onnx --below 0.9
    python -m isicrt.export.second_look model.onnx model-careful.onnx --below 0.97 --zoom 2

The runtimes on the CPU read the card and do the rest (`isicrt.engine.second_look`). A plan looks once.
"""

from __future__ import annotations

import re
from pathlib import Path

import click
import onnx

from isicrt._command import ModuleCommand, NamedPath, Number
from isicrt.engine.card import MAX_ZOOM, ModelCard
from isicrt.engine.errors import BuildError
from isicrt.engine.masks import replace_file
from isicrt.engine.onnx_file import read_onnx_file
from isicrt.export.onnx_graph import set_card
from isicrt.export.output_file import check_output

_LOOK = re.compile(r", (?:of one look|with a second look below [^ ,]+(?: and a zoom of [^ ,]+)?)")
"""How a model looked when it was scored, in a score's name. Earlier versions marked a score again at each change; the
first is the one."""


def with_second_look(card: ModelCard, confidence: float, zoom: float = 0.0) -> ModelCard:
    """The card with another second look; scores of another way of looking than that are marked as such."""
    if (card.second_look, card.second_look_zoom) == (confidence, zoom):
        return card
    before, now = _look(card.second_look, card.second_look_zoom), _look(confidence, zoom)
    scores = {}
    for name, value in card.scores.items():
        look = marked[0] if (marked := _LOOK.search(name)) else before
        data_set = _LOOK.sub("", name)
        scores[data_set if look == now else data_set + look] = value
    return card.replace(second_look=confidence, second_look_zoom=zoom, scores=scores)


def _look(confidence: float, zoom: float) -> str:
    look = f", with a second look below {confidence:g}" if confidence else ", of one look"
    return look + (f" and a zoom of {zoom:g}" if zoom else "")


def look_again_below(model: Path, confidence: float, zoom: float = 0.0) -> bytes:
    """The file with another card.

    Args:
        model: an ONNX file with a card, of a network that looks at an image once.
        confidence: see `isicrt.engine.card.ModelCard.second_look`.
        zoom: see `isicrt.engine.card.ModelCard.second_look_zoom`.

    Raises:
        ModelError: not such a file; its input is not square; a confidence outside of [0, 1); a zoom out of its range,
            or without a second look.
        BuildError: it averages several views of each image already.
    """
    card, content = read_onnx_file(model)
    card = with_second_look(card, confidence, zoom)
    if card.views > 1:
        raise BuildError(f"{model}: gives the mean of {card.views} views of each image already. Use what it is made of")
    graph = onnx.load_from_string(content)
    set_card(graph, card)
    data: bytes = graph.SerializeToString(deterministic=True)
    return data


@click.command(cls=ModuleCommand)
@click.argument("model", type=NamedPath(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=NamedPath(dir_okay=False, path_type=Path))
@click.option("--below", type=Number(0, 1, max_open=True), required=True, help="Of this confidence; 0: never.")
@click.option(
    "--zoom",
    type=Number(0, MAX_ZOOM),
    default=0.0,
    show_default=True,
    help="From 1 on: also through a square around what was found, so many times as large as it; 0: not.",
)
def main(model: Path, out: Path, below: float, zoom: float) -> None:
    """Write MODEL as OUT, a model that looks again at images of whose masks it is less confident than that."""
    check_output(out, model)
    replace_file(out, look_again_below(model, below, zoom))
    click.echo(f"Wrote {out}  a second look below a confidence of {below:g}" + (f", zoom {zoom:g}" if zoom else ""))


if __name__ == "__main__":
    main()
