"""The host's side of the GPU's way, without a GPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from isicrt.benchmarks.gpu_host import SCHEMA, InstantChain, host_run, main
from isicrt.benchmarks.idle_processes import idle_processes
from isicrt.engine import stages
from isicrt.engine.card import ModelCard
from isicrt.engine.errors import DataError
from isicrt.engine.gpu_batch import ChainImage, read_chain_image
from isicrt.engine.images import read_mask
from isicrt.engine.read_process import ReadProcess
from isicrt.engine.task_process import START_AFTER
from tests.journal_lines import read_journal
from tests.tiny_models import darkness_card


@pytest.fixture
def card() -> ModelCard:
    return darkness_card()


@pytest.fixture
def jpegs(rendered_pairs: Path) -> list[Path]:
    return sorted((rendered_pairs / "images").iterdir())[:3]


def test_a_batch_is_done_when_it_is_submitted(card: ModelCard, jpegs: list[Path]) -> None:
    chain = InstantChain(card)
    images = [read_chain_image(file, card.input_size) for file in jpegs]
    masks = chain.collect(chain.submit(images))
    assert chain.decoded.gpu == 3
    for image, mask in zip(images, masks, strict=True):
        found = mask.clean(keep_largest=True, fill_holes=True).whole()
        assert found.shape == image.native_size
        assert 0.1 < found.mean() < 0.4


@pytest.mark.parametrize("processes", [0, 1])
def test_every_mask_of_a_run_is_written_and_time_is_told_apart(
    card: ModelCard, jpegs: list[Path], tmp_path: Path, processes: int
) -> None:
    count = 4 * START_AFTER
    run = host_run(jpegs, count, card, tmp_path / "masks", processes)
    masks = sorted((tmp_path / "masks").glob("*.png"))
    assert len(masks) == count
    assert read_mask(masks[0]).any()
    assert run.images_per_second > 0
    assert run.own_user_us + run.own_system_us > 0
    assert (run.others_us > 0) == (processes > 0)


@pytest.mark.parametrize("is_long", [False, True])
def test_idle_processes_do_not_work_and_the_run_is_whole(
    card: ModelCard, jpegs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_long: bool
) -> None:
    if is_long:
        monkeypatch.setattr(stages, "START_AFTER", 1)
    asked: list[tuple[int, int]] = []
    read = ReadProcess.read

    def noted(self: ReadProcess, paths: Sequence[Path]) -> list[ChainImage | None]:
        images = read(self, paths)
        asked.append((len(paths), sum(i is not None and i.path == p for i, p in zip(images, paths, strict=True))))
        return images

    monkeypatch.setattr(ReadProcess, "read", noted)
    with idle_processes():
        run = host_run(jpegs, 200, card, tmp_path / "masks", 2, 4)
    assert 1 <= len(list((tmp_path / "masks").glob("*.png"))) <= 2, "each process writes one"
    lines = [line for line in read_journal(tmp_path / "masks") if line.get("status") == "done"]
    assert len({str(line["mask"]) for line in lines}) == 200
    assert asked
    assert all(given == answered for given, answered in asked)
    assert run.steady > 0
    assert run.own_waits is None or run.own_waits > 0
    assert host_run(jpegs, 20, card, tmp_path / "masks", 0).others_us == 0
    assert len(list((tmp_path / "masks").glob("*.png"))) == 20


def test_what_the_gpu_would_not_decode_is_no_figure(card: ModelCard, jpegs: list[Path], tmp_path: Path) -> None:
    png = tmp_path / "a.png"
    Image.open(jpegs[0]).save(png)
    with pytest.raises(DataError, match="0 of 4 images failed, and 2 were not for the GPU to decode: give JPEGs"):
        host_run([jpegs[0], png], 4, card, tmp_path / "masks", 0)
    bad = tmp_path / "bad.jpg"
    bad.write_text("not an image")
    with pytest.raises(DataError, match="2 of 4 images failed"):
        host_run([jpegs[0], bad], 4, card, tmp_path / "masks", 0)


def test_both_ways_are_in_the_report(rendered_pairs: Path, tmp_path: Path) -> None:
    report = tmp_path / "host.json"
    options = ["--images", rendered_pairs / "images", "--count", 20, "--own-count", 40, "--processes", 2]
    options += ["--repeats", 1, "--json", report]
    done = CliRunner().invoke(main, [str(option) for option in options])
    assert done.exit_code == 0, done.output
    assert "| on threads | " in done.output
    assert "| in 2 and " in done.output
    data = json.loads(report.read_text())
    assert data["schema"] == SCHEMA
    assert set(data["by_processes"]) == {"0", "2"}
    assert f"that do not work: {data['own']['steady']:,.0f} images/s" in done.output
    assert len(data["own"]["runs"]) == 1
    assert all(len(found["runs"]) == 1 for found in data["by_processes"].values())
    assert "python -m isicrt.benchmarks.gpu_host" in data["command"]
