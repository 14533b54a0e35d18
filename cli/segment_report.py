"""What `isicrt segment` says of a run: the first failures, and a summary in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isicrt.cli.plain_text import printable
from isicrt.cli.result_files import write_result
from isicrt.cli.segment_notices import MaskNotices
from isicrt.engine.errors import DataError, IsicrtError

if TYPE_CHECKING:
    from isicrt.cli.outcome_file import OutcomeFile
    from isicrt.engine.ledger import Ledger
    from isicrt.engine.outcome import DecodeCounts, Outcome, RunSummary

_SHOWN = 20


def describe_run(model: Path, runtime: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What both JSON files say about a run before it starts."""
    from isicrt.benchmarks.environment import read_environment
    from isicrt.engine.model_identity import loaded_sha256

    return {
        "format": 1,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "settings": dict(settings),
        "model": {
            "name": runtime.card.name,
            "file": str(model),
            "sha256": loaded_sha256(runtime, model),
            "runtime": runtime.name,
        },
        "versions": dict(read_environment().versions),
    }


def write_report(path: Path | None, data: Mapping[str, Any]) -> None:
    """Write the ``--report`` file: one summary of a run, at its end, however that came. A problem is said on the
    standard error, where the run's own outcome matters more."""
    if path is not None:
        try:
            write_result(path, json.dumps(data, indent=1) + "\n", quiet=True)
        except DataError as error:
            click.echo(f"--report {error}", err=True)


