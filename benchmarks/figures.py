"""Pictures of an evaluation: image, truth, prediction and their difference side by side, for eyes and not for counts.

Drawn with Pillow and OpenCV alone. They show patients' photographs: they are made on demand and are not committed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from isicrt.benchmarks.evaluation import Candidate, CaseScores, Scored, infer
from isicrt.benchmarks.scoring_protocol import ScoringProtocol
from isicrt.engine.errors import DataError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.images import decode_image
from isicrt.engine.masks import Mask

CELL = 256
"""Pixels a side of the box that each picture is fitted into."""
GAP = 8
CAPTION = 24
FONT_SIZE = 15

AGREED, MISSED, INVENTED = (0, 158, 115), (0, 114, 178), (230, 97, 0)
"""RGB; people who are colour-blind can tell them apart (after Okabe and Ito)."""
LEGEND = ((AGREED, "lesion in both"), (MISSED, "missed"), (INVENTED, "not in the truth"))


@dataclass(frozen=True)
class Prediction:
    """One model's answer to a case."""

    mask: Mask
    jaccard: float | None
    """None where this model did not score the image."""


@dataclass(frozen=True)
class Row:
    """One case of a panel."""

    id: str
    image: UInt8Array
    """uint8, h x w x 3, RGB, within `CELL` x `CELL`."""
    truth: Mask
    """bool, on the grid that is scored, as the predictions are."""
    predictions: tuple[Prediction, ...]
    """One for each model."""


def pick_cases(cases: Sequence[CaseScores], count: int) -> dict[str, list[CaseScores]]:
    """At most `count` cases each with the best, the median and the worst Jaccard index; equals in order of id."""
    ranked = sorted(cases, key=lambda case: (-case.scores.jaccard, case.case.id))
    start = max(0, (len(ranked) - count) // 2)
    worst = sorted(cases, key=lambda case: (case.scores.jaccard, case.case.id))
    return {"best": ranked[:count], "median": ranked[start : start + count], "worst": worst[:count]}


def draw_panels(
    candidates: Sequence[Candidate],
    scored: Sequence[Scored],
    protocol: ScoringProtocol,
    folder: Path,
    *,
    count: int = 3,
) -> list[Path]:
    """Write ``best.png``, ``median.png`` and ``worst.png``: cases by the first model's rank, with every model's answer.

    Args:
        candidates: the models, their runtimes open.
        scored: what `score_model` made of each.
        protocol: the same.
        folder: exists.
        count: cases in a panel.

    Returns:
        The files.

    Raises:
        DataError: a picked image cannot be read any more, or a file cannot be written.
    """
    jaccards = [{case.case.id: case.scores.jaccard for case in one.cases} for one in scored]
    names = [one.label for one in scored]
    written = []
    for kind, cases in pick_cases(scored[0].cases, count).items():
        rows = [_row(case, candidates, jaccards, protocol) for case in cases]
        path = folder / f"{kind}.png"
        title = f"{kind.capitalize()} cases of {names[0]} (Jaccard index, protocol {protocol.name})"
        try:
            draw_panel(rows, names, title).save(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
        written.append(path)
    return written


def _row(
    case: CaseScores,
    candidates: Sequence[Candidate],
    jaccards: Sequence[Mapping[str, float]],
    protocol: ScoringProtocol,
) -> Row:
    predictions = []
    for candidate, jaccard in zip(candidates, jaccards, strict=True):
        card = candidate.runtime.card
        decoded = protocol.decode(case.case.image, card.input_size)
        (probability,) = infer(candidate.runtime, [(case.case, decoded)])
        mask = protocol.mask(probability, decoded.native_size, card)
        predictions.append(Prediction(mask, jaccard.get(case.case.id)))
    height, width = case.native_size
    scale = CELL / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    truth, _ = protocol.read_truth(case.case.truth)
    return Row(case.case.id, decode_image(case.case.image, size).pixels, truth, tuple(predictions))


def draw_panel(rows: Sequence[Row], labels: Sequence[str], title: str) -> Image.Image:
    """One picture: a row for each case; image, truth, then prediction and difference for each model.

    Args:
        rows: at least one.
        labels: of the models.
        title: above everything.
    """
    columns = 2 + 2 * len(labels)
    width = GAP + columns * (CELL + GAP)
    top = GAP + 2 * CAPTION
    height = top + sum(CAPTION + row.image.shape[0] + GAP for row in rows) + CAPTION + GAP
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    _write(draw, 0, GAP, title, columns)
    for column, heading in enumerate(["image", "truth"]):
        _write(draw, column, GAP + CAPTION, heading, 1)
    for n, label in enumerate(labels):
        _write(draw, 2 + 2 * n, GAP + CAPTION, f"{label}: prediction, difference", 2)
    y = top
    for row in rows:
        _write(draw, 0, y, row.id, 2)
        pictures = [row.image, _black_and_white(row.truth, row.image)]
        for k, prediction in enumerate(row.predictions):
            score = "not scored" if prediction.jaccard is None else f"Jaccard {prediction.jaccard:.3f}"
            _write(draw, 2 + 2 * k, y, score, 2)
            pictures += [
                _black_and_white(prediction.mask, row.image),
                draw_difference(row.image, row.truth, prediction.mask),
            ]
        for column, picture in enumerate(pictures):
            x = GAP + column * (CELL + GAP) + (CELL - picture.shape[1]) // 2
            canvas.paste(Image.fromarray(picture), (x, y + CAPTION))
        y += CAPTION + row.image.shape[0] + GAP
    _draw_legend(draw, canvas.height - CAPTION - GAP // 2)
    return canvas


def _draw_legend(draw: ImageDraw.ImageDraw, y: int) -> None:
    x = float(GAP)
    for colour, text in LEGEND:
        draw.rectangle((x, y + 4, x + 14, y + 18), fill=colour)
        draw.text((x + 20, y), text, fill="black", font=_font())
        x += 20 + _font().getlength(text) + 24


def draw_difference(image: UInt8Array, truth: Mask, prediction: Mask) -> UInt8Array:
    """A grey copy of an image, tinted where truth or prediction is lesion; see `LEGEND`.

    Args:
        image: uint8, h x w x 3, RGB.
        truth: bool; brought to the image's size.
        prediction: the same.
    """
    t, p = _fitted(truth, image), _fitted(prediction, image)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    drawn = np.repeat(grey[..., None], 3, axis=2).astype(np.float32)
    for where, colour in ((t & p, AGREED), (t & ~p, MISSED), (p & ~t, INVENTED)):
        drawn[where] = 0.5 * drawn[where] + 0.5 * np.array(colour, np.float32)
    return np.rint(drawn).astype(np.uint8)


def _black_and_white(mask: Mask, image: UInt8Array) -> UInt8Array:
    """A mask as a picture of the image's size, its black a little lighter than a frame's would be."""
    levels = np.where(_fitted(mask, image), np.uint8(255), np.uint8(32))
    return np.repeat(levels[..., None], 3, axis=2)


def _fitted(mask: Mask, image: UInt8Array) -> Mask:
    height, width = image.shape[:2]
    return np.asarray(cv2.resize(mask.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)


def _write(draw: ImageDraw.ImageDraw, column: int, y: int, text: str, columns: int) -> None:
    """A line of text over `columns` columns, cut where it is longer."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    font = _font()
    room = columns * (CELL + GAP) - 2 * GAP
    if font.getlength(text) > room:
        while text and font.getlength(f"{text}...") > room:
            text = text[:-1]
        text += "..."
    draw.text((GAP + column * (CELL + GAP), y), text, fill="black", font=font)
