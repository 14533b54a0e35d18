"""Which images calibrate an int8 model, and which others it is compared on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click
import numpy as np

from isicrt.engine.errors import DataError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.images import decode_image
from isicrt.engine.last_names import last_names
from isicrt.engine.photographs import find_photographs
from isicrt.export.parity import Sample, read_sample
from isicrt.trainer.dataset import LEFT_OUT
from isicrt.trainer.twins import isic_id


def read_samples(
    images: Sequence[Path], masks: Sequence[Path], size: tuple[int, int], *, calibrate: int, compare: int
) -> tuple[list[UInt8Array], list[Sample], str]:
    """Two disjoint sets of images, each spread evenly over what there is.

    Images that training leaves out, test images and such as show a lesion of one (`isicrt.trainer.dataset.LEFT_OUT`),
    are in neither: weights that are rounded with them would have seen something of the test set.

    Args:
        images: folders, patterns, files.
        masks: folders of ground truth, ``NAME_Segmentation.png`` or ``NAME.png``; may be none.
        size: (height, width) of the network's input.
        calibrate: so many for calibration.
        compare: at most so many of the others.

    Returns:
        The pixels to calibrate with, the samples to compare on, and what they are, for people.

    Raises:
        DataError: too few images, or ground truth among them, or one that cannot be read or does not fit its image.
    """
    found = find_photographs(images, partial(click.echo, err=True)).images
    files = [file for file in found if isic_id(file) not in LEFT_OUT]
    seen = len(found) - len(files)
    left_out = f" ({seen} test images of ISIC 2016 or twins of such left out)" if seen else ""
    if len(files) <= calibrate:
        raise DataError(
            f"{len(files)} images{left_out} are too few to calibrate on {calibrate} and to compare on others: name "
            "more images or calibrate on fewer"
        )
    first = set(np.linspace(0, len(files) - 1, calibrate).round().astype(int).tolist())
    rest = [file for index, file in enumerate(files) if index not in first]
    picks = np.unique(np.linspace(0, len(rest) - 1, compare).round().astype(int))
    samples = [read_sample(rest[pick], _find_truth(rest[pick], masks), size) for pick in picks]
    if masks and all(sample.truth is None for sample in samples):
        raise DataError(f"{', '.join(map(str, masks))}: no ground truth for any image, such as {samples[0].name}")
    calibration = [decode_image(files[index], size).pixels for index in sorted(first)]
    folders = [path.parent if path.name == "images" else path for path in images]
    names = ", ".join(last_names(folder) for folder in folders)
    what = f"{len(samples)} of {len(files)} images of {names}{left_out}, none of which calibrated"
    return calibration, samples, what


def _find_truth(image: Path, masks: Sequence[Path]) -> Path | None:
    for folder in masks:
        for name in (f"{image.stem}_Segmentation.png", f"{image.stem}.png"):
            if (folder / name).is_file():
                return folder / name
    return None