class Tally:
    """Counts, and the first failures; not all of them, because there may be a million."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = self.failed = self.skipped = 0
        self._untried = 0  # among those that failed
        self._first: list[str] = []
        self.kept = self._outdated = 0  # among those that were skipped
        self._first_kept: Path | None = None
        self.notices = MaskNotices()

    @property
    def images(self) -> int:
        """Masks and failures of this run."""
        return self.done + self.failed

    @property
    def reached(self) -> int:
        """All that have ended, those among them whose mask was there before."""
        return self.images + self.skipped

    def counts(self) -> dict[str, int]:
        """How many images ended how. Together they are all images."""
        left = self.total - self.images - self.skipped
        return {"done": self.done, "failed": self.failed, "skipped": self.skipped, "not_reached": left}

    def add(self, outcome: Outcome) -> None:
        self.notices.add(outcome)
        if outcome.skipped:
            self.skipped += 1
            if outcome.kept is not None:
                self._add_kept(outcome)
        elif outcome.error is None:
            self.done += 1
        if outcome.error is not None:
            self.failed += 1
            self._untried += outcome.untried
            if len(self._first) < _SHOWN:
                self._first.append(outcome.error)

    def _add_kept(self, outcome: Outcome) -> None:
        from isicrt.engine.outcome import KEPT_OUTDATED

        self.kept += 1
        self._outdated += outcome.kept == KEPT_OUTDATED
        self._first_kept = self._first_kept or outcome.job.mask

    def say_notices(self) -> None:
        """Say which masks want a look, and which are not those that isicrt wrote: nobody else would tell."""
        for line in self.notices.lines():
            click.echo(printable(line), err=True)
        if not self.kept:
            return
        others = f" (of {self._outdated} the model, the settings or the image are others now)" if self._outdated else ""
        click.echo(
            f"{self.kept} masks are not those that isicrt wrote and were kept{others}, such as "
            f"{printable(self._first_kept)}; --overwrite makes them again",
            err=True,
        )

    def list_failures(self, where: Path | None) -> None:
        if not self.failed:
            return
        click.echo(f"{self.failed} of {self.reached} images failed:", err=True)
        for error in self._first:
            click.echo(f"  {printable(error)}", err=True)
        if self.failed > len(self._first):
            listed = f"all in {where}" if where else "--csv FILE or --json FILE lists all"
            click.echo(f"  ... and {self.failed - len(self._first)} more ({listed})", err=True)
        if self._untried:
            click.echo(
                f"Not tried again, because unchanged since they failed before: {self._untried} of them "
                "(--retry-failed tries them)",
                err=True,
            )


def count_run(
    tally: Tally, status: str, seconds: float, summary: RunSummary | None, decoded: DecodeCounts | None
) -> dict[str, Any]:
    """The end of a run in numbers.

    Args:
        tally: of its images.
        status: how it ended.
        seconds: all of it; `segmenting_seconds` are without the search before it.
        summary: of a run that came to its end.
        decoded: where its images were decoded, of one over the GPU's way.
    """
    counts: dict[str, Any] = {
        "status": status,
        "exit_code": {"done": 0, "interrupted": 130}.get(status, 1),
        "interrupted": status == "interrupted",
        "images": tally.images,
        "total": tally.total,
        **tally.counts(),
        "kept": tally.kept,
        **tally.notices.counts(),
        "seconds": round(seconds, 3),
    }
    if decoded is not None:
        counts["decoded"] = {"gpu": decoded.gpu, "cpu": decoded.cpu, "refused_by_gpu": decoded.refused}
    if summary is not None:
        counts |= {
            "segmenting_seconds": round(summary.seconds, 3),
            "images_per_second": round(summary.images_per_second, 2),
            "megapixels_per_second": round(summary.megapixels_per_second, 2),
            "stage_seconds": {name: round(value, 3) for name, value in summary.stage_seconds.items()},
        }
    return counts


def finish_run(
    counts: dict[str, Any],
    problem: IsicrtError | None,
    lists: Sequence[OutcomeFile],
    ledger: Ledger,
    report: Path | None,
    *,
    about: Mapping[str, Any],
    left_out: Mapping[str, Any],
) -> tuple[IsicrtError | None, Path | None]:
    """Finish a run's files, each whatever becomes of the others. What cannot be written stops a run, be it at its end.
    Overlays that it drew of masks of earlier runs are said: nothing counts them.

    Args:
        counts: of `count_run`; changed where the run is stopped here.
        problem: what has stopped the run so far.
        lists: of its images; one that says how the run ended behind one that does not.
        ledger: of the run.
        report: the ``--report`` file.
        about: what that says beside.
        left_out: what lists and report say of files that are no images of the run.

    Returns:
        What stopped the run, and the first list that is whole.
    """
    whole: list[Path] = []
    if ledger.redrawn:
        click.echo(f"{ledger.redrawn} overlays were drawn of masks that were there before", err=True)

    def stop(error: IsicrtError) -> IsicrtError:
        if not counts["interrupted"]:
            counts.update(status="stopped", exit_code=1)
        return problem or error

    if not counts["interrupted"]:  # the lists say what is on the disk
        try:
            ledger.sync()
        except IsicrtError as error:
            problem = stop(error)
    for one in lists:
        try:
            one.finish({**counts, **left_out})
            whole += [one.path] if one.path is not None else []
        except IsicrtError as error:
            problem = stop(error)
    try:
        # "status" in the journal is an image's.
        ended = {"result": counts["status"]} | {k: v for k, v in counts.items() if k != "status"}
        ledger.finish(ended, sync=not counts["interrupted"])
    except IsicrtError as error:
        problem = stop(error)
    reason = {"reason": None if problem is None else str(problem)}
    write_report(report, {**about, **reason, **counts, **left_out})
    return problem, whole[0] if whole else None


def say_end(summary: RunSummary, out: Path, about: str) -> None:
    """The closing line of a run, and before it a warning where the GPU was to decode and did not.

    Args:
        summary: of the run.
        out: the folder of the masks.
        about: model and runtime.
    """
    before = f"{summary.skipped} done before, " if summary.skipped else ""
    decoded = summary.decoded
    if decoded is not None:
        about += f"; {decoded.gpu} decoded on the GPU, {decoded.cpu} on the CPU"
        if decoded.falls_back:
            click.echo(
                f"The GPU's decoder refused {decoded.refused} of the {decoded.gpu + decoded.refused} JPEGs that it was "
                "given, and the CPU decoded them: the masks are right, the speed is not the GPU's. isicrt doctor says "
                "what nvImageCodec lacks; if it is memory, take a smaller --batch-size, else --decode cpu.",
                err=True,
            )
    click.echo(
        f"{summary.images - summary.failed} masks in {printable(out)}, {summary.failed} failed, {before}"
        f"{summary.seconds:.1f} s: {summary.images_per_second:.1f} images/s, "
        f"{summary.megapixels_per_second:.1f} MP/s ({about})"
    )
