"""The report's rows as runs: their recipes, their folders, and how long they still take."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import yaml

from isicrt.engine.errors import SettingsError, TrainingError
from isicrt.trainer import report_runs
from isicrt.trainer.report_runs import ENCODER_RATES, ROWS, Run, count_parameters, plan_folds, plan_row, plan_search


def begin(
    run: Run, seconds: dict[str, float], *, finished: bool = False, jaccard: float = 0.5, data: str | None = None
) -> None:
    """A folder with one epoch of each stage that has a time."""
    run.folder.mkdir(parents=True)
    config = {"recipe": run.recipe.to_dict(), "fold": run.fold, "seed": run.seed, "data_sha256": data}
    config["recipe"]["stages"] = [vars(stage) for stage in run.recipe.stages]
    (run.folder / "config.yaml").write_text(yaml.safe_dump(config))
    (run.folder / "last.pt").touch()
    rows = "".join(f"{stage},{s},{jaccard}\n" for stage, s in seconds.items())
    (run.folder / "metrics.csv").write_text(f"stage,seconds,val_jaccard\n{rows}")
    for stage in run.recipe.stages if finished else ():
        (run.folder / f"{stage.name}.pt").touch()


@pytest.mark.parametrize("layout", ["light", "report"])
@pytest.mark.parametrize("row", ROWS)
def test_each_row_has_the_reports_recipe(row: str, layout: str) -> None:
    recipe = plan_row(Path("runs"), row, layout).recipe
    assert (recipe.layout, recipe.input_size, dict(recipe.loss)) == (layout, 128, {"bce": 1})
    assert row.removesuffix("-augmented") == recipe.architecture
    assert recipe.augmented_copies == row.endswith("-augmented")
    assert [(s.name, s.epochs, s.decoder_lr, s.encoder_lr) for s in recipe.stages] == [
        ("frozen", 100, 1e-3, 0),
        ("tuned", 100, 1e-4, 1e-6),
    ]


def test_epochs_and_rate_are_taken() -> None:
    run = plan_row(Path("runs"), "unet", "light", epochs=6, encoder_lr=1e-4, seed=3)
    assert [(s.epochs, s.encoder_lr) for s in run.recipe.stages] == [(3, 0), (3, 1e-4)]
    assert (run.folder, run.seed, run.epochs_done, run.finished) == (Path("runs/unet-light"), 3, 0, False)


def test_search_and_folds_differ_in_one_setting() -> None:
    search = plan_search(Path("runs"), "unet", "light", epochs=4)
    assert [run.recipe.stages[1].encoder_lr for run in search] == list(ENCODER_RATES)
    folds = plan_folds(Path("runs"), "unet", "light", epochs=4, folds=3)
    assert [(run.fold, run.recipe.folds) for run in folds] == [(0, 3), (1, 3), (2, 3)]
    assert len({run.folder for run in [*search, *folds]}) == 6
    assert len(plan_folds(Path("runs"), "unet", "light", epochs=4)) == 5


def test_a_run_goes_on_as_it_began(tmp_path: Path) -> None:
    begin(plan_row(tmp_path, "unet", "light", epochs=6, encoder_lr=1e-4, seed=3), {"frozen": 1})
    again = plan_row(tmp_path, "unet", "light", encoder_lr=1e-5)
    assert (again.recipe.epochs, again.recipe.stages[1].encoder_lr, again.seed) == (6, 1e-4, 3)
    assert (again.epochs_done, again.finished) == (1, False)


def test_a_run_that_was_stopped_while_its_copies_were_made_goes_on(tmp_path: Path) -> None:
    run = plan_row(tmp_path, "segnet-attention-atrous-augmented", "light", epochs=6)
    assert run.last_checkpoint is None
    begin(run, {}, data="d" * 64)
    (run.folder / "last.pt").unlink()
    (run.folder / "augmented").mkdir()
    again = plan_row(tmp_path, "segnet-attention-atrous-augmented", "light")
    assert (again.recipe.epochs, again.data_sha256) == (6, "d" * 64)
    assert again.last_checkpoint == run.folder / "last.pt"  # `train` goes on from what there is


@pytest.mark.parametrize(("asked", "message"), [({"epochs": 8}, "epochs 6, not 8"), ({"seed": 0}, "seed 3, not 0")])
def test_other_settings_than_it_began_with_are_refused(tmp_path: Path, asked: dict[str, int], message: str) -> None:
    begin(plan_row(tmp_path, "unet", "light", epochs=6, seed=3), {"frozen": 1})
    with pytest.raises(SettingsError, match=f"unet-light: began with {message}"):
        plan_row(tmp_path, "unet", "light", **asked)


def test_a_run_without_its_last_row_is_not_finished(tmp_path: Path) -> None:
    """Its last save failed after ``tuned.pt``. Whoever deleted ``last.pt`` of a finished run keeps a finished run."""
    asked = plan_row(tmp_path, "unet", "light", epochs=2)
    begin(asked, {"frozen": 1}, finished=True)
    assert not plan_row(tmp_path, "unet", "light").finished
    (asked.folder / "metrics.csv").write_text("stage,seconds,val_jaccard\nfrozen,1,0.5\ntuned,1,0.5\n")
    assert plan_row(tmp_path, "unet", "light").finished
    (asked.folder / "last.pt").unlink()
    assert plan_row(tmp_path, "unet", "light").finished


def test_a_spoilt_folder_is_named(tmp_path: Path) -> None:
    run = plan_row(tmp_path, "unet", "light")
    begin(run, {})
    (run.folder / "config.yaml").write_text("seed: 1")
    with pytest.raises(SettingsError, match=r"config\.yaml: cannot be read.*Delete"):
        plan_row(tmp_path, "unet", "light")


def test_the_best_rate_counts_when_its_search_is_finished(tmp_path: Path) -> None:
    assert report_runs.found_rate(tmp_path, "unet", "light") is None
    for run, jaccard in zip(plan_search(tmp_path, "unet", "light", epochs=2), (0.7, 0.8, 0.6), strict=True):
        assert report_runs.found_rate(tmp_path, "unet", "light") is None
        begin(run, {"frozen": 1, "tuned": 2}, finished=True, jaccard=jaccard)
    rows = (run.folder / "metrics.csv").read_text()
    (run.folder / "metrics.csv").write_text("".join(rows.splitlines(keepends=True)[:-1]))
    assert report_runs.found_rate(tmp_path, "unet", "light") is None
    (run.folder / "metrics.csv").write_text(rows)
    # A row that was not searched takes the rate of the one that was; other widths do not.
    assert report_runs.found_rate(tmp_path, "unet", "light") == 1e-5
    assert report_runs.found_rate(tmp_path, "segnet-attention", "light") == 1e-5
    assert report_runs.found_rate(tmp_path, "unet", "report") is None


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [
        ({}, {}, (0, False)),
        ({"frozen": 2.0}, {}, (4, False)),
        ({"frozen": 2.0, "tuned": 5.0}, {}, (1 * 2 + 3 * 5, True)),
        ({"frozen": 2.0}, {"tuned": 7.0}, (2 * 2 + 3 * 7, True)),
        ({}, {"frozen": 1.0, "tuned": 7.0}, (3 * 1 + 3 * 7, True)),
    ],
)
def test_time_left(
    tmp_path: Path, own: dict[str, float], others: dict[str, float], expected: tuple[float, bool]
) -> None:
    run = plan_row(tmp_path, "unet", "light", epochs=6)
    search = plan_search(tmp_path, "unet", "light", epochs=6)
    if own:
        begin(run, own)
    if others:
        begin(search[0], others)
    seconds, known = report_runs.seconds_left(run, search)
    assert (seconds, known) == expected


def test_twice_the_images_take_twice_the_time(tmp_path: Path) -> None:
    plain = plan_row(tmp_path, "segnet-attention-atrous", "light", epochs=2)
    begin(plain, {"frozen": 1, "tuned": 2})
    augmented = plan_row(tmp_path, "segnet-attention-atrous-augmented", "light", epochs=2)
    assert report_runs.seconds_left(augmented, [plain]) == (2 * 1 + 2 * 2, True)
    other = plan_row(tmp_path, "unet", "light", epochs=2)
    assert report_runs.seconds_left(other, [plain]) == (0, False)


def test_a_note_of_the_machine_that_cannot_be_written_is_of_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue goes on with the next run after a `TrainingError`. Half a note would give no row of the table."""
    run = plan_row(tmp_path, "unet", "light", epochs=2)
    begin(run, {"frozen": 1})
    report_runs.note_machine(run, {"cpu": "Abacus"}, training=9, validation=3)
    report_runs.note_memory(run, 5)
    written = (run.folder / "run.json").read_text()
    assert '"gpu_memory_peak_bytes": 5' in written

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(TrainingError, match=r"unet-light: run\.json could not be saved: .*No space left"):
        report_runs.note_machine(run, {"cpu": "another"}, training=9, validation=3)
    with pytest.raises(TrainingError, match=r"unet-light: run\.json could not be saved"):
        report_runs.note_memory(run, 6)
    assert (run.folder / "run.json").read_text() == written


@pytest.mark.parametrize(
    ("row", "layout", "millions"), [("unet", "light", 1.99), ("segnet-attention-atrous", "report", 140.0)]
)
def test_parameters_are_counted_without_their_memory(row: str, layout: str, millions: float) -> None:
    assert count_parameters(plan_row(Path("runs"), row, layout).recipe) / 1e6 == pytest.approx(millions, abs=0.05)
