"""The ceilings: one for every stage, and a report that says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from click.testing import CliRunner

from isicrt.benchmarks.ceilings import Ceiling, main, measure
from isicrt.benchmarks.rendered import render
from isicrt.engine import shipped
from isicrt.engine.errors import DataError
from isicrt.engine.model_identity import file_sha256
from isicrt.engine.pipeline import STAGES


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for seed in range(3):
        image, _ = render(seed, (480, 640))
        (folder / f"{seed}.jpg").write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=90))
    return folder


@pytest.mark.parametrize("name", [shipped.DEFAULT, shipped.FLOAT])
def test_every_stage_has_a_ceiling(photographs: Path, name: str) -> None:
    found, arithmetic = measure(sorted(photographs.iterdir()), shipped.resolve(name), repeats=2)
    assert [c.stage for c in found] == list(STAGES)
    assert all(c.floor_ms > 0 and c.cpu_ms > 0 for c in found)
    assert 0.2 < arithmetic.gmac < 0.5
    assert arithmetic.gmac_per_second > 1


def test_the_command_writes_what_it_says(photographs: Path, tmp_path: Path) -> None:
    (photographs / "note.png").write_bytes(b"")
    result = CliRunner().invoke(main, ["--images", str(photographs), "--json", str(tmp_path / "c.json")])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert report["images"] == 3
    (model,) = report["files"]
    assert model == {"name": report["model"], "sha256": file_sha256(shipped.resolve(None))}
    for stage in STAGES:
        part = report["stages"][stage]
        assert part["share"] == pytest.approx(part["floor_ms"] / part["cpu_ms"])
        assert stage in result.output


def test_without_a_jpeg_there_is_no_ceiling() -> None:
    with pytest.raises(DataError, match="no JPEG files"):
        measure([], shipped.resolve(None))


def test_the_share_is_of_the_stage() -> None:
    assert Ceiling("write", 2.0, 0.5).share == 0.25
