from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from isicrt.benchmarks.curves import draw_runs, draw_spread, floor, new_figure, read_run
from isicrt.benchmarks.scoring_protocol import OfficialProtocol
from isicrt.engine.errors import DataError, MissingDependencyError
from tests.benchmarks.sample_evaluation import sample_scored

HEADER = "epoch,stage,train_loss,val_loss,val_jaccard"


def _run(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "metrics.csv").write_text(text)
    return folder


def test_a_run_is_read(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", f"{HEADER}\n1,frozen,0.5,0.6,0.7\n2,tuned,0.4,0.5,0.8\n")
    assert read_run(run) == {
        "epoch": [1, 2],
        "train_loss": [0.5, 0.4],
        "val_loss": [0.6, 0.5],
        "val_jaccard": [0.7, 0.8],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "--runs takes run folders of `isicrt train`"),
        ("", "holds no epoch yet"),
        (f"{HEADER}\n", "holds no epoch yet"),
        ("epoch,train_loss,val_loss\n1,2,3\n", "expected numbers in the columns .*val_jaccard"),
        (f"{HEADER}\n1,frozen,0.5,x,0.7\n", "expected numbers"),
        (f"{HEADER}\n1,frozen,0.5\n", "expected numbers"),
    ],
)
def test_runs_that_cannot_be_read(tmp_path: Path, text: str | None, message: str) -> None:
    run = tmp_path / "run"
    if text is not None:
        _run(run, text)
    with pytest.raises(DataError, match=message):
        read_run(run)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.1, *[0.8] * 18, 0.9], 0.785),  # two epochs of twenty are the beginning
        ([0.7, 0.8], 0.685),
        ([0.5], 0.495),
        ([0.0, 0.0], 0.0),
    ],
)
def test_the_first_epochs_do_not_press_the_others_into_a_line(scores: list[float], expected: float) -> None:
    assert floor(scores) == pytest.approx(expected)


def test_pictures_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = [_run(tmp_path / f"run-{n}", f"{HEADER}\n1,a,0.5,0.6,0.7\n2,a,0.4,0.{n},0.8\n") for n in (50, 90)]
    draw_runs(runs, tmp_path / "runs.png")
    draw_runs(runs[:1], tmp_path / "run.png")
    models = [sample_scored(name, {"a": 0.2, "b": 0.9}, protocol=OfficialProtocol()) for name in ("frozen", "tuned")]
    draw_spread(models, tmp_path / "spread.png", title="x")
    pictures = {name: Image.open(tmp_path / f"{name}.png").convert("RGB") for name in ("runs", "run", "spread")}
    assert all(picture.size == (1100, 440) for picture in pictures.values())
    blue, orange = (31, 119, 180), (255, 127, 14)
    for name, has_second in (("runs", True), ("run", False), ("spread", True)):
        colours = {colour for _, colour in pictures[name].getcolors(1 << 20) or []}
        assert blue in colours
        assert (orange in colours) is has_second, name
    with pytest.raises(DataError, match="cannot be written"):
        draw_runs(runs, tmp_path / "nowhere" / "runs.png")


def test_matplotlib_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"\.\[train\]"):
        new_figure("x")
