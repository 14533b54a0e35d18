"""The report's table trained and scored on one GPU within a given time: its rows side by side, a process each.

    python -m isicrt.benchmarks.gpu_training --data isic2016 --encoder-weights FILE --out DIR --within 400

First the default recipe trains for a few epochs, with the cache and without (DALI decodes on the GPU then). Then a
short trial of all rows at once says how long an epoch takes when they share the GPU, and the longest runs that fit into
what is left are made, in one piece, scored and put into one table.

    training.json          what was measured, a section at a time (`isicrt.benchmarks.gpu_attempts`)
    report-table-gpu.json  the table, see `isicrt.benchmarks.report_table`; written anew for each row that is done
    runs.tar.gz            metrics.csv, config.yaml, run.json and curves.png of the rows

Checkpoints of the report's widths have gigabytes. They stay in a scratch folder, which is deleted at the end.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

import click

from isicrt._command import ModuleCommand
from isicrt.benchmarks.environment import read_environment, recorded_command
from isicrt.benchmarks.gpu_attempts import Attempts
from isicrt.benchmarks.process import isicrt_command, module_command
from isicrt.benchmarks.report_table import PUBLISHED, STAGES, NotRun, ReportTable, merge, read_table
from isicrt.benchmarks.training_runs import Child, longest_epochs, run_side_by_side, summarise_run
from isicrt.engine.errors import DataError, IsicrtError
from isicrt.engine.masks import replace_file
from isicrt.engine.pipeline import available_cores

SCHEMA = "isicrt-gpu-training/1"
MOST_EPOCHS = 200
"""Of the report's recipes."""
RESERVE = 0.15
"""Of the time that is left, for what the trial does not show."""
TRIAL_EPOCHS = 6
"""In all, half of them of each stage. The first of a stage is not timed: cuDNN looks around in it."""
BESIDE = 1.1
"""Times an epoch, for what its row does not time: to save and to draw may take a twentieth each."""
SCORING_SECONDS = 10.0
"""For the test split by both protocols, which the trial does not score."""
_CLOSING_SECONDS = 6.0
"""Before the end no child runs on: there is something to write."""
_SCRATCH_BYTES = 40 * 2**30
"""What four rows of the report's widths, and their trial, may take."""
_KEPT = ("metrics.csv", "config.yaml", "run.json", "curves.png")


