"""The images that a benchmark runs on: the user's, or rendered ones where there are none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import click
import numpy as np
from PIL import Image

from isicrt.benchmarks.accuracy import find_truths
from isicrt.benchmarks.rendered import render
from isicrt.engine.errors import DataError, ImageError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.images import decode_image
from isicrt.engine.photographs import find_photographs

RENDERED_SIZE = (767, 1022)
RENDERED_QUALITY = 90
MOST_IN_TURN, MOST_BYTES_IN_TURN = 256, 64 << 20
"""Of the images that the network alone is called on, decoded: so many, and so much memory."""
RENDERED_NOTE = "rendered images: says nothing about patients"


@dataclass(frozen=True)
class Workload:
    """Images, with ground truth or without."""

    images: Path
    """Whatever `isicrt.engine.sources.find_jobs` takes: a folder, a pattern, a list."""
    truths: Mapping[PurePath, Path]
    """Ground truth by the mask's path in its folder; empty where no scores are wanted."""
    names: tuple[PurePath, ...]
    """Masks to be written, relative to their folder."""
    files: tuple[Path, ...]
    """The images, in the order of `names`."""
    rendered: bool

    def read_ahead(self) -> str:
        """Bring the images into the page cache, so that the first run is like the others.

        Returns:
            SHA-256 of their contents and of their names in the folder, wherever that is.
        """
        return _digest(zip(self.names, self.files, strict=True))

    def describe(self, sha256: str | None = None) -> WorkloadSummary:
        """What the report says of it; `sha256` is that of `read_ahead`."""
        return WorkloadSummary(
            source=f"{len(self.files)} rendered images, {RENDERED_SIZE[1]} x {RENDERED_SIZE[0]} px, "
            f"JPEG quality {RENDERED_QUALITY}"
            if self.rendered
            else str(self.images),
            images=len(self.files),
            megabytes=sum(f.stat().st_size for f in self.files if f.is_file()) / 1e6,
            rendered=self.rendered,
            without_truth=tuple(n.with_suffix("").as_posix() for n in self.names if n not in self.truths)
            if self.truths
            else (),
            sha256=sha256,
            truth_sha256=_digest(self.truths.items()) if self.truths else None,
        )


def _digest(named: Iterable[tuple[PurePath, Path]]) -> str:
    """SHA-256 of the contents of files and of their names, wherever they are."""
    found = hashlib.sha256()
    for name, file in sorted(named):
        content = b""
        if file.is_file():
            with suppress(OSError):  # whoever reads it next will say what is wrong with it
                content = file.read_bytes()
        found.update(f"{name.as_posix()}\n{hashlib.sha256(content).hexdigest()}\n".encode(errors="surrogateescape"))
    return found.hexdigest()


@dataclass(frozen=True)
class WorkloadSummary:
    """The images of a benchmark in a few figures."""

    source: str
    """The path as the user gave it, or how the images were made."""
    images: int
    megabytes: float
    """Of the files, 10^6 bytes."""
    rendered: bool
    without_truth: tuple[str, ...]
    """Images that were segmented and timed but not scored, where others were."""
    sha256: str | None = None
    """Of the contents and names of the images, see `Workload.read_ahead`; None in results that did not note it."""
    truth_sha256: str | None = None
    """The same of the ground truth; None where there was none, and in results that did not note it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        note = {"note": RENDERED_NOTE} if self.rendered else {}
        return asdict(self) | {"without_truth": list(self.without_truth)} | note

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WorkloadSummary:
        """The inverse of `to_dict`."""
        plain = {k: v for k, v in data.items() if k != "note"}
        return cls(**{**plain, "without_truth": tuple(data["without_truth"])})


def open_workload(images: Path, masks: Path | None, out: Path) -> Workload:
    """The user's images, and their truth if `masks` is given. What was found and not taken is said.

    Args:
        images: whatever `isicrt.engine.sources.find_jobs` takes.
        masks: folder of ground truth.
        out: a folder that masks could be written to; nothing is.

    Raises:
        DataError: no images, or ground truth among them, or no truth for any of them.
    """
    return _workload(images, masks, out, rendered=False)


def render_workload(folder: Path, count: int) -> Workload:
    """Draw `count` images and their truth into the empty `folder`."""
    images, masks = folder / "images", folder / "truth"
    images.mkdir()
    masks.mkdir()
    for n in range(count):
        image, mask = render(n, RENDERED_SIZE)
        Image.fromarray(image).save(images / f"rendered_{n:03d}.jpg", quality=RENDERED_QUALITY)
        Image.fromarray(mask).save(masks / f"rendered_{n:03d}_Segmentation.png")
    return _workload(images, masks, folder / "masks", rendered=True)


def _workload(images: Path, masks: Path | None, out: Path, *, rendered: bool) -> Workload:
    jobs = find_photographs(images, partial(click.echo, err=True), out=out)
    files = tuple(jobs.images)
    names = tuple(PurePath(jobs[n].mask.relative_to(out)) for n in range(len(files)))
    return Workload(
        images=images,
        truths=find_truths(names, masks) if masks is not None else {},
        names=names,
        files=files,
        rendered=rendered,
    )


def readable_sample(workload: Workload, size: tuple[int, int], count: int) -> list[Path]:
    """At most `count` files that can be decoded, spread evenly over the files in the order of their bytes: a folder of
    mixed sizes is sampled in their proportion.

    Args:
        workload: the images.
        size: (height, width) that they are decoded to.
        count: at least 1.

    Raises:
        DataError: not one of the images tried can be decoded.
    """
    by_size = sorted(workload.files, key=lambda f: f.stat().st_size if f.is_file() else 0)
    # The middles of `count` equal parts: the ends would count double.
    step = max(1.0, len(by_size) / count)
    picks = [by_size[int((n + 0.5) * step)] for n in range(min(count, len(by_size)))]
    good: list[Path] = []
    problem = ""
    for path in picks:
        try:
            decode_image(path, size)
        except ImageError as error:
            problem = str(error)
        else:
            good.append(path)
    if not good:
        raise DataError(f"{workload.images}: none of {len(picks)} images tried can be decoded. The last: {problem}")
    return good


def in_turn(files: Sequence[Path], size: tuple[int, int], count: int) -> UInt8Array:
    """`count` decoded images (all, where there are fewer) in an order of chance that is the same every time.

    Args:
        files: what `readable_sample` found.
        size: (height, width) that they are decoded to.
        count: see `how_many_in_turn`.

    Returns:
        uint8, images x height x width x 3.
    """
    order = np.random.default_rng(0).permutation(len(files))[:count]
    return np.stack([decode_image(files[n], size).pixels for n in order])


def how_many_in_turn(sizes: Iterable[tuple[int, int]]) -> int:
    """Images for `in_turn`, as many for every model of a benchmark; `sizes` are the (height, width) of their inputs."""
    largest = max(height * width * 3 for height, width in sizes)
    return max(1, min(MOST_IN_TURN, MOST_BYTES_IN_TURN // largest))


def batches_of(images: UInt8Array, size: int) -> list[UInt8Array]:
    """All `images` in batches of `size`, the last one filled up with the first images over again."""
    starts = range(0, len(images), size)
    whole = [images[n : n + size] for n in starts if n + size <= len(images)]
    filled = [images[np.arange(n, n + size) % len(images)] for n in starts if n + size > len(images)]
    return whole + filled
