"""`isicrt reproduce` as a user calls it, on rendered images and with few epochs."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from isicrt.cli.main import group
from isicrt.cli.plain_text import shell_word
from isicrt.cli.reproduce import _collect
from isicrt.engine.errors import DataError, IsicrtError, SettingsError, TrainingError
from isicrt.trainer import checkpoint, loop
from isicrt.trainer.loop import Listener, RunSettings
from isicrt.trainer.report_runs import plan_row
from tests.conftest import make_splits

MARKERS = "<!-- report-table:begin -->\n<!-- report-table:end -->\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with a train and a test split."""
    return make_splits(tmp_path_factory.mktemp("isic"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Not in the repository; torch's threads as they were."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def reproduce(data: Path, out: Path, *options: object) -> Result:
    base = ["reproduce", "--data", data, "--out", out, "--encoder-weights", "none", "--threads", 1]
    return CliRunner().invoke(group, [str(x) for x in (*base, *options)])


def read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report-table.json").read_text())
    return found


@pytest.fixture(scope="module")
def out(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One row, trained and not scored; its table is in the folder."""
    folder = tmp_path_factory.mktemp("runs") / "the report"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        result = reproduce(data, folder, "--rows", "unet", "--epochs", 2, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "unet  to do, 2 epochs" in result.output
    assert "unet: epoch 2 of 2, tuned, loss" in result.output
    assert "images/s" in result.output
    assert f"Next: isicrt reproduce --data {data} --out {shell_word(folder)} --rows none --score" in result.output
    return folder


def test_a_row_is_trained_and_the_others_say_why_not(out: Path) -> None:
    assert {p.name for p in (out / "unet-light").iterdir()} >= {"frozen.pt", "tuned.pt", "metrics.csv", "run.json"}
    assert (out / "rows.png").is_file()
    table = read(out)
    done = [row for row in table["rows"] if row["status"] == "done"]
    missing = [row for row in table["rows"] if row["status"] == "not run"]
    assert [(row["name"], row["layout"], row["parameters"]) for row in done] == [("unet", "light", 1_987_113)]
    assert [(cell["stage"], cell["epochs"], cell["scores"]) for cell in done[0]["cells"]] == [
        ("frozen", 1, {}),
        ("tuned", 1, {}),
    ]
    assert done[0]["training_images"] + done[0]["validation_images"] == 12
    assert len(missing) == 7
    assert {row["reason"] for row in missing if row["layout"] == "light"} == {"not trained yet"}
    assert table["test_set"] is None


def test_finished_rows_are_left_alone_and_scored_once(data: Path, out: Path, tmp_path: Path) -> None:
    page, table_file, figures = tmp_path / "results.md", tmp_path / "t.json", tmp_path / "figures"
    page.write_text(f"# Results\n\n{MARKERS}\nmore\n")
    weights = (out / "unet-light" / "tuned.pt").read_bytes()
    options = (
        "--table",
        table_file,
        "--markdown",
        page,
        "--rows",
        "unet",
        "--score",
        "--label",
        "three rendered images",
    )
    result = reproduce(data, out, *options, "--figures", figures)
    assert result.exit_code == 0, result.output
    assert "unet  done, 2 epochs" in result.output
    assert "unet, light: scoring 3 images of three rendered images" in result.output
    assert (out / "unet-light" / "tuned.pt").read_bytes() == weights
    assert {p.name for p in (figures / "unet-light").iterdir()} == {"best.png", "median.png", "worst.png"}
    found = json.loads(table_file.read_text())
    for cell in found["rows"][0]["cells"]:
        assert cell["scores"].keys() == {"official", "report"}
        for protocol, summary in cell["scores"].items():
            assert (summary["images"], summary["unscored"]) == (3, 0)
            assert 0 <= summary["jaccard_low"] <= summary["jaccard"] <= summary["jaccard_high"] <= 1
            assert ("sensitivity" in summary) is (protocol == "official")
    text = page.read_text()
    assert text.startswith("# Results\n")
    assert text.endswith("more\n")
    assert "Scored on: three rendered images" in text

    # A figure that scoring would not give shows that nothing is scored again.
    found["rows"][0]["cells"][1]["scores"]["report"]["jaccard"] = 0.123
    table_file.write_text(json.dumps(found))
    again = reproduce(data, out, "--table", table_file, "--markdown", page, "--rows", "none", "--score")
    assert again.exit_code == 0, again.output
    assert "unet, light: scored before" in again.output
    assert "scoring" not in again.output
    assert json.loads(table_file.read_text())["rows"][0]["cells"][1]["scores"]["report"]["jaccard"] == 0.123
    assert "Scored on: three rendered images" in page.read_text()


def test_scores_on_other_images_are_refused(data: Path, out: Path, tmp_path: Path) -> None:
    found = read(out)
    found["test_set"] = {"label": "another set", "images": 1, "sha256": "0" * 64}
    (tmp_path / "t.json").write_text(json.dumps(found))
    result = reproduce(data, out, "--rows", "none", "--score", "--table", tmp_path / "t.json")
    assert result.exit_code == 2
    assert "scores on another set" in result.output


def test_table_and_page_belong_to_the_runs(data: Path, out: Path, tmp_path: Path) -> None:
    """Where the repository's own are, they are left alone."""
    kept = {
        tmp_path / "benchmarks" / "results" / "report-table.json": "the repository's",
        tmp_path / "docs" / "results.md": f"# Results\n\n{MARKERS}",
    }
    for path, text in kept.items():
        path.parent.mkdir(parents=True)
        path.write_text(text)
    result = reproduce(data, out, "--rows", "none")
    assert result.exit_code == 0, result.output
    assert f"Wrote {out / 'report-table.json'}" in result.output
    assert "| `unet` | light |" in (out / "results.md").read_text()
    assert {path: path.read_text() for path in kept} == kept


class NotToBeTrained(Exception):
    """Training has begun although its end is sure to be refused."""


def _table_of_other_data(out: Path, tmp_path: Path) -> None:
    found = read(out)
    found["rows"][0]["data_sha256"] = "0" * 64
    (tmp_path / "t.json").write_text(json.dumps(found))


def _run_of_other_data(out: Path, tmp_path: Path, name: str = "unet-light") -> None:
    shutil.copytree(out / "unet-light", tmp_path / "runs" / name)
    config = tmp_path / "runs" / name / "config.yaml"
    config.write_text(re.sub(r"data_sha256: \w+", "data_sha256: '0'", config.read_text()))


def _begun_run_of_other_data(out: Path, tmp_path: Path) -> None:
    _run_of_other_data(out, tmp_path, "segnet-attention-light")
    (tmp_path / "runs" / "segnet-attention-light" / "tuned.pt").unlink()


@pytest.mark.parametrize(
    ("make", "options", "code", "message"),
    [
        pytest.param(
            _table_of_other_data,
            ["--table", "t.json"],
            2,
            r"t\.json: holds rows that were trained on other data than \S+ \(unet, light\)\. Name .* --table",
            id="table_of_other_data",
        ),
        pytest.param(
            _run_of_other_data, [], 2, "unet-light: was trained on other data than .* --out", id="finished_run"
        ),
        pytest.param(
            _begun_run_of_other_data,
            [],
            2,
            "segnet-attention-light: was trained on other data than .* --out",
            id="begun_run",
        ),
        pytest.param(
            lambda out, tmp_path: (tmp_path / "page.md").write_text("# no markers"),
            ["--markdown", "page.md"],
            1,
            r"page\.md: needs one line",
            id="page_without_markers",
        ),
        pytest.param(
            lambda out, tmp_path: (tmp_path / "t.json").write_text("[]"),
            ["--table", "t.json"],
            1,
            r"t\.json: not a table",
            id="no_table",
        ),
        pytest.param(
            lambda out, tmp_path: (tmp_path / "file").touch(),
            ["--markdown", "file/page.md"],
            2,
            "file: cannot be written",
            id="place",
        ),
        pytest.param(
            lambda out, tmp_path: None,
            ["--cross-validate", "unet", "--folds", "400"],
            1,
            "12 pairs are too few for fold",
            id="folds",
        ),
    ],
)
def test_what_would_be_refused_at_the_end_is_refused_before_training(
    data: Path,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path, Path], object],
    options: list[str],
    code: int,
    message: str,
) -> None:
    def train(*_: object) -> Path:
        raise NotToBeTrained

    monkeypatch.setattr(loop, "train", train)
    make(out, tmp_path)
    result = reproduce(data, tmp_path / "runs", "--rows", "segnet-attention", "--device", "cpu", *options)
    assert not isinstance(result.exception, NotToBeTrained)
    assert result.exit_code == code, result.output
    assert re.search(message, " ".join(result.output.split()))


def test_the_next_command_names_what_was_named(data: Path, out: Path, tmp_path: Path) -> None:
    places = ("--table", tmp_path / "t.json", "--markdown", tmp_path / "page.md")
    for place, file in (("t.json", "kept.json"), ("page.md", "kept.md")):
        (tmp_path / place).symlink_to(file)  # to a file that is to be made
    result = reproduce(data, out, "--rows", "none", *places)
    assert result.exit_code == 0, result.output
    named = " ".join(map(str, places))
    assert f"isicrt reproduce --data {data} --out {shell_word(out)} {named} --rows none --score" in result.output
    assert "| `unet` | light |" in (tmp_path / "kept.md").read_text()
    assert json.loads((tmp_path / "kept.json").read_text())["rows"]
    assert (tmp_path / "t.json").is_symlink()
    assert (tmp_path / "page.md").is_symlink()


def test_images_that_were_learned_from_are_not_scored(rendered_pairs: Path, tmp_path: Path) -> None:
    result = reproduce(rendered_pairs, tmp_path / "runs", "--rows", "none", "--score")
    assert result.exit_code == 1
    assert "no test split of its own" in result.output


def test_a_stopped_row_goes_on(data: Path, tmp_path: Path) -> None:
    class Stop(Listener):
        def finished(self, row: Any) -> None:
            raise KeyboardInterrupt

    out = tmp_path / "runs"
    run = plan_row(out, "unet", "light", epochs=2)
    with pytest.raises(KeyboardInterrupt):
        loop.train(RunSettings(recipe=run.recipe, data=(data,), out=run.folder, pretrained=None), Stop())
    waiting = reproduce(data, out, "--rows", "none")
    assert waiting.exit_code == 0, waiting.output
    assert "Not run: unet, light: stopped after epoch 1 of 2" in waiting.output
    result = reproduce(data, out, "--rows", "unet", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "unet  stopped after epoch 1 of 2" in result.output
    assert "going on after epoch 1" in result.output
    assert run.finished
    assert read(out)["rows"][0]["status"] == "done"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (TrainingError, "the loss became nan in epoch 1."),
        (DataError, "the cache of resized images cannot be written"),
        (SettingsError, "was made with other settings:\n  fold: 0 then, 1 now"),
    ],
)
def test_a_run_that_fails_does_not_stop_the_others(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[IsicrtError], text: str
) -> None:
    begun = []

    def fail(settings: RunSettings, listener: Listener | None = None) -> Path:
        begun.append(settings.out.name)
        raise kind(f"{settings.out}: {text}")

    monkeypatch.setattr(loop, "train", fail)
    out = tmp_path / "runs"
    result = reproduce(data, out, "--rows", "unet,segnet-attention", "--device", "cpu")
    assert result.exit_code == 1
    assert begun == ["unet-light", "segnet-attention-light"]
    reasons = [row["reason"] for row in read(out)["rows"]]
    assert reasons[:3] == [f"failed: {' '.join(text.split())}"] * 2 + ["not trained yet"]


