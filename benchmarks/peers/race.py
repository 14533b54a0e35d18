"""One entrant's runs, and what they say side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from isicrt.benchmarks.environment import Environment
from isicrt.benchmarks.latency import SETTLED_WINDOWS, TOLERANCE, relative_spread
from isicrt.benchmarks.process import isicrt_command, module_command, run_command
from isicrt.benchmarks.scratch import fresh
from isicrt.engine.errors import DataError
from isicrt.engine.images import read_mask
from isicrt.engine.scores import score_mask

SCHEMA = "isicrt-peers/1"
"""Files without `not_run` and `warnings` are older: their load average was read after the runs and holds them."""
AGREES = 0.98
"""Mean Jaccard index of two entrants' masks from which they have done the same work."""
_LIMITS = frozenset({"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"})
"""That many clusters set to 1. They slow torch and not isicrt, so no entrant has them."""


@dataclass(frozen=True)
class Peer:
    """A script in this package."""

    name: str
    title: str
    module: str
    packages: tuple[str, ...]
    """That it imports beyond isicrt's own, by the name of the import."""

    @property
    def knows_int8(self) -> bool:
        """Whether it computes an int8 graph as such: `load_module` knows no quantised operators."""
        return "torch" not in self.packages


PEERS: Mapping[str, Peer] = {
    p.name: p
    for p in (
        Peer("pillow-torch", "Pillow, torch eager, one by one", "pillow_torch", ("torch", "onnx")),
        Peer("dataloader", "torch DataLoader, batch 8, torch.compile", "dataloader", ("torch", "onnx")),
        Peer("opencv-onnx", "OpenCV, ONNX Runtime, one by one", "opencv_onnx", ()),
        Peer("openvino", "OpenCV, OpenVINO's async queue, float32", "openvino_async", ("openvino",)),
        Peer("openvino-native", "OpenCV, OpenVINO's async queue, its own arithmetic", "openvino_native", ("openvino",)),
        Peer("rembg", "rembg.remove, one session", "rembg_folder", ("rembg", "onnx")),
        Peer("ultralytics", "Ultralytics predict, ONNX", "ultralytics_folder", ("ultralytics", "onnx")),
    )
}


@dataclass
class Entrant:
    """`isicrt` or a peer, and its runs."""

    name: str
    seconds: list[float] = field(default_factory=list)
    """Of the loop over all images, by round: the model is loaded; a peer has also warmed up."""
    process_seconds: list[float] = field(default_factory=list)
    """Of the whole process, with start-up, loading, and a peer's warm-up and compilation."""
    cpu_seconds: list[float | None] = field(default_factory=list)
    """Of the whole process, over all threads."""
    peak_rss_mb: list[float | None] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """What else the peer said in the last run."""
    agreement: float | None = None
    """Mean Jaccard index of its masks with isicrt's; None where the networks differ."""


def run_isicrt(entrant: Entrant, model: Path, files: Path, out: Path) -> None:
    """`isicrt segment` once, as anybody runs it: no warm-up, and its own clock starts with the first image."""
    report = out.with_suffix(".json")
    command = isicrt_command("segment", str(files), "--out", str(fresh(out)))
    command += ["--model", str(model), "--json", str(report)]
    # Its `seconds` hold the loading of the model, which no peer's clock does.
    _note(entrant, command, report, lambda data: data["summary"] | {"seconds": data["summary"]["segmenting_seconds"]})


def run_peer(entrant: Entrant, peer: Peer, model: Path, files: Path, out: Path) -> None:
    """A peer once."""
    report = out.with_suffix(".json")
    command = module_command(f"isicrt.benchmarks.peers.{peer.module}", "--model", str(model))
    command += ["--list", str(files), "--out", str(fresh(out)), "--json", str(report)]
    _note(entrant, command, report, lambda data: data)


