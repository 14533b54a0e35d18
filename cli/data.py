"""`isicrt data`: download ISIC 2016, check a data set, or look for images of one lesion."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isicrt._command import NamedPath
from isicrt.cli.plain_text import printable, shell_word
from isicrt.cli.result_files import check_results, write_result
from isicrt.engine.errors import DataError, SettingsError

if TYPE_CHECKING:
    from isicrt.trainer.duplicates import Twin

_SPLITS = ("train", "test")


@click.group("data")
def command() -> None:
    """Download ISIC 2016; check a data set, ISIC's or your own; look for one lesion in two images."""


@command.command("isic2016")
@click.option("--out", required=True, type=NamedPath(file_okay=False, path_type=Path), help="Folder for the data set.")
@click.option("--keep-zips", is_flag=True, help="Leave the four zip files beside the folders.")
def isic2016(out: Path, keep_zips: bool) -> None:
    """Download the four official archives of ISIC 2016 Task 1 and unpack them.

    About 1 GB to fetch and 2 GB of room while it runs. Interrupt it when you like: the same command continues.
    Archives that you put into the folder yourself are used instead of the network.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from isicrt.trainer import download
    from isicrt.trainer.data_notes import count_of

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        rows: dict[str, TaskID] = {}

        def show(folder: str, done: int, total: int | None) -> None:
            if folder not in rows:  # its bar starts at what an earlier run left, which counts for no speed
                rows[folder] = progress.add_task(folder.removeprefix("ISBI2016_ISIC_"), total=total, completed=done)
            progress.update(rows[folder], total=total, completed=done)

        folders = download.install_archives(out, download.ISIC2016, keep_zips=keep_zips, on_progress=show)
    for archive, folder in zip(download.ISIC2016, folders, strict=True):
        click.echo(f"{folder}: {count_of(archive.files, 'file')}")
    click.echo(f"Next: isicrt data check {shell_word(out)}")


@command.command("check")
@click.argument("folder", type=NamedPath(exists=True, file_okay=False, path_type=Path))
@click.option("--split", type=click.Choice([*_SPLITS, "all"]), default="all", show_default=True, help="What to check.")
@click.pass_context
def check(ctx: click.Context, folder: Path, split: str) -> None:
    """Pair FOLDER's images with their masks, open every file, and list what is wrong.

    Exit code 1 if anything is. Copies and groups that are in both train/ and test/ are named too.
    """
    from isicrt.trainer.data_notes import count_of, notes_on
    from isicrt.trainer.dataset import NoSuchHalfError, find_folders, survey
    from isicrt.trainer.halves import Half, notes_on_halves

    failed = False
    seen: set[tuple[Path, Path]] = set()
    halves: list[Half] = []
    for name in _SPLITS if split == "all" else (split,):
        try:
            folders = find_folders(folder, name)
        except DataError as error:
            _say(f"{name}: {error}")
            failed |= split != "all" or not isinstance(error, NoSuchHalfError)
            continue
        if folders in seen:  # FOLDER is images/ and masks/: one set, whatever it is used for
            continue
        seen.add(folders)
        plain = folders[0].parent == folder and folders[0].name == "images"
        pairs, report = survey([folder], name)
        if plain and split == "all" and not pairs and report.left_out:  # they are test images
            _, report = survey([folder], "test")
        halves.append((pairs, report))
        label = str(folder) if plain else name
        found = f"{count_of(report.pairs, 'pair')}, {count_of(report.grey_masks, 'grey mask')}"
        _say(f"{label}: {found}, SHA-256 {report.sha256}")
        for note in notes_on(report):
            _say(f"  {note}")
        for problem in report.problems:
            _say(f"  {problem}")
        if report.problems:
            _say(f"{label}: {count_of(len(report.problems), 'problem')}")
            failed = True
    if len(halves) > 1:
        for note in notes_on_halves(*halves):
            _say(f"train and test: {note}")
    if failed:
        ctx.exit(1)


def _say(line: str) -> None:
    """Print a line that names files, whose names may be no text."""
    click.echo(printable(line))


_FOLDER = NamedPath(exists=True, file_okay=False, path_type=Path)
_FILE = NamedPath(dir_okay=False, path_type=Path)


@command.command("audit")
@click.option("--data", "folders", required=True, multiple=True, type=_FOLDER, help="Training images. Repeatable.")
@click.option("--against", type=_FOLDER, help="Test images: look for pairs between --data and these.")
@click.option("--json", "json_file", type=_FILE, help="Write the pairs there.")
@click.option("--sheet", type=_FILE, help="Draw the pairs side by side there (.jpg or .png), the least sure first.")
@click.option(
    "--candidates",
    type=click.IntRange(min=1),
    default=40,
    show_default=True,
    help="Images that each image is registered with, the most alike ones. More find more and take longer.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Images at a time. [default: one a core]")
@click.pass_context
def audit(
    ctx: click.Context,
    folders: tuple[Path, ...],
    against: Path | None,
    json_file: Path | None,
    sheet: Path | None,
    candidates: int,
    threads: int | None,
) -> None:
    """Find images that show one lesion, by registering them with each other.

    Without --against: among the training images, where a fold of cross-validation must not part them. With it: between
    training and test images; exit code 1 if training would not leave one of those out.

    A folder is a data set in a layout of `isicrt train`, or holds images.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from isicrt.trainer.data_notes import count_of
    from isicrt.trainer.duplicates import find_twins

    check_results({"--json": json_file}, pictures={"--sheet": sheet})
    if sheet and sheet.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        raise SettingsError(f"{sheet}: a sheet is a .jpg or a .png")
    images = [path for folder in folders for path in _images(folder, "train")]
    others = _images(against, "test") if against else []

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        rows: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in rows:
                rows[stage] = progress.add_task(stage, total=total)
            progress.update(rows[stage], completed=done)

        twins = find_twins(images, others, candidates=candidates, threads=threads, on_progress=show)

    groups = _groups(folders, images)
    named = [(twin, *_verdict(twin, against is not None, groups)) for twin in twins]
    known = sum(good for _, _, good in named)
    drawn = "not written, there is no pair to draw"
    try:
        if json_file:
            found = {"images": len(images), "against": len(others), "pairs": [_record(*entry) for entry in named]}
            write_result(json_file, json.dumps(found, indent=1) + "\n", quiet=True)
        if sheet and twins:
            drawn = _write_sheet(twins[::-1], sheet)
    finally:  # after the files, which are not to be lost where printing fails
        for twin, verdict, _ in named:
            _say(f"{twin.a} {twin.b}: {twin.inliers} places, correlation {twin.correlation:.2f}, {verdict}")
        side = f" against {len(others)}" if against else ""
        unknown = len(twins) - known
        pairs = count_of(len(twins), "pair")
        click.echo(f"{count_of(len(images), 'image')}{side}: {pairs} of one lesion, {unknown} of them not known")
    if sheet:
        click.echo(f"{sheet}: {drawn}")
    if against and known < len(twins):
        click.echo("Take one image of each pair marked NOT left out away from its folder, with its mask.")
        ctx.exit(1)


