"""What a benchmark found, and its JSON form: settings, machine, raw samples, figures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isicrt.benchmarks.accuracy import Accuracy
from isicrt.benchmarks.environment import Environment
from isicrt.benchmarks.latency import QUICK_WINDOW, SETTLED_WINDOWS, TOLERANCE, Latency, Window, relative_spread
from isicrt.benchmarks.process import Usage
from isicrt.benchmarks.stages import MOST_BESIDE, StageSplit
from isicrt.benchmarks.throughput import EndToEnd
from isicrt.benchmarks.timeline import Lane
from isicrt.benchmarks.workload import WorkloadSummary
from isicrt.engine.card import ModelCard
from isicrt.engine.errors import DataError, ModelError

SCHEMA = "isicrt-bench/2"
READABLE = ("isicrt-bench/1", SCHEMA)
"""The first had no memory, no timeline, and measured the network's CPU time with all of its threads."""
MOST_OTHERS = 0.05
"""Share of the cores that other programs may have before a reader is told."""
SAMPLE_TOLERANCE = 0.05
"""The stages' images may differ so far from all images in their mean size before a reader is told."""


@dataclass(frozen=True)
class ModelResult:
    """One model on one runtime."""

    label: str
    """Unique in the report."""
    runtime: str
    file: str
    """Name of the file, without its folder."""
    sha256: str
    bytes: int
    card: ModelCard
    latencies: tuple[Latency, ...]
    """By batch size, ascending."""
    stages: StageSplit
    end_to_end: EndToEnd
    accuracy: Accuracy | None
    """Of the masks that the last timed run wrote; None where no truth was given."""
    process: Usage | None = None
    """Of `isicrt segment` on the same images, as a process of its own; None in results that did not note it."""
    process_note: str | None = None
    """Why there is none, where it ended badly or wrote other masks than the timed runs."""
    timeline: tuple[Lane, ...] = ()
    """Of the first batches of a run that is in no other figure."""

    @property
    def limit_ratio(self) -> float:
        """Measured time of an image / what no pipeline of these stages can beat; 1.0 loses nothing."""
        return self.end_to_end.ms_per_image / self.stages.limit_ms

    @property
    def noise(self) -> list[str]:
        """One sentence for each figure that did not settle."""
        found = []
        for x in self.latencies:
            last = slice(-SETTLED_WINDOWS, None)
            worst = max(relative_spread(x.window_medians[last]), relative_spread(x.window_rates[last]))
            if not x.settled:
                found.append(
                    f"{self.label}: calls at batch {x.batch_size}: the last {len(x.windows_ms[last])} of "
                    f"{len(x.windows_ms)} windows differ by {worst:.0%}"
                )
        if not self.end_to_end.settled:
            runs = self.end_to_end.runs[-SETTLED_WINDOWS:]
            found.append(
                f"{self.label}: files to masks: the last {len(runs)} of {len(self.end_to_end.runs)} runs differ by "
                f"{relative_spread([r.seconds for r in runs]):.0%}"
            )
        if not self.stages.settled:
            passes = [sum(costs) for costs in zip(*self.stages.cpu_ms.values(), strict=True)][-SETTLED_WINDOWS:]
            found.append(
                f"{self.label}: the stages, each alone: the last {len(passes)} passes differ by "
                f"{relative_spread(passes):.0%}, and so does L"
            )
        return found

    @property
    def others_note(self) -> str | None:
        """What to know where other programs had a part of the cores while the pipeline was timed."""
        others, cores = self.end_to_end.other_cores, self.stages.cores
        if others is None or others <= MOST_OTHERS * cores:
            return None
        return (
            f"{self.label}: other programs, the kernel or other machines kept {others:.1f} of {cores} cores busy while "
            "files to masks were timed: the images/s and the ratio to L may be of that"
        )

    @property
    def sample_note(self) -> str | None:
        """What to know where the stages were measured on images of another mean size than the whole."""
        sample, whole = self.stages.megapixels, self.end_to_end.megapixels_per_image
        if sample is None or abs(sample / whole - 1) <= SAMPLE_TOLERANCE:
            return None
        return (
            f"{self.label}: L is of {self.stages.images} images with {sample:.2f} MP in the mean; all of them have "
            f"{whole:.2f} MP. Raise --stage-images"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "label": self.label,
            "runtime": self.runtime,
            "file": self.file,
            "sha256": self.sha256,
            "bytes": self.bytes,
            "card": self.card.to_dict(),
            "latency": [x.to_dict() for x in self.latencies],
            "stages": self.stages.to_dict(),
            "end_to_end": self.end_to_end.to_dict(),
            "limit_ratio": self.limit_ratio,
            "process": self.process.to_dict() if self.process is not None else None,
            "process_note": self.process_note,
            "accuracy": self.accuracy.to_dict() if self.accuracy is not None else None,
            "timeline": [lane.to_dict() for lane in self.timeline],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelResult:
        """The inverse of `to_dict`."""
        return cls(
            **{name: data[name] for name in ("label", "runtime", "file", "sha256", "bytes")},
            card=ModelCard.from_dict(data["card"]),
            latencies=tuple(map(Latency.from_dict, data["latency"])),
            stages=StageSplit.from_dict(data["stages"]),
            end_to_end=EndToEnd.from_dict(data["end_to_end"]),
            accuracy=Accuracy.from_dict(data["accuracy"]) if data["accuracy"] is not None else None,
            process=Usage.from_dict(data["process"]) if data.get("process") is not None else None,
            process_note=data.get("process_note"),
            timeline=tuple(map(Lane.from_dict, data.get("timeline", ()))),
        )


@dataclass(frozen=True)
class Protocol:
    """How the figures were taken."""

    batch_sizes: tuple[int, ...]
    repeats: int
    """Windows, stage passes and runs, at least."""
    threads: int | None
    """Of the network on the CPU; None for one a core."""
    window: Window
    """Of each latency measurement."""
    stage_images: int
    """Images of a stage pass, at most."""
    max_repeats: int | None = None
    """Windows, passes and runs, at most, where they do not settle before; None for `repeats`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self) | {"batch_sizes": list(self.batch_sizes)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Protocol:
        """The inverse of `to_dict`."""
        return cls(**{**data, "batch_sizes": tuple(data["batch_sizes"]), "window": Window(**data["window"])})


@dataclass(frozen=True)
class Report:
    """A whole benchmark."""

    command: str
    date: str
    """ISO 8601, UTC."""
    environment: Environment
    workload: WorkloadSummary
    protocol: Protocol
    models: tuple[ModelResult, ...]

    @property
    def failed(self) -> bool:
        """Whether some image gave no mask, or some mask could not be scored."""
        return any(m.end_to_end.failures or (m.accuracy and m.accuracy.problems) for m in self.models)

    @property
    def quick(self) -> bool:
        """Whether it was measured with ``--quick``, which shows that it works and no more."""
        return self.protocol.window == QUICK_WINDOW

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before believing the figures."""
        found: list[str] = []
        if self.quick:
            found.append("a quick run shows that it works: quote none of its figures")
        if self.environment.busy is not None:
            found.append(self.environment.busy)
        noise = [line for model in self.models for line in model.noise]
        if noise:
            found.append(
                f"the machine is noisy: figures below did not settle within {TOLERANCE:.0%}. Quote none of them; close "
                "other programs and measure again"
            )
        found += noise
        if self.protocol.repeats < SETTLED_WINDOWS:
            found.append(f"fewer than {SETTLED_WINDOWS} repeats say nothing about noise")
        found += [
            f"{m.label}: its stages, each alone, waited for a core {m.stages.waited:.0%} of their time"
            for m in self.models
            if m.stages.waited > TOLERANCE
        ]
        found += [
            f"{m.label}: a stage, alone on one thread, took {m.stages.beside:.0%} more CPU time than wall time: "
            "another thread ran beside it, and L is too large"
            for m in self.models
            if m.stages.beside > MOST_BESIDE
        ]
        found += [model.others_note for model in self.models if model.others_note is not None]
        found += [f"{model.label}: {model.process_note}" for model in self.models if model.process_note is not None]
        found += [model.sample_note for model in self.models if model.sample_note is not None]
        for model in self.models:
            if failures := model.end_to_end.failures:
                found.append(f"{model.label}: {len(failures)} images failed. The first: {failures[0]}")
            if model.accuracy and (problems := model.accuracy.problems):
                found.append(f"{model.label}: {len(problems)} masks not scored. The first: {problems[0]}")
        # Of whichever model was scored on most: the truth is the same for all of them.
        scored = [model.accuracy for model in self.models if model.accuracy is not None]
        found += max(scored, key=lambda accuracy: len(accuracy.per_image)).truth_notes if scored else []
        if missing := self.workload.without_truth:
            found.append(
                f"{len(missing)} of {self.workload.images} images have no ground truth. The first: {missing[0]}"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``schema`` first."""
        return {
            "schema": SCHEMA,
            "command": self.command,
            "date": self.date,
            "environment": self.environment.to_dict(),
            "workload": self.workload.to_dict(),
            "protocol": self.protocol.to_dict(),
            "warnings": self.warnings,
            "models": [m.to_dict() for m in self.models],
        }

    def to_json(self) -> str:
        """Indented, with each row of numbers on one line."""
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False, ensure_ascii=False)
        # A raw line break cannot be inside a JSON string, so only lists of numbers match.
        return re.sub(r"\[\n[-+.\de,\s]+\n\s*\]", lambda found: " ".join(found[0].split()), text) + "\n"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """The inverse of `to_dict`."""
        return cls(
            command=data["command"],
            date=data["date"],
            environment=Environment.from_dict(data["environment"]),
            workload=WorkloadSummary.from_dict(data["workload"]),
            protocol=Protocol.from_dict(data["protocol"]),
            models=tuple(map(ModelResult.from_dict, data["models"])),
        )


def read_report(path: Path) -> Report:
    """Read what `isicrt bench --json` wrote.

    Raises:
        DataError: there is no such file, or it is something else, which is said, or not whole.
    """
    wanted = "What is read here is what `isicrt bench --json FILE` wrote"
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path}: not a JSON file ({error}). {wanted}") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, str):
        raise DataError(f"{path}: a JSON file that names no schema, so no report of isicrt. {wanted}")
    if schema.partition("/")[0] != SCHEMA.partition("/")[0]:
        raise DataError(f"{path}: a result of another kind, {schema!r}, and no report of `isicrt bench`. {wanted}")
    if schema not in READABLE:
        raise DataError(f"{path}: its schema is {schema!r}; this isicrt reads {SCHEMA!r}. Run bench again.")
    try:
        return Report.from_dict(data)
    except (ValueError, KeyError, TypeError, AttributeError, ModelError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path}: a report of `isicrt bench` ({schema}) that is not whole: {what}. {wanted}") from error
