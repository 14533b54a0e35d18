"""A model that takes a second look where it is in doubt: only its card changes.

    python -m isicrt.export.second_look model.onnx model-looking.onnx --below 0.9
    python -m isicrt.export.second_look model.onnx model-careful.onnx --below 0.97 --zoom 2

The runtimes on the CPU read the card and do the rest (`isicrt.engine.second_look`). A plan looks once.
"""

from __future__ import annotations

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


def with_second_look(card: ModelCard, confidence: float, zoom: float = 0.0) -> ModelCard:
    """The card with another second look; its scores are marked as those of how it looked before."""
    if (card.second_look, card.second_look_zoom) == (confidence, zoom):
        return card
    before = f"with a second look below {card.second_look:g}" if card.second_look else "of one look"
    before += f" and a zoom of {card.second_look_zoom:g}" if card.second_look_zoom else ""
    scores = {f"{data_set}, {before}": value for data_set, value in card.scores.items()}
    return card.replace(second_look=confidence, second_look_zoom=zoom, scores=scores)


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
