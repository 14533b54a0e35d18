"""The image files that the GPU's figures are measured on: rendered JPEGs of three sizes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from PIL import Image

from isicrt.benchmarks.rendered import render
from isicrt.engine.pipeline import available_cores

SIZES = {"512": (512, 512), "1022x767": (767, 1022), "12MP": (3000, 4000)}
"""(height, width) in pixels."""
DISTINCT = {"512": 64, "1022x767": 48, "12MP": 8}
"""Images that are rendered; a run takes them over and over, which is what "warm" means."""


def render_files(folder: Path, name: str) -> list[Path]:
    """JPEGs of quality 90 of one of `SIZES`."""
    height, width = SIZES[name]

    def make(n: int) -> Path:
        # A large photograph is a small one enlarged: rendering 12 megapixels takes seconds.
        image = Image.fromarray(render(n, (min(height, 767), min(width, 1022)))[0]).resize((width, height))
        file = folder / f"{name}-{n:03d}.jpg"
        image.save(file, quality=90)
        return file

    with ThreadPoolExecutor(available_cores()) as pool:
        return list(pool.map(make, range(DISTINCT[name])))


def forget(files: Sequence[Path]) -> None:
    """Ask the system to drop the files from its page cache; Linux does."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            with suppress(AttributeError, OSError):
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