def _note(entrant: Entrant, command: list[str], report: Path, summary: Any) -> None:
    report.unlink(missing_ok=True)
    usage = run_command(command, environment={k: v for k, v in os.environ.items() if k not in _LIMITS})
    said = dict(summary(json.loads(report.read_text(encoding="utf-8"))))
    entrant.seconds.append(float(said.pop("seconds")))
    entrant.process_seconds.append(usage.seconds)
    entrant.cpu_seconds.append(usage.cpu_seconds)
    entrant.peak_rss_mb.append(usage.peak_rss_mb)
    entrant.facts = {k: v for k, v in said.items() if k != "stage_seconds"}


def agreement(ours: Path, theirs: Path) -> float:
    """Mean Jaccard index of the masks in two folders.

    Raises:
        DataError: one of `ours` is not among `theirs`.
    """
    # isicrt mirrors the tree of a list of files; the peers write one folder, and no name is there twice.
    masks = sorted(ours.rglob("*.png"))
    missing = [m.name for m in masks if not (theirs / m.name).is_file()]
    if missing or not masks:
        raise DataError(f"{theirs.name}: {len(missing)} of {len(masks)} masks were not written")
    return float(np.mean([score_mask(read_mask(theirs / m.name), read_mask(m)).jaccard for m in masks]))


