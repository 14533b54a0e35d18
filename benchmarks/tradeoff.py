"""Accuracy against speed of several ONNX models beside a plain U-Net, measured in one run.

    python -m isicrt.benchmarks.tradeoff a.onnx b.onnx --data isic2016 --split test --json tradeoff.json

Latencies are those of the network alone on the CPU, one core and all cores, one image and eight: the mean of an image
over the images in turn (`isicrt.benchmarks.workload.in_turn`), for some models look at some of them again. In each
repeat every model and the peer are called one after the other, and the ratio to the peer is the median of the repeats'
ratios, so what slows the machine down slows both sides of it. Scores are of the official protocol, from the masks that
`isicrt segment` would write.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path, PurePath
from typing import Any, TypeVar

import click
import numpy as np

from isicrt._command import ModuleCommand, NamedPath
from isicrt.benchmarks.accuracy import Accuracy, score_masks
from isicrt.benchmarks.environment import read_environment, recorded_command
from isicrt.benchmarks.evaluation import Case, labels_of_files
from isicrt.benchmarks.latency import QUICK_WINDOW, Window, measure_latency, relative_spread
from isicrt.benchmarks.macs import count_macs, count_parameters, load_graph
from isicrt.benchmarks.plain_unet import plain_unet
from isicrt.benchmarks.result_file import check_places, write_whole
from isicrt.benchmarks.tradeoff_report import SCHEMA, to_markdown, to_svg
from isicrt.benchmarks.workload import batches_of, how_many_in_turn, in_turn, open_workload
from isicrt.engine.errors import DataError, ModelError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.pipeline import available_cores, run_jobs
from isicrt.engine.runtime import Runtime, open_runtime
from isicrt.engine.scores import difference_interval
from isicrt.engine.shipped import resolve
from isicrt.engine.sources import Job

PEER = "plain-unet"
BATCH_SIZES = (1, 8)
NOISY = 0.10
"""Repeats that differ by more than this part of their median are reported as noise."""
_WINDOW = Window(calls=5, seconds=0.5, warmup_calls=2, warmup_seconds=0.2)
_FILE = NamedPath(dir_okay=False, path_type=Path)

Setting = tuple[int, int]
"""Threads of the network and images a call."""


@dataclass
class _Entry:
    """A model, or the peer, while it is measured."""

    label: str
    path: Path
    runtimes: dict[int, Runtime]
    """By threads."""
    batches: dict[int, list[UInt8Array]]
    """Pixels by batch size, all images in each."""
    milliseconds: dict[Setting, list[float]] = field(default_factory=dict)
    """An image; the mean of each repeat."""
    accuracy: Accuracy | None = None


def find_cases(roots: Sequence[Path], split: str, ids: Sequence[str] | None = None) -> list[Case]:
    """Images and their truth, sorted by id.

    Args:
        roots: data sets with ``train/`` and ``test/`` that hold ``images/`` and ``masks/``, or with these two alone,
            which then are taken whatever the split.
        split: ``train`` or ``test``.
        ids: only these, such as one fold of a cross-validation; None for all.

    Raises:
        DataError: no such layout, an image without truth, an id in two data sets, or one that is nowhere.
    """
    cases: dict[str, Case] = {}
    for root in roots:
        home = root / split if (root / split / "images").is_dir() else root
        workload = open_workload(home / "images", home / "masks", home / "isicrt-no-masks")
        for name, image in zip(workload.names, workload.files, strict=True):
            if ids is not None and name.stem not in ids:
                continue
            if name.stem in cases:
                raise DataError(f"{image}: {name.stem} is also {cases[name.stem].image}")
            if name not in workload.truths:
                raise DataError(f"{image}: has no mask in {home / 'masks'}")
            cases[name.stem] = Case(name.stem, image, workload.truths[name])
    if ids is not None and (missing := sorted(set(ids) - cases.keys())):
        raise DataError(f"{len(missing)} of {len(ids)} ids are in no data set, such as {missing[0]}")
    return [cases[name] for name in sorted(cases)]


def read_ids(file: Path) -> list[str]:
    """Ids of images, one a line.

    Raises:
        DataError: no text, or no id in it.
        OSError: the file cannot be read.
    """
    text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")  # ids are names of files
    if "\0" in text:
        raise DataError(f"{file}: is no text file with an id in each line")
    if found := [line.strip(" \t\r") for line in text.split("\n") if line.strip()]:
        return found
    raise DataError(f"{file}: has no ids in it")


def measure_tradeoff(
    models: Sequence[Path],
    cases: Sequence[Case],
    *,
    peer: Path | None,
    repeats: int = 7,
    window: Window = _WINDOW,
    on_step: Callable[[str], None] = lambda step: None,
) -> dict[str, Any]:
    """Time all models in turn, then score them.

    Args:
        models: ONNX files.
        cases: at least one.
        peer: the ONNX file that speeds are ratios to; timed and not scored. None for no ratios.
        repeats: so many windows of each model, thread number and batch size.
        window: length of each.
        on_step: told what comes next.

    Returns:
        ``models``, the peer last, as the JSON file has them; ``warnings``; and ``images_in_turn``, how many the
        network alone was called on.

    Raises:
        ModelError: a file that is no ONNX model of ours.
        DataError: no cases, or images that cannot be decoded.
    """
    if not cases:
        raise DataError("there is no image to score the models on")
    settings = [(threads, batch) for threads in sorted({1, available_cores()}) for batch in BATCH_SIZES]
    with contextlib.ExitStack() as stack:
        files = [*models, *([peer] if peer is not None else [])]
        entries = [_open(path, stack) for path in files]
        count = how_many_in_turn(entry.runtimes[1].card.input_size for entry in entries)
        for entry in entries:
            images = in_turn([case.image for case in cases], entry.runtimes[1].card.input_size, count)
            entry.batches = {size: batches_of(images, size) for size in BATCH_SIZES}
        for entry, label in zip(entries, labels_of_files([e.label for e in entries], files), strict=True):
            entry.label = label
        for repeat in range(repeats):
            for setting in settings:
                on_step(f"repeat {repeat + 1} of {repeats}, {setting[0]} threads, batch {setting[1]}")
                for entry in entries:
                    _time(entry, setting, window)
        scored = entries[: len(models)]
        for entry in scored:
            on_step(f"{entry.label}: scoring {len(cases)} images")
            entry.accuracy = _score(entry.runtimes[max(entry.runtimes)], cases)
    best = max(scored, key=lambda entry: _mean_jaccard(entry.accuracy))
    reference = entries[-1] if peer is not None else None
    return {
        "images_in_turn": min(count, len(cases)),
        "warnings": [warning for entry in entries for warning in _noise(entry)],
        "models": [_to_dict(entry, reference, best) for entry in entries],
    }


def _open(path: Path, stack: contextlib.ExitStack) -> _Entry:
    if path.suffix.lower() != ".onnx":
        raise ModelError(f"{path}: give the .onnx file; the size of a .plan that lies beside it is shown too")
    runtimes = {n: stack.enter_context(open_runtime(path, threads=n)) for n in sorted({1, available_cores()})}
    return _Entry(runtimes[1].card.name, path, runtimes, {})


def _time(entry: _Entry, setting: Setting, window: Window) -> None:
    threads, batch = setting
    samples = measure_latency(entry.runtimes[threads], entry.batches[batch], window)
    entry.milliseconds.setdefault(setting, []).append(float(np.mean(samples)) / batch)


def _score(runtime: Runtime, cases: Sequence[Case]) -> Accuracy:
    with tempfile.TemporaryDirectory(prefix="isicrt-tradeoff-") as folder:
        masks = {case.id: PurePath(f"{case.id}.png") for case in cases}
        run_jobs(
            [Job(case.image, Path(folder) / masks[case.id]) for case in cases], runtime, batch_size=max(BATCH_SIZES)
        )
        accuracy = score_masks(Path(folder), {masks[case.id]: case.truth for case in cases})
    if accuracy.problems:
        raise DataError(f"{len(accuracy.problems)} masks cannot be scored: {accuracy.problems[0]}")
    return accuracy


def _mean_jaccard(accuracy: Accuracy | None) -> float:
    return float(accuracy.summary["jaccard"]) if accuracy is not None else 0.0


def _noise(entry: _Entry) -> list[str]:
    return [
        f"{entry.label}: repeats on {threads} threads at batch {batch} differ by {relative_spread(found):.0%}"
        for (threads, batch), found in entry.milliseconds.items()
        if relative_spread(found) > NOISY
    ]


def _to_dict(entry: _Entry, peer: _Entry | None, best: _Entry) -> dict[str, Any]:
    graph, card = load_graph(entry.path), entry.runtimes[1].card
    plan = entry.path.with_suffix(".plan")
    timings = []
    for setting, found in entry.milliseconds.items():
        ratios = [b / a for a, b in zip(found, peer.milliseconds[setting], strict=True)] if peer is not None else []
        timings.append(
            {
                "threads": setting[0],
                "batch_size": setting[1],
                "ms_per_image": float(np.median(found)),
                "times_as_fast_as_peer": float(np.median(ratios)) if ratios else None,
                "repeats_ms": [round(ms, 4) for ms in found],
            }
        )
    return {
        "label": entry.label,
        "peer": entry is peer,
        "file": entry.path.name,
        "sha256": hashlib.sha256(entry.path.read_bytes()).hexdigest(),
        "architecture": card.architecture,
        "precision": card.precision,
        "runtime": entry.runtimes[1].name,
        "input": list(card.input_size),
        "parameters": count_parameters(graph),
        "macs": count_macs(graph),
        "bytes": entry.path.stat().st_size,
        "plan_bytes": plan.stat().st_size if plan.is_file() else None,
        "timings": timings,
        "accuracy": _accuracy(entry.accuracy, best.accuracy),
    }


def _accuracy(accuracy: Accuracy | None, best: Accuracy | None) -> dict[str, Any] | None:
    """The summary; the mean Jaccard index minus the best model's with its paired interval; the index of each image."""
    if accuracy is None or best is None:
        return None
    differences = np.array([s.jaccard - best.per_image[name].jaccard for name, s in accuracy.per_image.items()])
    low, high = difference_interval(differences)
    return {
        "summary": accuracy.summary,
        "against_best": {"jaccard": float(differences.mean()), "low": low, "high": high},
        "jaccard": {PurePath(name).stem: round(s.jaccard, 6) for name, s in accuracy.per_image.items()},
    }


