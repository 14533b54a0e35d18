"""What a line of the journal says of an image, whoever wrote it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from isicrt.engine.errors import DataError, ImageError
from isicrt.engine.images import FileStamp, read_source
from isicrt.engine.journal import read_name
from isicrt.engine.sources import Job


def root_of(job: Job, out: Path) -> str:
    """The folder below which an image lies as its mask does below `out`."""
    folder = os.path.dirname(os.path.abspath(job.image))  # noqa: PTH100, PTH120 (links stay as they are)
    for _ in job.mask.parent.relative_to(out).parts:
        folder = os.path.dirname(folder)  # noqa: PTH120
    return folder


def source_of(entry: Mapping[str, Any], run: Mapping[str, Any]) -> str | None:
    """The absolute path of the image that a line is about.

    Args:
        run: the first line of its run.
    """
    with suppress(DataError):
        if "source" in entry:
            return read_name(entry["source"])
        return os.path.join(read_name(run.get("root")), read_name(entry.get("image")))  # noqa: PTH118
    return None


def native_size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) of image and mask; None where the line does not say."""
    height, width = entry.get("height"), entry.get("width")
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def stamp_fields(stamp: FileStamp) -> dict[str, int]:
    """What is noted of the image's file."""
    return {"image_size": stamp.size, "image_mtime_ns": stamp.mtime_ns, "image_crc": stamp.crc}


def stamp_of(entry: Mapping[str, Any]) -> FileStamp:
    """The inverse of `stamp_fields`, with 0 for what is no number."""
    values = (entry.get(name) for name in ("image_size", "image_mtime_ns", "image_crc"))
    return FileStamp(*(value if isinstance(value, int) else 0 for value in values))


def noted_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What a line notes of a mask, without whose it is and how its image ended; but for what is no JSON."""
    own = ("status", "image", "mask", "source", "reason", "kept")
    return {
        name: value
        for name, value in entry.items()
        if name not in own and not (isinstance(value, float) and not math.isfinite(value))
    }


def same_file(job: Job, entry: Mapping[str, Any], size: int) -> FileStamp | None:
    """What is to be noted of an image that was moved or touched and has the bytes that its mask was made from; None
    where it has others, or cannot be read.

    Args:
        job: of the image.
        entry: the line about its mask.
        size: of the image's file, in bytes.
    """
    if entry.get("image_size") == size:
        with suppress(ImageError):
            stamp = read_source(job.image).stamp
            return stamp if stamp.crc == entry.get("image_crc") else None
    return None
