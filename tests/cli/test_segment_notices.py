"""What `isicrt segment` says on the standard error of a run that went well: what was kept, left out or passed over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from isicrt.cli.main import group
from isicrt.engine.journal import read_journal
from isicrt.engine.masks import encode_png
from isicrt.engine.outcome import KEPT, KEPT_OUTDATED


@pytest.fixture
def here(rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with three images in ``in``."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name in "abc":
        shutil.copy(rendered_pairs / "images" / "ISIC_0000000.jpg", f"in/{name}.jpg")
    return tmp_path


@pytest.fixture
def segment(darkness_onnx: Path, here: Path):
    def segment(*arguments: object) -> Result:
        named = ["segment", *map(str, arguments), "--model", str(darkness_onnx), "--threads", "1"]
        return CliRunner().invoke(group, named)

    return segment


def test_corrected_masks_are_kept_and_said(segment) -> None:
    assert segment("in", "--out", "out").exit_code == 0
    with Image.open("out/a.png") as mask:
        drawn = encode_png(np.ones((mask.height, mask.width), bool))
    for name in "ab":
        Path(f"out/{name}.png").write_bytes(drawn)
    result = segment("in", "--out", "out", "--report", "r.json", "--json", "i.json")
    assert result.exit_code == 0
    kept, such = "2 masks were changed since isicrt wrote them and were kept", ", such as out/a.png; --overwrite makes"
    assert result.stderr.splitlines() == [f"{kept}{such} them again"]
    assert "0 masks in out, 0 failed, 3 done before" in result.stdout
    report = json.loads(Path("r.json").read_text())
    assert (report["kept"], report["skipped"], report["done"]) == (2, 3, 0)
    images = {Path(entry["image"]).stem: entry for entry in json.loads(Path("i.json").read_text())["images"]}
    assert {name: entry["kept"] for name, entry in images.items()} == {"a": KEPT, "b": KEPT, "c": None}
    assert images["a"]["lesion_share"] == 1
    assert [line["kept"] for line in read_journal("out") if "end" in line] == [0, 2]

    result = segment("in", "--out", "out", "--threshold", "0.4", "--json", "i.json")
    assert f"{kept} (of 2 the model, the settings or the image are others now){such}" in result.stderr
    assert "1 masks in out, 0 failed, 2 done before" in result.stdout
    images = {Path(entry["image"]).stem: entry for entry in json.loads(Path("i.json").read_text())["images"]}
    assert images["a"]["kept"] == KEPT_OUTDATED
    assert Path("out/a.png").read_bytes() == drawn

    result = segment("in", "--out", "out", "--overwrite")
    assert (result.exit_code, result.stderr) == (0, "")
    assert Path("out/a.png").read_bytes() != drawn