class _Session:
    """One call of the command: where everything is, and what is known by now."""

    def __init__(self, options: Mapping[str, Any], scratch: Path, attempts: Attempts) -> None:
        self.data, self.weights, self.out = options["data"], options["encoder_weights"], options["out"]
        self.layout, self.device, self.rows = options["layout"], options["device"], options["rows"]
        self.scratch, self.attempts = scratch, attempts
        self.end: float = time.monotonic() + options["within"] - _CLOSING_SECONDS
        self.threads = max(1, available_cores() // max(1, len(self.rows)))
        self.table = ReportTable()
        self.failed: dict[str, str] = {}

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self.end - time.monotonic())

    def isicrt(self, *words: object) -> list[str]:
        """A command of isicrt on this data and device."""
        command, *rest = map(str, words)
        common = ["--data", str(self.data), "--encoder-weights", self.weights, "--device", self.device]
        return isicrt_command(command, *common, *rest)

    def child(self, name: str, command: Sequence[str], folder: Path) -> Child:
        """A process that is not started yet; its caches are shared by all."""
        return Child(name, command, folder, {"ISICRT_CACHE": str(self.scratch / "cache")})

    def row(self, name: str, place: Path, epochs: int, *more: str) -> Child:
        """Training of a row."""
        out = place / name
        options = ["--rows", name, "--layout", self.layout, "--epochs", epochs, "--threads", self.threads, "--out", out]
        command = self.isicrt("reproduce", *options, "--table", out / "table.json", *more)
        return self.child(name, command, out / f"{name}-{self.layout}")

    def measure_recipe(self, cache: str, epochs: int, seconds: float) -> dict[str, Any]:
        """A few epochs of the default recipe, alone; what they were stopped in counts too."""
        out = self.scratch / f"recipe{cache}"
        child = self.child(cache, self.isicrt("train", "--epochs", epochs, cache, "--out", out), out)
        run_side_by_side([child], time.monotonic() + min(seconds, self.left))
        found = summarise_run(child)
        if not found["epochs"]:
            raise DataError("\n".join(["no epoch was finished", *found["output"]]))
        return found

    def measure_decoding(self, seconds: float) -> list[Any]:
        """See `isicrt.benchmarks.gpu_dali`."""
        command = module_command("isicrt.benchmarks.gpu_dali", str(self.data / "train" / "images"))
        child = self.child("dali", command, self.scratch)
        run_side_by_side([child], time.monotonic() + min(seconds, self.left))
        found = [json.loads(line) for line in child.output() if line.startswith("{")]
        if not found:
            raise DataError("\n".join(["nothing was measured", *child.output()[-8:]]))
        return found

    def try_rows(self) -> dict[str, Any]:
        """A few epochs of each stage of all rows at once."""
        place = self.scratch / "trial"
        children = [self.row(name, place, TRIAL_EPOCHS) for name in self.rows]
        run_side_by_side(children, time.monotonic() + 0.4 * self.left)
        found = {child.name: summarise_run(child) for child in children}
        shutil.rmtree(place, ignore_errors=True)
        return found

    def train_rows(self, epochs: int) -> dict[str, Any]:
        """All rows at once; each is written down when it is done."""
        place = self.scratch / "rows"
        names = [name for name in self.rows if name not in self.failed]
        children = [self.row(name, place, epochs, "--score") for name in names]
        begun = time.monotonic()

        def note(child: Child) -> None:
            try:
                self._take(child, place / child.name / "table.json")
            except IsicrtError as error:
                self.failed[child.name] = str(error)
            note_all()

        def note_all() -> None:
            self.attempts.report["rows"] = {child.name: summarise_run(child) for child in children}
            self.attempts.write()
            pack(children, self.out / "runs.tar.gz", self.layout)

        run_side_by_side(children, self.end, on_end=note, on_turn=note_all)
        return {"epochs": epochs, "seconds": round(time.monotonic() - begun, 1), "side_by_side": names}

    def _take(self, child: Child, file: Path) -> None:
        """A row's table into that of all rows."""
        found = read_table(file)
        own = [row for row in found.rows if (row.name, row.layout) == (child.name, self.layout)]
        if not own:
            # Where it failed its table says why; a child that was ended has left none.
            reasons = [x.reason for x in found.not_run if (x.name, x.layout) == (child.name, self.layout)]
            if time.monotonic() >= self.end:
                reasons = ["the time was up"]
            self.failed[child.name] = (reasons or child.output()[-1:] or [f"exit code {child.code}"])[0][:1000]
        self.table = merge(self.table, replace(found, rows=tuple(own)))
        self.write_table()

    def write_table(self) -> None:
        """The rows that are done; of the others, those that were asked for."""
        missing = {x.name: x for x in self.table.not_run if x.layout == self.layout}
        not_run = [
            replace(missing.get(name, NotRun(name, self.layout, 0, "")), reason=reason)
            for name, reason in self.failed.items()
        ]
        command = self.attempts.report["command"]
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.table = replace(self.table, command=command, date=date)
        shown = replace(self.table, not_run=tuple(not_run))
        replace_file(self.out / "report-table-gpu.json", shown.to_json().encode())


def pack(children: Sequence[Child], path: Path, layout: str) -> None:
    """What is small of the runs, as far as it is there; the archive is whole at any moment."""
    partial = path.with_name(f".{path.name}.part")
    with tarfile.open(partial, "w:gz") as archive:
        for child in children:
            for name in _KEPT:
                if (file := child.folder / name).is_file():
                    archive.add(file, f"{child.name}-{layout}/{name}")
    partial.replace(path)


def choose_scratch(place: Path | None, least: int = _SCRATCH_BYTES) -> Path:
    """A new folder in `place`; without one in memory where there is room, which no disk slows down, else in the
    system's temporary folder."""
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="isicrt-training-", dir=place))
    memory = Path("/dev/shm")
    try:
        roomy = shutil.disk_usage(memory).free >= least
    except OSError:
        roomy = False
    return Path(tempfile.mkdtemp(prefix="isicrt-training-", dir=memory if roomy else None))


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough, and what follows must not be cut short
    raise KeyboardInterrupt


