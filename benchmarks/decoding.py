"""Does it matter how a JPEG is brought to the model's size? Each way of decoding against the whole image and Pillow.

    python -m isicrt.benchmarks.decoding unet-light --data isic2016 --split test --json decoding.json

`isicrt segment` scales in the DCT domain and resizes with another library than training's DALI, so the network sees
pixels that it was not trained on, if only by rounding. Here the same network and the same clean-up follow each way, and
what is compared are the pixels, the masks and the scores. The exit code is 1 where a score changes by too much.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import import_module
from importlib.metadata import distributions
from io import BytesIO
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from PIL import Image

from isicrt._command import ModuleCommand, Number
from isicrt.benchmarks.agreement import Agreement, ImageAgreement, Limits
from isicrt.benchmarks.environment import read_environment, recorded_command
from isicrt.benchmarks.evaluation import Case, infer
from isicrt.benchmarks.gpu_dali import decode_with_dali
from isicrt.benchmarks.result_file import check_places, write_whole
from isicrt.benchmarks.scoring_protocol import OfficialProtocol
from isicrt.benchmarks.tables import markdown_text
from isicrt.benchmarks.tradeoff import find_cases
from isicrt.engine import geometry
from isicrt.engine.errors import DataError, ImageError
from isicrt.engine.geometry import UInt8Array, resize_by_pillow, resize_image
from isicrt.engine.images import JPEG_SIGNATURE, MAX_PIXELS, Decoded, decode_data, decode_image, read_image, read_source
from isicrt.engine.masks import Mask
from isicrt.engine.pixel_budget import BUDGET
from isicrt.engine.runtime import Runtime, open_runtime
from isicrt.engine.scores import difference_interval, score_mask
from isicrt.engine.shipped import resolve

SCHEMA = "isicrt-decoding/1"
REFERENCE = "whole"
DEPLOYED = "segment"
_CHUNK = 16
"""Images at a time: DALI takes a batch."""
_DECIDE_PIXELS = ("cykooz-resizer", "nvidia-dali-")
"""Beginnings of packages that `read_environment` does not list."""

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class Way:
    """One way from files to the network's input."""

    name: str
    title: str
    """For people."""
    decode: Callable[[Sequence[Path], Size], list[UInt8Array]]
    """uint8, height x width x 3, RGB, of each file."""
    trains: bool = False
    """Training or its validation sees these pixels; what is deployed is compared with them too."""
    decides: bool = True
    """False for a way that is shown and that no exit code depends on."""
    module: str | None = None
    """That must be installed."""


def decode_whole(file: Path) -> UInt8Array:
    """The whole image by Pillow: no scaling in the DCT domain, and none of the fast path's decoder."""
    data = read_source(file).data
    if not data.startswith(JPEG_SIGNATURE):
        return read_image(file)  # by Pillow, for every other format
    try:
        with Image.open(BytesIO(data), formats=["JPEG"]) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{file}: cannot be decoded: {error}") from error


def decode_scaled(file: Path, size: Size) -> tuple[UInt8Array, Size]:
    """What `decode_image` has before it resizes, and the image's own size."""
    # The engine's own function and not the like of it: else the two causes of a change would not be told apart.
    return decode_data(read_source(file).data, size, MAX_PIXELS, BUDGET.admit)


