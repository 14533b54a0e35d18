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
from isicrt.benchmarks.latency import Latency, Window
from isicrt.benchmarks.stages import StageSplit
from isicrt.benchmarks.throughput import EndToEnd
from isicrt.benchmarks.workload import WorkloadSummary
from isicrt.engine.card import ModelCard
from isicrt.engine.errors import DataError, ModelError

SCHEMA = "isicrt-bench/1"
NOISY = 0.10
"""Repeats that differ by more than this part of their median are reported as noise."""


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

    @property
    def noise(self) -> list[str]:
        """One sentence for each figure whose repeats differ by more than `NOISY`."""
        found = [
            f"{self.label}: median latencies at batch {x.batch_size} differ by {x.spread:.0%} between repeats"
            for x in self.latencies
            if x.spread > NOISY
        ]
        if self.end_to_end.spread > NOISY:
            found.append(f"{self.label}: end-to-end runs differ by {self.end_to_end.spread:.0%}")
        return found

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
            "accuracy": self.accuracy.to_dict() if self.accuracy is not None else None,
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
        )


@dataclass(frozen=True)
class Protocol:
    """How the figures were taken."""

    batch_sizes: tuple[int, ...]
    repeats: int
    threads: int | None
    """Of the network on the CPU; None for one a core."""
    window: Window
    """Of each latency measurement; there are `repeats` of them."""
    stage_images: int
    """Images of a stage pass, at most; there are `repeats` passes."""

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
    def warnings(self) -> list[str]:
        """What a reader must know before believing the figures."""
        found: list[str] = []
        load, cores = self.environment.load_average, self.environment.cores
        if load is not None and load > cores / 2:
            found.append(f"the machine was busy before the start: load average {load:.1f} on {cores} cores")
        for model in self.models:
            found += model.noise
        for model in self.models:
            if failures := model.end_to_end.failures:
                found.append(f"{model.label}: {len(failures)} images failed. The first: {failures[0]}")
            if model.accuracy and (problems := model.accuracy.problems):
                found.append(f"{model.label}: {len(problems)} masks not scored. The first: {problems[0]}")
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
        DataError: there is no such file, or it is something else.
    """
    try:
        data = json.loads(path.read_bytes())
        if data["schema"] != SCHEMA:
            raise DataError(f"{path}: its schema is {data['schema']!r}; this isicrt reads {SCHEMA!r}. Run bench again.")
        return Report.from_dict(data)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, ModelError) as error:
        raise DataError(f"{path}: not a report of `isicrt bench --json`: {error!r}") from error
