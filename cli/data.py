"""`isicrt data`: download the ISIC 2016 data set, or check a copy of it."""

from __future__ import annotations

from pathlib import Path

import click

from isicrt.engine.errors import DataError

_SPLITS = ("train", "test")


@click.group("data")
def command() -> None:
    """Download the ISIC 2016 data set, or check a copy of it."""


@command.command("isic2016")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for the data set.")
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
        click.echo(f"{folder}: {archive.files} files")
    click.echo(f"Next: isicrt data check {out}")


@command.command("check")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--split", type=click.Choice([*_SPLITS, "all"]), default="all", show_default=True, help="What to check.")
@click.pass_context
def check(ctx: click.Context, folder: Path, split: str) -> None:
    """Pair FOLDER's images with their masks, open every file, and list what is wrong.

    Exit code 1 if anything is.
    """
    from isicrt.trainer.dataset import find_folders, survey

    failed = False
    seen: set[tuple[Path, Path]] = set()
    for name in _SPLITS if split == "all" else (split,):
        try:
            folders = find_folders(folder, name)
        except DataError as error:
            click.echo(f"{name}: {error}")
            failed = True
            continue
        if folders in seen:  # FOLDER is images/ and masks/: one set, whatever it is used for
            continue
        seen.add(folders)
        _, report = survey([folder], name)
        click.echo(f"{name}: {report.pairs} pairs, {report.grey_masks} grey masks, SHA-256 {report.sha256}")
        for problem in report.problems:
            click.echo(f"  {problem}")
        if report.problems:
            click.echo(f"{name}: {len(report.problems)} problems")
            failed = True
    if failed:
        ctx.exit(1)