def test_a_row_whose_last_save_failed_is_trained_to_its_end(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, save = tmp_path / "runs", checkpoint.save

    def full(path: Path, **content: Any) -> None:
        if path.name == checkpoint.LAST and len(content["history"]) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, **content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full)
        failed = reproduce(data, out, "--rows", "unet", "--epochs", 2, "--device", "cpu")
    assert failed.exit_code == 1
    assert (out / "unet-light" / "tuned.pt").is_file()
    row = next(row for row in read(out)["rows"] if (row["name"], row["layout"]) == ("unet", "light"))
    assert row["reason"].startswith("failed: epoch 2 could not be saved")
    again = reproduce(data, out, "--rows", "unet", "--device", "cpu")
    assert again.exit_code == 0, again.output
    assert "going on after epoch 1" in again.output
    assert [cell["epochs"] for cell in read(out)["rows"][0]["cells"]] == [1, 1]


def test_what_failed_is_not_counted_as_done(out: Path) -> None:
    """Such as the figure of the last epoch, which is drawn when all else is saved."""
    folder = out / "unet-light"
    found, folders = _collect(out, {folder: "failed: epoch 2 could not be saved"}, gpu=False)
    assert (found.rows, folders) == ((), {})
    assert found.not_run[0].reason == "failed: epoch 2 could not be saved"