def _rows(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(PUBLISHED) if value == "all" else tuple(name.strip() for name in value.split(","))
    if unknown := [name for name in names if name not in PUBLISHED]:
        raise click.BadParameter(f"{unknown[0]!r} is not a row: choose from {', '.join(PUBLISHED)}, or all")
    return names


@click.command(cls=ModuleCommand)
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--encoder-weights", default="none", show_default=True, help="File of MobileNetV2's weights, or `none`.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Of the results.")
@click.option("--within", type=click.IntRange(min=20), required=True, help="Seconds, for all of it.")
@click.option("--rows", default="all", callback=_rows, show_default=True, help="With commas between them.")
@click.option("--layout", type=click.Choice(("report", "light")), default="report", show_default=True)
@click.option("--epochs", type=click.IntRange(min=2), help="In all, without a trial.  [default: as many as fit]")
@click.option("--device", type=click.Choice(("cuda", "cpu")), default="cuda", show_default=True)
@click.option(
    "--recipe-epochs",
    type=click.IntRange(min=0),
    default=8,
    show_default=True,
    help="Of the default recipe, with the cache and without; 0 leaves it out, and DALI's decoding.",
)
@click.option("--recipe-seconds", type=click.IntRange(min=1), default=25, show_default=True, help="At most, each.")
@click.option(
    "--scratch",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where checkpoints and caches are meanwhile.  [default: memory, or the system's temporary folder]",
)
def command(epochs: int | None, recipe_epochs: int, recipe_seconds: int, scratch: Path | None, **options: Any) -> None:
    """Train and score the rows of the report's table side by side. The exit code is 1 if one is missing."""
    out: Path = options["out"]
    out.mkdir(parents=True, exist_ok=True)
    head = {
        "schema": SCHEMA,
        "command": recorded_command(["python", "-m", "isicrt.benchmarks.gpu_training", *sys.argv[1:]]),
        "environment": read_environment().to_dict(),
        "device": options["device"],
        "layout": options["layout"],
        "within_seconds": options["within"],
    }
    begun = time.monotonic()
    attempts = Attempts(
        out / "training.json",
        head,
        conclude=lambda _: {"wall_seconds": round(time.monotonic() - begun, 1)},
        seconds=options["within"] - _CLOSING_SECONDS,
    )
    attempts.write()
    signal.signal(signal.SIGTERM, _stop)
    own = choose_scratch(scratch)
    session = _Session(options, own, attempts)
    try:
        if recipe_epochs:
            for name, cache in (("cache", "--cache"), ("no cache", "--no-cache")):
                run = (cache, recipe_epochs, recipe_seconds)
                attempts(("default recipe", name), lambda run=run: session.measure_recipe(*run))  # type: ignore[misc]
            if options["device"] == "cuda":
                attempts(("dali",), lambda: session.measure_decoding(recipe_seconds))
        chosen = epochs or _choose(session)
        if chosen is not None:
            attempts(("training",), lambda: session.train_rows(chosen))
    except KeyboardInterrupt:
        attempts.note("stopped")
    except IsicrtError as error:
        attempts.note(str(error))
    finally:
        attempts.write()
        shutil.rmtree(own, ignore_errors=True)
    done = {row.name for row in session.table.rows if row.scored}
    click.echo(f"{len(done)} of {len(session.rows)} rows are trained and scored; results in {out}")
    if done != set(session.rows):
        sys.exit(1)


def _choose(session: _Session) -> int | None:
    """The number of epochs that the trial says; None where there is no time."""
    if not session.attempts(("trial",), session.try_rows):
        return None
    trial = session.attempts.report["trial"]["result"]
    known = {name: row for name, row in trial.items() if set(STAGES) <= row["seconds_per_epoch"].keys()}
    for name in trial.keys() - known.keys():
        session.failed[name] = f"its trial failed: {' '.join(trial[name]['output'][-3:])}"[:1000]
        session.attempts.note(f"{name}: {session.failed[name]}")
    costs = [
        (row["seconds_beside_epochs"] + SCORING_SECONDS, BESIDE * sum(row["seconds_per_epoch"].values()) / len(STAGES))
        for row in known.values()
    ]
    epochs = longest_epochs(costs, session.left * (1 - RESERVE), MOST_EPOCHS) if costs else 0
    session.attempts.note(f"{session.left:.0f} s are left after the trial, enough for {epochs} epochs")
    if session.failed:
        session.write_table()
    return epochs or None


if __name__ == "__main__":
    command()
