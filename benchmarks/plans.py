"""Which models build with TensorRT for RTX, in which precision and for which GPUs, and what a build costs.

    python -m isicrt.export.untrained checkpoints --layout report
    python -m isicrt.benchmarks.plans checkpoints/*.pt unet-light --json plans.json

Every build is `isicrt build-engine` in a process of its own: export, conversion, parity gate, trial of the batches,
build. A GPU is not needed. What the command refuses is an entry too, with its reason.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from isicrt._command import ModuleCommand
from isicrt.benchmarks.environment import read_environment, recorded_command
from isicrt.benchmarks.macs import count_parameters, load_graph
from isicrt.benchmarks.process import isicrt_command, run_command
from isicrt.benchmarks.result_file import check_places, write_whole
from isicrt.engine.card import ModelCard
from isicrt.engine.errors import DataError
from isicrt.engine.plan import read_plan
from isicrt.engine.shipped import resolve

SCHEMA = "isicrt-plans/1"
PRECISIONS = ("fp32", "fp16")
DEFAULT = "default"
_FLAVOUR = "tensorrt-rtx"


@dataclass(frozen=True)
class Row:
    """One build, or one refusal."""

    model: str
    """As it was given; of a path, the name."""
    precision: str
    compute_capabilities: str
    """As ``8.0``; ``default`` for the builder's own choice."""
    error: str | None
    """Why it was refused; None where it was built, and then all that follows is there."""
    parameters: int | None = None
    input_size: tuple[int, int] | None = None
    batches: tuple[int, ...] | None = None
    """Smallest, best and largest."""
    layers: str | None = None
    """As ``53 of 53 convolutions``: those in half."""
    onnx_mb: float | None = None
    plan_mb: float | None = None
    pixels_changed: float | None = None
    """Share of the pixels whose mask the parity gate found changed, 0..1; an unconverted file's own record."""
    seconds: float | None = None
    """Wall clock of the whole command."""
    cpu_seconds: float | None = None
    """Over all threads. Other work on the machine moves it less than the wall clock."""
    peak_rss_mb: float | None = None


def build_row(model: str, precision: str, capability: str, batch_size: str, parity_images: int) -> Row:
    """Build one model once.

    Args:
        model: what `isicrt build-engine` takes.
        precision: of `PRECISIONS`.
        capability: for ``--compute-capability``, or `DEFAULT`.
        batch_size: for ``--batch-size``.
        parity_images: for ``--parity-images``; rendered ones.
    """
    name = Path(model).stem if Path(model).suffix else model
    with tempfile.TemporaryDirectory() as folder:
        command = isicrt_command("build-engine", model, f"--{precision}")
        command += ["--target", _FLAVOUR, "--batch-size", batch_size, "--parity-images", str(parity_images)]
        command += ["--out", folder]
        if capability != DEFAULT:
            command += ["--compute-capability", capability]
        try:
            usage = run_command(command)
        except DataError as error:
            said = str(error).strip().splitlines()[-1].rpartition("Error: ")[2]
            return Row(name, precision, capability, said.removeprefix(f"{resolve(model)}: "))
        onnx, plan = Path(folder) / "model.onnx", Path(folder) / "model.plan"
        card, _ = read_plan(plan)
        return Row(
            name,
            precision,
            capability,
            None,
            count_parameters(load_graph(onnx)),
            card.input_size,
            tuple(card.builder["profile"]),
            card.builder["half_layers"],
            onnx.stat().st_size / 1e6,
            plan.stat().st_size / 1e6,
            _pixels_changed(card),
            usage.seconds,
            usage.cpu_seconds,
            usage.peak_rss_mb,
        )


def _pixels_changed(card: ModelCard) -> float | None:
    found = card.parity.get("disagreement_mean")
    return None if found is None else float(found)


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of the rows of the JSON file: those that were built, then the refusals as a list."""
    lines = [
        "| model | parameters | precision | for | in half | ONNX, MB | plan, MB | CPU s | peak memory, MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["error"] is None:
            peak = "" if row["peak_rss_mb"] is None else f"{row['peak_rss_mb']:,.0f}"
            cpu = "" if row["cpu_seconds"] is None else f"{row['cpu_seconds']:.0f}"
            lines.append(
                f"| `{row['model']}` | {row['parameters'] / 1e6:.2f} M | {row['precision']} "
                f"| {row['compute_capabilities']} | {row['layers']} | {row['onnx_mb']:.1f} | {row['plan_mb']:.1f} "
                f"| {cpu} | {peak} |"
            )
    refused = [
        f"- `{row['model']}`, {row['precision']}, {row['compute_capabilities']}: {row['error']}"
        for row in rows
        if row["error"] is not None
    ]
    return "\n".join(lines + ([""] + refused if refused else [])) + "\n"


@click.command(cls=ModuleCommand)
@click.argument("models", nargs=-1, required=True)
@click.option("--precision", "precisions", type=click.Choice(PRECISIONS), multiple=True, default=PRECISIONS)
@click.option(
    "--compute-capability",
    "capabilities",
    multiple=True,
    default=(DEFAULT,),
    show_default=True,
    help="For which GPUs, as 8.0 or 8.0,8.9, or `default`; give it again for more plans.",
)
@click.option("--batch-size", default="32", show_default=True, help="As `isicrt build-engine` takes it.")
@click.option("--parity-images", type=click.IntRange(1), default=4, show_default=True)
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Other rows that are in it are kept."
)
def command(
    models: tuple[str, ...],
    precisions: tuple[str, ...],
    capabilities: tuple[str, ...],
    batch_size: str,
    parity_images: int,
    json_path: Path | None,
) -> None:
    """Build each of MODELS with TensorRT for RTX, in each precision and for each GPU, and print a table."""
    check_places(json_path)
    for model in models:
        resolve(model)
    rows = []
    earlier = _read(json_path)
    for model in models:
        for precision in precisions:
            for capability in capabilities:
                click.echo(f"{model} {precision} {capability}", err=True)
                rows.append(asdict(build_row(model, precision, capability, batch_size, parity_images)))
    made = {_key(row) for row in rows}
    rows = [row for row in earlier["rows"] if _key(row) not in made] + rows
    words = recorded_command(["python", "-m", "isicrt.benchmarks.plans", *map(_shown, sys.argv[1:])])
    result = {
        "schema": SCHEMA,
        "commands": [*earlier["commands"], words],
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": read_environment().to_dict(),
        "rows": rows,
    }
    try:
        write_whole(json_path, json.dumps(result, indent=1) + "\n")
    finally:  # nothing is lost where the file cannot be written
        click.echo(to_markdown(rows), nl=False)


def _read(path: Path | None) -> dict[str, Any]:
    """An earlier result, or an empty one where there is no file.

    Raises:
        DataError: another kind of file.
    """
    if path is None or not path.is_file():
        return {"commands": [], "rows": []}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != SCHEMA:
            raise ValueError(f"schema {found['schema']}")
        return {"commands": list(found["commands"]), "rows": list(found["rows"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no result of this benchmark: {error!r}") from error


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["model"], row["precision"], row["compute_capabilities"]


def _shown(word: str) -> str:
    """A word of the command line without the folders of this machine."""
    return Path(word).name if Path(word).is_absolute() else word


if __name__ == "__main__":
    command()