_F = TypeVar("_F", bound=Callable[..., Any])


def data_options(command: _F) -> _F:
    """``--data`` (`roots`), ``--split`` and ``--ids``: the images of `find_cases` and `read_ids`."""
    for option in (
        click.option("--ids", type=NamedPath(exists=True, dir_okay=False, path_type=Path), help="These, one a line."),
        click.option("--split", type=click.Choice(("train", "test")), default="test", show_default=True),
        click.option(
            "--data",
            "roots",
            multiple=True,
            required=True,
            type=NamedPath(exists=True, file_okay=False, path_type=Path),
            help="Data set with images/ and masks/, or with train/ and test/ that hold them. May be given again.",
        ),
    ):
        command = option(command)
    return command


@click.command(cls=ModuleCommand)
@click.argument("models", nargs=-1, required=True)
@data_options
@click.option("--peer", default=PEER, show_default=True, help=f"{PEER} (4 GMAC at 192 px), an .onnx file, or none.")
@click.option("--repeats", type=click.IntRange(min=5), default=7, show_default=True)
@click.option("--quick", is_flag=True, help="Short windows: shows that it works, measures badly.")
@click.option("--json", "json_file", type=_FILE, required=True)
@click.option("--markdown", type=_FILE)
@click.option("--svg", type=_FILE, help="Accuracy against speed, as a drawing.")
def main(
    models: tuple[str, ...],
    roots: tuple[Path, ...],
    split: str,
    ids: Path | None,
    peer: str,
    repeats: int,
    quick: bool,
    json_file: Path,
    markdown: Path | None,
    svg: Path | None,
) -> None:
    """Measure MODELS, .onnx files or names of shipped models, beside the peer."""
    check_places(json_file, markdown, svg)
    window = QUICK_WINDOW if quick else _WINDOW
    result = _run(models, roots, split, ids, peer, repeats, window)
    try:
        for path, text in ((json_file, _to_json), (markdown, to_markdown), (svg, to_svg)):
            write_whole(path, text(result))
    finally:  # hours are not lost where a file cannot be written
        click.echo(to_markdown(result))