def _images(folder: Path, split: str) -> list[Path]:
    """Images of a data set, or of a folder that only holds images."""
    from isicrt.trainer.dataset import find_folders, is_image_name

    def listed(place: Path) -> list[Path]:
        return sorted(path for path in place.iterdir() if is_image_name(path.name))

    try:
        return listed(find_folders(folder, split)[0])
    except DataError:
        if images := listed(folder):
            return images
        raise


def _groups(folders: Sequence[Path], images: Sequence[Path]) -> dict[str, str]:
    """What the folders' own files keep together."""
    from isicrt.trainer.dataset import find_folders
    from isicrt.trainer.groups import join_groups, read_groups
    from isicrt.trainer.twins import image_id

    ids = {image_id(path.stem) for path in images}
    found: list[tuple[str, str]] = []
    for folder in folders:
        places = [folder]
        with suppress(DataError):
            places.append(find_folders(folder, "train")[0].parent)
        found += read_groups(places, ids).group.items()
    return join_groups(found)


def _verdict(twin: Twin, with_test: bool, groups: Mapping[str, str]) -> tuple[str, bool]:
    """What training does about the pair, and whether that is right."""
    from isicrt.trainer.dataset import LEFT_OUT
    from isicrt.trainer.twins import group_of, image_id

    a, b = (image_id(path.stem) for path in (twin.a, twin.b))
    if a in LEFT_OUT or (not with_test and b in LEFT_OUT):
        return "left out of training", True
    if with_test:
        return "NOT left out of training", False
    one = groups.get(a, group_of(a)) == groups.get(b, group_of(b))
    return ("kept in one fold", True) if one else ("NOT kept in one fold", False)


def _record(twin: Twin, verdict: str, known: bool) -> dict[str, Any]:
    import cmath
    import math

    scale = twin.registration.scale
    return {
        "a": str(twin.a),
        "b": str(twin.b),
        "inliers": twin.inliers,
        "correlation": round(twin.correlation, 4),
        "magnification": round(abs(scale), 4),
        "rotation_degrees": round(math.degrees(cmath.phase(scale)), 2),
        "verdict": verdict,
        "known": known,
    }


def _write_sheet(twins: Sequence[Twin], file: Path) -> str:
    """Draw the pairs. Returns how many there are, in words."""
    from PIL import Image

    from isicrt.trainer.data_notes import count_of
    from isicrt.trainer.twin_sheet import MAX_PAIRS, draw_sheet

    drawn = io.BytesIO()
    kind = "PNG" if file.suffix.lower() == ".png" else "JPEG"
    Image.fromarray(draw_sheet(twins)).save(drawn, kind, quality=90)
    write_result(file, drawn.getvalue(), quiet=True)
    more = f", of {len(twins)}" if len(twins) > MAX_PAIRS else ""
    return f"{count_of(min(len(twins), MAX_PAIRS), 'pair')}{more}"