def test_scores_that_were_written_meanwhile_are_kept(
    data: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table_file = tmp_path / "t.json"
    scored = read(out)
    scored["test_set"] = {"label": "scored meanwhile", "images": 3, "sha256": "0" * 64}
    scored["rows"][0]["cells"][0]["scores"] = {"official": {"jaccard": 0.5}}

    def train_while_another_scores(settings: RunSettings, listener: Listener | None = None) -> Path:
        table_file.write_text(json.dumps(scored))
        raise TrainingError("no more")

    monkeypatch.setattr(loop, "train", train_while_another_scores)
    reproduce(data, out, "--rows", "segnet-attention", "--device", "cpu", "--table", table_file)
    found = json.loads(table_file.read_text())
    assert found["test_set"]["label"] == "scored meanwhile"
    assert found["rows"][0]["cells"][0]["scores"] == {"official": {"jaccard": 0.5}}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: it would be used")
def test_the_reports_widths_wait_for_a_gpu(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    result = reproduce(data, out, "--layout", "report", "--search-lr", "--cross-validate", "unet")
    assert result.exit_code == 0, result.output
    rows = read(out)["rows"]
    assert {row["status"] for row in rows} == {"not run"}
    assert all(row["reason"].startswith("no GPU on this machine") for row in rows if row["layout"] == "report")
    refused = reproduce(data, out, "--device", "cuda")
    assert refused.exit_code == 2
    assert "torch finds no GPU" in refused.output


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--rows", "segnet-attention", "--encoder-weights", "no.pth"], 1, "no.pth: no such file of encoder weights"),
        (["--rows", "vnet"], 2, "'vnet' is not a row: choose from unet, segnet-attention"),
        (["--epochs", "1"], 2, "1 is not in the range"),
        (["--folds", "3"], 2, "--folds needs --cross-validate"),
        (["--figures", "f"], 2, "--figures and --label belong to --score"),
        (["--label", "x"], 2, "--figures and --label belong to --score"),
        (["--search-lr", "vnet"], 2, "'vnet' is not one of"),
        (["--rows", "unet", "--epochs", "4"], 2, "began with epochs 2, not 4"),
        (["--rows", "unet", "--seed", "1"], 2, "began with seed 0, not 1"),
        (["--rows", "none", "--table", __file__], 1, "not a table of `isicrt reproduce`"),
        (["--rows", "none", "--markdown", __file__], 1, "needs one line <!-- report-table:begin -->"),
    ],
)
def test_bad_input_is_named(data: Path, out: Path, options: list[str], code: int, message: str) -> None:
    result = reproduce(data, out, "--device", "cpu", *options)
    assert result.exit_code == code, result.output
    assert message in " ".join(result.output.split())
