"""What `isicrt reproduce` would refuse after hours of training, it refuses before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isicrt.cli.result_files import check_results
from isicrt.engine.errors import DataError, SettingsError
from isicrt.engine.last_names import last_names

if TYPE_CHECKING:
    from isicrt.benchmarks.evaluation import Case
    from isicrt.benchmarks.report_table import ReportTable, TestSet
    from isicrt.trainer.report_runs import Run


def check_places(table_file: Path, page: Path, figures: Path | None, *, make: bool = True) -> None:
    """Whether results can be written there. With `make`, make their folders and try to write into them.

    Raises:
        SettingsError: nothing can be written there, or nothing that is read again.
        DataError: the page has no place for the table.
    """
    from isicrt.benchmarks.report_markdown import check_page

    folders = (table_file.parent, page.parent, figures)
    check_results({"--table": table_file, "--markdown": page}, folders, make=make, streams=False)
    check_page(page)


def check_training(
    data: Path,
    runs: Sequence[Run],
    table: ReportTable,
    table_file: Path,
    found: Mapping[Path, str],
    pretrained: str | None,
) -> None:
    """Whether these runs can be trained on this data, and their rows stand in this table.

    Args:
        data: with a training split.
        runs: to be trained, or finished.
        table: as it is now.
        table_file: that it was read from, if that is there.
        found: hashes of the data of the rows that are finished, by the folders of their runs.
        pretrained: what the encoders begin with.

    Raises:
        DataError: the training split cannot be used, or has too few pairs for a fold.
        SettingsError: the table, or a run that has begun, is of other data.
        ModelError: the file of the encoder's weights cannot be read.
        MissingDependencyError: the runs' curves could not be drawn.
    """
    from isicrt.benchmarks.curves import new_figure
    from isicrt.trainer.dataset import checked_pairs, split_fold
    from isicrt.trainer.start import encoder_weights

    waiting = [run for run in runs if not run.finished]
    if not waiting:
        return
    new_figure("")
    if not all(run.last_checkpoint is not None and run.last_checkpoint.is_file() for run in waiting):
        encoder_weights(pretrained)
    pairs, report = checked_pairs((data,), "train")
    for run in waiting:
        split_fold(pairs, run.recipe.folds, run.fold)
    begun = {**found, **{run.folder: run.data_sha256 for run in waiting if run.data_sha256 is not None}}
    for folder, sha256 in begun.items():
        if sha256 != report.sha256:
            raise SettingsError(
                f"{folder}: was trained on other data than {data}. Name another folder with --out, or delete this one"
            )
    others = [f"{row.name}, {row.layout}" for row in table.rows if row.data_sha256 != report.sha256]
    if others:
        raise SettingsError(
            f"{table_file}: holds rows that were trained on other data than {data} ({'; '.join(others)}). Name another "
            "file with --table, or another folder of runs and table with --out"
        )


def find_test_split(data: Path, label: str | None, table: ReportTable) -> tuple[TestSet, list[Case]]:
    """The test split, checked.

    Args:
        data: a data set.
        label: what the split is, for people; None for the table's, or its folder and the number of images.
        table: that the scores go into.

    Raises:
        DataError: there is none.
        SettingsError: the table has scores on another one.
    """
    from isicrt.benchmarks.evaluation import Case
    from isicrt.benchmarks.report_table import TestSet
    from isicrt.trainer.dataset import checked_pairs, find_folders

    if find_folders(data, "test") == find_folders(data, "train"):
        raise DataError(
            f"{data}: has no test split of its own; what was learned from cannot be scored. Score without it"
        )
    pairs, report = checked_pairs((data,), "test")
    kept = table.test_set
    if kept is not None and kept.sha256 != report.sha256:
        raise SettingsError(
            f"the table holds scores on {kept.label}, which are other images: name another with --table"
        )
    default = f"{last_names(data)} test, {len(pairs)} images"
    test_set = TestSet(label or (kept.label if kept else default), len(pairs), report.sha256)
    return test_set, [Case(pair.id, pair.image, pair.mask) for pair in pairs]