def as_training_warps(file: Path, size: Size) -> UInt8Array:
    """What a model sees in training with augmentation, were the dice to leave everything as it is: antialiased to 4/3
    of the input (`isicrt.trainer.pipelines.cache_size`), and plain bilinear from there by the warp."""
    kept = resize_image(read_image(file), (size[0] * 4 // 3, size[1] * 4 // 3))
    return np.asarray(cv2.resize(kept, size[::-1], interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def _by_dali(files: Sequence[Path], size: Size) -> list[UInt8Array]:
    try:
        return decode_with_dali(files, "cpu", size)
    except RuntimeError as error:  # DALI does not say which of them it was
        raise DataError(f"DALI cannot decode one of {files[0]} and {len(files) - 1} more: {error}") from error


WAYS = (
    Way(
        REFERENCE,
        "whole JPEG, then Pillow's resize",
        lambda files, size: [resize_by_pillow(decode_whole(f), size) for f in files],
    ),
    Way(
        DEPLOYED,
        "as `isicrt segment`: scaled in the DCT domain, then `resize_image`",
        lambda files, size: [decode_image(f, size).pixels for f in files],
    ),
    Way(
        "segment-pillow",
        "scaled in the DCT domain, then Pillow's resize",
        lambda files, size: [resize_by_pillow(decode_scaled(f, size)[0], size) for f in files],
    ),
    Way(
        "training",
        "as validation, and as training's cache without augmentation: whole JPEG, then `resize_image`",
        lambda files, size: [resize_image(read_image(f), size) for f in files],
        trains=True,
    ),
    Way(
        "training-dali",
        "as `train --no-cache` without augmentation: DALI decodes and resizes",
        _by_dali,
        trains=True,
        module="nvidia.dali",
    ),
    Way(
        "training-warp",
        "as augmentation that changes nothing: training's cache at 4/3 of the size, then bilinear",
        lambda files, size: [as_training_warps(f, size) for f in files],
        trains=True,
        decides=False,  # one outcome of something random that is meant to vary
    ),
)


@dataclass
class _Gap:
    """Two ways, image by image."""

    way: Way
    against: Way
    pixels_mean: list[float] = field(default_factory=list)
    pixels_max: list[int] = field(default_factory=list)
    masks: list[ImageAgreement] = field(default_factory=list)

    def add(
        self, image: str, pixels: Mapping[str, UInt8Array], masks: Mapping[str, Mask], scores: Mapping[str, float]
    ) -> None:
        """One image, by the ways' names."""
        a, b = self.way.name, self.against.name
        distance = np.abs(pixels[a].astype(np.int16) - pixels[b])
        self.pixels_mean.append(float(distance.mean()))
        self.pixels_max.append(int(distance.max()))
        overlap, differing = score_mask(masks[a], masks[b]).jaccard, int(np.count_nonzero(masks[a] != masks[b]))
        self.masks.append(ImageAgreement(image, overlap, differing, masks[a].size, scores[b], scores[a]))

    def to_dict(self, max_change: float) -> dict[str, Any]:
        masks = Agreement(tuple(self.masks))
        change = [(m.score_candidate or 0.0) - (m.score_reference or 0.0) for m in self.masks]
        low, high = difference_interval(np.array(change))
        decides = self.way.decides and self.against.decides
        return {
            "way": self.way.name,
            "against": self.against.name,
            "decides": decides,
            "images": len(self.masks),
            "pixels": {"mean": float(np.mean(self.pixels_mean)), "max": max(self.pixels_max)},
            "masks": {
                "jaccard_mean": masks.jaccard_mean,
                "jaccard_min": masks.jaccard_min,
                "lowest": min(self.masks, key=lambda m: m.jaccard).name,
                "identical": masks.identical,
            },
            "change": {"jaccard": float(np.mean(change)), "low": low, "high": high, "largest": max(map(abs, change))},
            "problems": masks.problems(Limits(0.0, max_change)) if decides else [],
        }


def measure_decoding(
    runtime: Runtime, cases: Sequence[Case], *, max_change: float = Limits.max_change, ways: Sequence[Way] = WAYS
) -> dict[str, Any]:
    """Decode every image in every way, segment it, and compare.

    Args:
        runtime: nobody else uses it meanwhile.
        cases: at least one, each with its truth.
        max_change: a mean score must change by less.
        ways: one of them is named `REFERENCE`.

    Returns:
        ``ways`` with the official Jaccard index of each; ``not_measured``; ``comparisons`` of each way with the
        reference and of `DEPLOYED` with what trains; ``scaled``, how many images were decoded at which part of their
        size, and ``below_input``, those of them that were scaled below the model's size.

    Raises:
        DataError: no images, or one that cannot be decoded or scored.
        ModelError: the network failed.
    """
    if not cases:
        raise DataError("there is no image to decode")
    card, protocol = runtime.card, OfficialProtocol()
    missing = [way for way in ways if way.module is not None and not _is_there(way.module)]
    used = [way for way in ways if way not in missing]
    gaps = _pairs(used)
    scores: dict[str, dict[str, float]] = {way.name: {} for way in used}
    scaled: Counter[str] = Counter()
    below: list[str] = []
    for start in range(0, len(cases), _CHUNK):
        chunk = cases[start : start + _CHUNK]
        decoded = {way.name: way.decode([case.image for case in chunk], card.input_size) for way in used}
        for n, case in enumerate(chunk):
            before_resize, native = decode_scaled(case.image, card.input_size)
            scaled[_part(before_resize.shape[:2], native)] += 1
            if any(s < min(i, o) for s, i, o in zip(before_resize.shape, card.input_size, native, strict=False)):
                below.append(case.id)
            pixels = {name: found[n] for name, found in decoded.items()}
            truth = protocol.read_truth(case.truth)[0]
            if truth.shape != native:
                raise DataError(f"{case.truth}: has not the size of its image {case.image.name}")
            masks = {name: _segment(runtime, case, Decoded(p, native), protocol) for name, p in pixels.items()}
            score = {name: protocol.score(mask, truth).jaccard for name, mask in masks.items()}
            for name in score:
                scores[name][case.id] = score[name]
            for gap in gaps:
                gap.add(case.id, pixels, masks, score)
    return {
        "scaled": dict(sorted(scaled.items())),
        "below_input": below,
        "max_change": max_change,
        "comparisons": [gap.to_dict(max_change) for gap in gaps],
        "not_measured": [{"name": way.name, "reason": f"{way.module} cannot be imported"} for way in missing],
        "ways": [_scored(way, scores[way.name]) for way in used],
    }


def _scored(way: Way, scores: Mapping[str, float]) -> dict[str, Any]:
    mean, rounded = float(np.mean(list(scores.values()))), {name: round(score, 6) for name, score in scores.items()}
    return {"name": way.name, "title": way.title, "jaccard": mean, "per_image": rounded}


def _pairs(ways: Sequence[Way]) -> list[_Gap]:
    by_name = {way.name: way for way in ways}
    reference, deployed = by_name[REFERENCE], by_name.get(DEPLOYED)
    gaps = [_Gap(way, reference) for way in ways]
    return gaps + [_Gap(deployed, way) for way in ways if deployed is not None and way.trains]


def _is_there(module: str) -> bool:
    try:
        import_module(module)
    except (ImportError, OSError):  # OSError: a shared library that it needs
        return False
    return True


def _part(scaled: Sequence[int], native: Size) -> str:
    """``1/2`` where an image was decoded at half its size."""
    return f"1/{round(max(native) / max(scaled))}"


def _segment(runtime: Runtime, case: Case, image: Decoded, protocol: OfficialProtocol) -> Mask:
    # One image a call: in a batch, a place of it could round otherwise than another.
    (probability,) = infer(runtime, [(case, image)])
    return protocol.mask(probability, image.native_size, runtime.card)


def problems(result: Mapping[str, Any]) -> list[str]:
    """Why the ways of decoding do not agree; none if they do."""
    found = [f"{c['way']} against {c['against']}: {p}" for c in result["comparisons"] for p in c["problems"]]
    if below := result["below_input"]:
        found.append(f"images scaled below the model's size: {len(below)}, such as {below[0]}")
    return found


def to_markdown(result: Mapping[str, Any]) -> str:
    """The table, and how it was measured."""
    scores = {way["name"]: way["jaccard"] for way in result["ways"]}
    header = ["Way", "Against", "Pixels: mean, max", "Masks: mean Jaccard, lowest", "Score", "Change (95 %)"]
    rows = [header, [":--", ":--", "--:", "--:", "--:", "--:"]]
    for c in result["comparisons"]:
        pixels, masks, change = c["pixels"], c["masks"], c["change"]
        row = [c["way"], "itself" if c["way"] == c["against"] else c["against"]]
        row += [f"{pixels['mean']:.3f}, {pixels['max']}", f"{masks['jaccard_mean']:.5f}, {masks['jaccard_min']:.4f}"]
        known = change["low"] is not None
        interval = f"{change['low']:+.5f} to {change['high']:+.5f}" if known else "too few images"
        row += [f"{scores[c['way']]:.5f}", f"{change['jaccard']:+.5f} ({interval})"]
        rows.append(row)
    model, data = result["model"], result["data"]
    height, width = model["input"]
    parts = ", ".join(f"{count} at {part}" for part, count in result["scaled"].items())
    notes = [f"{way['name']}: {way['title']}." for way in result["ways"]]
    notes += [f"{way['name']}: not measured, {way['reason']}." for way in result["not_measured"]]
    notes += [
        "Pixels at the network's input, in levels of 255. Score: mean Jaccard index, official protocol. Change: with "
        "its paired bootstrap interval.",
        f"Images: {data['images']} ({markdown_text(data['set'])}). Model: {markdown_text(model['name'])} at "
        f"{height} x {width} px on {model['runtime']}. Before it resizes, segment decoded {parts} of the size, "
        f"{len(result['below_input'])} of them below the model's. `resize_image` is by `{result['resizer']}`.",
    ]
    table = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*table, "", *(f"- {note}" for note in notes), ""])


def _named(path: Path | str) -> str:
    """A path as it may stand in a result: without the folders of this machine."""
    path = Path(path)
    return path.as_posix() if not path.is_absolute() and ".." not in path.parts else path.name


@click.command(cls=ModuleCommand)
@click.argument("model")
@click.option(
    "--data",
    "root",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Data set with images/ and masks/, or with train/ and test/ that hold them.",
)
@click.option("--split", type=click.Choice(("train", "test")), default="test", show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="So many images, spread evenly over the data set.")
@click.option("--max-change", type=Number(min=0, min_open=True), default=Limits.max_change, show_default=True)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write everything.")
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    root: Path,
    split: str,
    limit: int | None,
    max_change: float,
    json_file: Path | None,
) -> None:
    """Compare the ways of decoding for MODEL, an .onnx file or a shipped model's name."""
    check_places(json_file)
    file = resolve(model)
    found = find_cases([root], split)
    count = min(limit or len(found), len(found))
    cases = [found[n * len(found) // count] for n in range(count)]
    head = _head(["python", "-m", "isicrt.benchmarks.decoding", *_arguments(ctx.params)])
    with open_runtime(file) as runtime:
        result = head | {
            "model": {
                "name": runtime.card.name,
                "file": file.name,
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                "runtime": runtime.name,
                "input": list(runtime.card.input_size),
            },
            "data": {
                "set": f"{root.resolve().name}/{split}" if (root / split).is_dir() else root.resolve().name,
                "images": len(cases),
                "of": len(found),
            },
            "resizer": "cykooz_resizer" if vars(geometry)["cykooz_resizer"] is not None else "pillow",
            **measure_decoding(runtime, cases, max_change=max_change),
        }
    try:
        write_whole(json_file, json.dumps(result, indent=1, allow_nan=False) + "\n")
    finally:  # nothing is lost where the file cannot be written
        click.echo(to_markdown(result))
    if why := problems(result):
        raise click.ClickException("the ways of decoding do not agree: " + "; ".join(why))


def _arguments(given: Mapping[str, Any]) -> list[str]:
    """The command's arguments as a result may show them."""
    found = [_named(given["model"]), "--data", _named(given["root"]), "--split", given["split"]]
    for option, value in (("--limit", given["limit"]), ("--json", given["json_file"])):
        found += [] if value is None else [option, _named(str(value))]
    return found + (["--max-change", str(given["max_change"])] if given["max_change"] != Limits.max_change else [])


def _head(words: Sequence[str]) -> dict[str, Any]:
    environment = read_environment().to_dict()
    environment["versions"] |= {d.name: d.version for d in distributions() if (d.name or "").startswith(_DECIDE_PIXELS)}
    return {
        "schema": SCHEMA,
        "command": recorded_command(words),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment,
    }


if __name__ == "__main__":
    command()