@dataclass(frozen=True)
class Race:
    """All entrants on the same images."""

    command: str
    date: str
    model: str
    baseline: str | None
    """File of the peers' network, where it is another."""
    images: int
    megabytes: float
    isicrt: Entrant
    peers: Sequence[Entrant]
    left_out: Mapping[str, Sequence[str]]
    """Peers that were asked for and could not be run, with the packages that are missing."""
    not_run: Sequence[str]
    """Peers that nobody asked for."""
    environment: Environment
    """Read before the first run."""
    float_model: str | None = None
    """File of the same network in float32 for the peers that run torch, where `model` is int8."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Peers that ended with an error, in whichever round, and what they said; none of their rounds count."""
    busy_processes: int = 0
    """That kept a core busy each meanwhile."""
    files: Sequence[Mapping[str, str]] = ()
    """Name and SHA-256 of each network."""
    images_sha256: str | None = None
    """Of the images' contents and names, see `isicrt.benchmarks.workload.Workload.read_ahead`."""

    def rounds(self, peer: Entrant) -> list[float]:
        """How many times faster isicrt is, loop against loop, in each round."""
        return [theirs / ours for ours, theirs in zip(self.isicrt.seconds, peer.seconds, strict=True)]

    def ratio(self, peer: Entrant) -> tuple[float, float, float]:
        """How many times faster isicrt is, loop against loop: of the medians, and the range over the rounds."""
        rounds = self.rounds(peer)
        return float(np.median(peer.seconds) / np.median(self.isicrt.seconds)), min(rounds), max(rounds)

    def process_ratio(self, peer: Entrant) -> float:
        """The same of the whole processes, start-up included."""
        return float(np.median(peer.process_seconds) / np.median(self.isicrt.process_seconds))

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before believing the ratios, in the words of `isicrt bench`."""
        found = [] if self.environment.busy is None else [self.environment.busy]
        spreads = {p.name: relative_spread(self.rounds(p)) for p in self.peers}
        noise = [
            f"{name}: the ratios of {len(self.isicrt.seconds)} rounds differ by {spread:.0%}"
            for name, spread in spreads.items()
            if spread > TOLERANCE
        ]
        if noise:
            found.append(
                f"the machine is noisy: the ratios below did not settle within {TOLERANCE:.0%}. Quote none of them; "
                "close other programs and measure again"
            )
        found += noise
        if len(self.isicrt.seconds) < SETTLED_WINDOWS:
            found.append(f"fewer than {SETTLED_WINDOWS} rounds say nothing about noise")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "schema": SCHEMA,
            "command": self.command,
            "date": self.date,
            "environment": self.environment.to_dict(),
            "packages": _versions(),
            "model": self.model,
            "baseline": self.baseline,
            "float_model": self.float_model,
            "files": list(self.files),
            "images": self.images,
            "images_sha256": self.images_sha256,
            "megabytes": self.megabytes,
            "busy_processes": self.busy_processes,
            "isicrt": self._entry(self.isicrt),
            "peers": [
                self._entry(p)
                | dict(zip(("ratio", "ratio_low", "ratio_high"), self.ratio(p), strict=True))
                | {"process_ratio": self.process_ratio(p)}
                for p in self.peers
            ],
            "left_out": {name: list(packages) for name, packages in self.left_out.items()},
            "not_run": list(self.not_run),
            "failed": dict(self.failed),
            "warnings": self.warnings,
        }

    def _entry(self, entrant: Entrant) -> dict[str, Any]:
        return {"images_per_second": self.images / float(np.median(entrant.seconds))} | asdict(entrant)

    def to_markdown(self) -> str:
        """See `race_markdown`."""
        return race_markdown(self.to_dict())


def race_markdown(data: Mapping[str, Any]) -> str:
    """A row for each entrant, and under the table what a reader must know.

    Args:
        data: of `Race.to_dict`, or of a file that holds that.
    """
    ours, peers, e = data["isicrt"], data["peers"], data["environment"]
    lines = [
        "| | images/s | isicrt is faster by (range of the rounds) | with start-up | peak MB | masks agree |",
        "| :-- | --: | --: | --: | --: | --: |",
        f"| isicrt segment | {ours['images_per_second']:.1f} | | | {_median(ours['peak_rss_mb'])} | |",
    ]
    for p in peers:
        agree = "other network" if p["agreement"] is None else f"{p['agreement']:.3f}"
        lines.append(
            f"| {PEERS[p['name']].title} | {p['images_per_second']:.1f} | {p['ratio']:.2f} ({p['ratio_low']:.2f} to "
            f"{p['ratio_high']:.2f}) | {p['process_ratio']:.2f} | {_median(p['peak_rss_mb'])} | {agree} |"
        )
    network = f"{data['model']}; peers: {data['baseline']}" if data["baseline"] else data["model"]
    network += f"; torch: {data['float_model']}" if data.get("float_model") else ""
    rounds = len(ours["seconds"])
    lines += ["", f"{data['images']} images, {rounds} rounds, {network}. {e['cpu']} ({e['cores']} cores)."]
    if load := data.get("busy_processes", 0):
        beside = f"{load} processes that kept a core busy each" if load > 1 else "a process that kept a core busy"
        lines += [f"Measured beside {beside}."]
    eager = {p["name"]: str(p["facts"]["compiled"]) for p in peers if p["facts"].get("compiled", True) is not True}
    lines += [f"Eager: {name} (torch.compile: {why})." for name, why in eager.items()]
    lines += [f"Left out: {name} (not installed: {', '.join(p)})." for name, p in data["left_out"].items()]
    lines += [f"Failed: {name}: {said.strip().splitlines()[-1]}" for name, said in data.get("failed", {}).items()]
    lines += [f"Not run: {', '.join(data['not_run'])} (--peers named others)."] if data.get("not_run") else []
    odd = [p["name"] for p in peers if p["agreement"] is not None and p["agreement"] < AGREES]
    lines += [f"Masks that agree less than {AGREES}: {', '.join(odd)}."] if odd else []
    warnings = data.get("warnings", [])
    lines += ["", *(f"> - {line}" for line in warnings)] if warnings else []
    return "\n".join(lines) + "\n"


def _median(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{np.median(known):.0f}" if known else ""


def _versions() -> dict[str, str]:
    """Of what the peers import, where it is installed."""
    found = {}
    for package in ("torch", "onnx", "onnxruntime", "openvino", "rembg", "ultralytics", "opencv-python-headless"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
