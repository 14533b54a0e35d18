"""The report's table beside ours as Markdown, and its place between two markers of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isicrt.benchmarks.report_table import PUBLISHED, STAGES, Cell, ReportTable, Row, Trials
from isicrt.benchmarks.scoring_protocol import NEVER_COMPARE
from isicrt.engine.errors import DataError

BEGIN, END = "<!-- report-table:begin -->", "<!-- report-table:end -->"
_NOTHING = "not scored"


def render(table: ReportTable) -> str:
    """Tables and their notes, without the markers."""
    parts = [_scores(table), _runs(table.rows)]
    if table.search is not None:
        parts.append(_search(table.search))
    if table.cross_validation is not None:
        parts.append(_folds(table.cross_validation))
    return "\n\n".join(part for part in parts if part) + "\n"


def render_page(page: Path, table: ReportTable) -> str:
    """A page with the tables between its markers; the rest of it is as it is. Of a page that is not there, a new one.

    Raises:
        DataError: the page cannot be read, or has not exactly one pair of markers.
    """
    before, after = check_page(page)
    return f"{before}{BEGIN}\n\n{render(table)}\n{END}{after}"


def check_page(page: Path) -> tuple[str, str]:
    """What stands before the markers of a page and after them. Raises DataError, see `render_page`."""
    try:
        text = page.read_text(encoding="utf-8") if page.exists() else f"{BEGIN}\n{END}\n"
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{page}: cannot be read: {error}") from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or text.count(BEGIN) + text.count(END) != 2:
        raise DataError(f"{page}: needs one line {BEGIN} and after it one line {END}, between which the table goes")
    return before, after


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _scores(table: ReportTable) -> str:
    lines = []
    for row in table.rows:
        for cell in row.cells:
            iou, dice = PUBLISHED[row.name][cell.stage]
            lines.append(
                (
                    f"`{row.name}`",
                    row.layout,
                    cell.stage,
                    f"{iou:g} / {dice:g}",
                    _score(cell.scores.get("report")),
                    _score(cell.scores.get("official")),
                )
            )
    for missing in table.not_run:
        published = "; ".join("{:g} / {:g}".format(*PUBLISHED[missing.name][stage]) for stage in STAGES)
        lines.append((f"`{missing.name}`", missing.layout, "; ".join(STAGES), published, "not run", "not run"))
    header = (
        "row",
        "widths",
        "encoder",
        "the report: IoU / Dice",
        "ours, protocol `report`: Jaccard (95 %) / Dice",
        "ours, protocol `official`: Jaccard (95 %) / Dice",
    )
    tested = "" if table.test_set is None else f"Scored on: {table.test_set.label}. "
    note = f"{tested}The report's figures are its own, on 379 images; only the column beside them is by its protocol. "
    reasons: dict[str, list[str]] = {}
    for missing in table.not_run:
        name = f"`{missing.name}` ({missing.layout}, {_millions(missing.parameters)})"
        reasons.setdefault(missing.reason, []).append(name)
    left = [f"Not run: {', '.join(names)}: {reason}." for reason, names in reasons.items()]
    return "\n\n".join([_grid(header, lines), note + NEVER_COMPARE, *left])


def _score(summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return _NOTHING
    low, high = summary["jaccard_low"], summary["jaccard_high"]
    return f"{summary['jaccard']:.3f} ({low:.3f} to {high:.3f}) / {summary['dice']:.3f}"


def _runs(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    header = ("row", "widths", "parameters", "images", "encoder", "epochs", "rates", "hours", "images/s", "validation")
    lines = [
        (
            f"`{row.name}`",
            row.layout,
            _millions(row.parameters),
            f"{row.training_images} + {row.validation_images}",
            cell.stage,
            str(cell.epochs),
            _rates(cell),
            f"{cell.hours:.2f}",
            f"{cell.images_per_second:.0f}",
            f"{cell.validation['jaccard']:.3f} / {cell.validation['dice']:.3f}",
        )
        for row in rows
        for cell in row.cells
    ]
    devices = sorted({_device(row) for row in rows})
    seeds = ", ".join(sorted({f"seed {row.seed}, fold {row.fold}" for row in rows}))
    note = (
        f"Images: learned + validated. Rates: encoder, decoder. Validation: Jaccard / Dice after the stage's last "
        f"epoch, which is the model; no epoch was chosen. {seeds[0].upper()}{seeds[1:]}. "
        f"Trained on: {'; '.join(devices)}."
    )
    return f"{_grid(header, lines)}\n\n{note}"


def _rates(cell: Cell) -> str:
    return f"{cell.encoder_lr:g}, {cell.decoder_lr:g}" if cell.encoder_lr else f"frozen, {cell.decoder_lr:g}"


def _device(row: Row) -> str:
    gpus = row.machine.get("gpus") or ()
    if row.device == "cuda" and gpus:
        return str(gpus[0])
    return f"{row.machine['cores']} cores of {row.machine['cpu']}"


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.3g} M"


def _epochs(trials: Trials) -> str:
    return " and then ".join(f"{n} {stage}" for stage, n in trials.epochs.items())


def _search(search: Trials) -> str:
    lines = [
        (
            f"{trial.setting:g}" + (" (chosen)" if trial is search.best else ""),
            f"{trial.validation['loss']:.4f}",
            f"{trial.validation['jaccard']:.4f}",
            f"{trial.validation['dice']:.4f}",
            f"{trial.hours:.2f}",
        )
        for trial in search.trials
    ]
    title = (
        f"Search of the encoder's rate: `{search.name}`, {search.layout} widths, {_epochs(search)} epochs each; "
        f"after the last one on the {search.trials[0].images} validation images:"
    )
    return f"{title}\n\n{_grid(('rate', 'loss', 'Jaccard', 'Dice', 'hours'), lines)}"


def _folds(folds: Trials) -> str:
    lines: list[tuple[str, ...]] = [
        (
            f"{trial.setting:g}",
            str(trial.images),
            f"{trial.validation['loss']:.4f}",
            f"{trial.validation['jaccard']:.4f}",
            f"{trial.validation['dice']:.4f}",
        )
        for trial in folds.trials
    ]
    spread = [folds.spread(score) for score in ("loss", "jaccard", "dice")]
    lines.append(("mean", "", *(f"{mean:.4f} ± {deviation:.4f}" for mean, deviation in spread)))
    title = (
        f"Cross-validation: `{folds.name}`, {folds.layout} widths, {_epochs(folds)} epochs each; after the "
        "last one. The mean with the folds' standard deviation:"
    )
    return f"{title}\n\n{_grid(('fold', 'images', 'loss', 'Jaccard', 'Dice'), lines)}"