def _run(
    models: Sequence[str],
    roots: Sequence[Path],
    split: str,
    ids: Path | None,
    peer: str,
    repeats: int,
    window: Window,
) -> dict[str, Any]:
    environment = read_environment()
    files = [resolve(model) for model in models]
    cases = find_cases(roots, split, None if ids is None else read_ids(ids))
    with tempfile.TemporaryDirectory(prefix="isicrt-peer-") as folder:
        peer_file = Path(folder) / f"{PEER}.onnx" if peer == PEER else None if peer == "none" else Path(peer)
        if peer == PEER:
            (Path(folder) / f"{PEER}.onnx").write_bytes(plain_unet().SerializeToString(deterministic=True))
        found = measure_tradeoff(files, cases, peer=peer_file, repeats=repeats, window=window, on_step=_show_step)
    if environment.busy is not None:
        found["warnings"].insert(0, environment.busy)
    if window is QUICK_WINDOW:
        found["warnings"].insert(0, "measured with --quick: these figures are not to be quoted")
    # The last two names of a path tell data sets apart and tell nothing of the machine.
    names = ["/".join(root.absolute().parts[-2:]) for root in roots]
    return {
        "schema": SCHEMA,
        "command": recorded_command(["python", "-m", "isicrt.benchmarks.tradeoff", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment.to_dict(),
        "data": {"sets": names, "split": split, "ids": ids.name if ids is not None else None, "images": len(cases)},
        "protocol": {"repeats": repeats, "window": asdict(window), "scores": "official"},
        **found,
    }


def _to_json(result: dict[str, Any]) -> str:
    return json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _show_step(step: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{step}", nl=False, err=True)


if __name__ == "__main__":
    main()
