"""The images that a model is measured, compared or calibrated on: photographs, and no ground truth with them."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from isicrt.engine.clashes import ClashError
from isicrt.engine.errors import DataError
from isicrt.engine.images import read_image
from isicrt.engine.jobs import Jobs
from isicrt.engine.sources import LOSSLESS, TRUTH_ENDINGS, Images, find_jobs


def find_photographs(images: Images, say: Callable[[str], None], *, out: Path | None = None) -> Jobs:
    """Find images, say what was left out, and refuse ground truth: on black and white all models agree. (`isicrt
    segment` warns and goes on.)

    Args:
        images: see `find_jobs`.
        say: is given a line for each thing that is not taken.
        out: see `find_jobs`; None where no masks are written.

    Raises:
        DataError: see `find_jobs`; or images are ground truth, or may be: ``a.png`` beside ``a.jpg``.
    """
    try:
        jobs = find_jobs(images, out or Path(tempfile.gettempdir()) / "isicrt-no-masks")
    except ClashError as error:
        raise DataError(f"{' and '.join(map(str, error.images))}: {_clash(error.images)}") from None
    if jobs.truths and (truths := _find_truths(jobs)):
        raise DataError(
            f"{len(truths)} of the {len(jobs.images)} images have the name of a ground truth, such as {truths[0]}, and "
            "would be taken for photographs: name the folder of the photographs, or a pattern such as 'data/**/*.jpg', "
            "or rename what is a photograph"
        )
    for line in (*jobs.left_out.lines(), *(f"{folder}: {why}" for folder, why in jobs.left_out.unread.items())):
        say(line)
    return jobs


def _clash(images: Sequence[Path]) -> str:
    """Why these are refused, and what to do. `isicrt segment` has options for it, the commands that ask here have not.
    Some write masks, and all tell images by the names of their masks."""
    if len(images) == 1:
        return f"its mask, {images[0].stem}.png, would have the name of a folder that holds images: rename one of them"
    if any(image.suffix[1:].lower() in LOSSLESS for image in images):
        return (
            "such a name is there twice, as if one were the ground truth of the other: name those that are "
            "photographs, by a pattern such as 'data/**/*.jpg', or rename them"
        )
    return "their masks would have one name: rename one of them, or name only one"


def _find_truths(jobs: Jobs) -> list[Path]:
    """Those that are ground truth: in ``masks`` beside ``images``, superpixels, or with the ending of one and either
    the rest of another image's name or no colour. Three of each ending are looked at: photographs may be called
    ``a_lesion.png`` too, and be many."""
    found = [(Path(os.path.normpath(Path(folder.images).absolute())), folder.numbers) for folder in jobs.folders()]
    folders = {folder for folder, _ in found}
    stems = {image.stem.lower() for image in jobs.images}
    truths: list[Path] = []
    unsure: defaultdict[str, list[Path]] = defaultdict(list)
    for folder, numbers in found:
        beside = folder.name == "masks" and folder.with_name("images") in folders
        for image in (jobs[n].image for n in numbers):
            stem = image.stem.lower()
            ending = next(filter(stem.endswith, TRUTH_ENDINGS), "") if image.suffix[1:].lower() in LOSSLESS else ""
            if beside or ending == "_superpixels" or (ending and stem.removesuffix(ending) in stems):
                truths.append(image)
            elif ending:
                unsure[ending].append(image)
    for group in unsure.values():
        some = {0, len(group) // 2, len(group) - 1}
        truths += group if any(_is_grey_or_of_two_colours(group[n]) for n in some) else ()
    return truths


def _is_grey_or_of_two_colours(image: Path) -> bool:
    """As masks are, soft ones too. One that cannot be read is not."""
    try:
        pixels = read_image(image).reshape(-1, 3)
    except DataError:
        return False
    if (pixels == pixels[:, :1]).all():
        return True
    others = pixels[(pixels != pixels[0]).any(axis=1)]
    return bool((others == others[:1]).all())
