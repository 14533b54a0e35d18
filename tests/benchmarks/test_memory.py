from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from isicrt.benchmarks import memory
from isicrt.benchmarks.environment import Environment
from isicrt.benchmarks.memory import Reading, command, growth, link_images
from isicrt.engine.model_identity import file_sha256


def test_links_go_round_and_lie_in_sub_folders(tmp_path: Path) -> None:
    files = [tmp_path / "a.jpg", tmp_path / "b.png"]
    for file in files:
        file.write_bytes(b"x")
    links = sorted(link_images(files, tmp_path / "links", 2001).rglob("*.*"))
    assert len(links) == 2001
    assert [p.relative_to(tmp_path).as_posix() for p in (links[0], links[1], links[-1])] == [
        "links/00000/0000000.jpg",
        "links/00000/0000001.png",
        "links/00002/0002000.jpg",
    ]
    assert links[1].resolve() == files[1].resolve()


@pytest.mark.parametrize(
    ("peaks", "expected"),
    [({1000: 300.0, 100000: 312.0, 5000: 900.0}, 0.04), ({1000: 300.0}, None), ({1: None, 2: 5.0}, None)],
)
def test_growth_is_of_the_most_against_the_fewest(peaks: dict[int, float | None], expected: float | None) -> None:
    readings = [Reading("count", n, 8, peak, 1.0) for n, peak in peaks.items()]
    found = growth([Reading("large", 10**6, 8, 9e9, 1.0), *readings])
    assert found == (None if expected is None else pytest.approx(expected))
    assert growth(readings, "resume") is None


def test_a_small_measurement(
    darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    read_environment, read_peak = memory.read_environment, memory.read_peak

    def environment() -> Environment:
        order.append("load")
        return read_environment()

    def peak(*arguments: Any) -> Reading:
        order.append("run")
        return read_peak(*arguments)

    monkeypatch.setattr(memory, "read_environment", environment)
    monkeypatch.setattr(memory, "read_peak", peak)
    images = str(rendered_pairs / "images")
    arguments = ["--images", images, "--model", str(darkness_onnx), "--counts", "3,6", "--batch-sizes", "2"]
    arguments += ["--large-images", images, "--large-count", "2", "--json", str(tmp_path / "m.json")]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert "count: 6 images against 3: " in result.output
    assert "resume: 6 images against 3: " in result.output
    data = json.loads((tmp_path / "m.json").read_text())
    assert data["schema"] == "isicrt-memory/1"
    assert order == ["load", *["run"] * 6], "the load is of before the start"
    assert data["files"] == [{"name": "darkness.onnx", "sha256": file_sha256(darkness_onnx)}]
    assert [(r["what"], r["images"], r["batch_size"]) for r in data["readings"]] == [
        ("count", 3, 8),
        ("resume", 3, 8),
        ("count", 6, 8),
        ("resume", 6, 8),
        ("batch", 3, 2),
        ("large", 2, 2),
    ]
    assert all(r["peak_rss_mb"] > 20 for r in data["readings"])


@pytest.mark.parametrize(
    ("option", "message"), [(["--counts", "0"], "whole numbers"), (["--model", "none.onnx"], "no such model")]
)
def test_bad_arguments(option: list[str], message: str, rendered_pairs: Path) -> None:
    result = CliRunner().invoke(command, ["--images", str(rendered_pairs / "images"), *option])
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output
