"""The images that a model is measured, compared or calibrated on: photographs, and no ground truth with them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from isicrt.engine.clashes import ClashError
from isicrt.engine.errors import DataError
from isicrt.engine.jobs import Jobs
from isicrt.engine.sources import Images, find_jobs


def find_photographs(images: Images, say: Callable[[str], None], *, out: Path | None = None) -> Jobs:
    """Find images, say what was left out, and refuse ground truth: on black and white all models agree. (`isicrt
    segment` warns and goes on.)

    Args:
        images: see `find_jobs`.
        say: is given a line for each thing that is not taken.
        out: see `find_jobs`; None where no masks are written.

    Raises:
        DataError: see `find_jobs`; or images are ground truth by their folder or their names, or may be: ``a.png``
            beside ``a.jpg``.
    """
    try:
        jobs = find_jobs(images, out or Path(tempfile.gettempdir()) / "isicrt-no-masks")
    except ClashError as error:
        raise DataError(
            f"{' and '.join(map(str, error.images))}: such a name is there twice, as if one were the ground truth of "
            "the other: name those that are photographs, by a pattern such as 'data/**/*.jpg', or rename them"
        ) from None
    if jobs.truths:
        raise DataError(
            f"{jobs.truths} of the {len(jobs.images)} images have the name of a ground truth, such as "
            f"{jobs.first_truth}, and would be taken for photographs: name the folder of the photographs, or a pattern "
            "such as 'data/**/*.jpg'"
        )
    for line in (*jobs.left_out.lines(), *(f"{folder}: {why}" for folder, why in jobs.left_out.unread.items())):
        say(line)
    return jobs
