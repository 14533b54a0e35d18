"""Where `isicrt reproduce` draws no figures."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from isicrt.cli.main import group
from tests.conftest import make_splits


@pytest.mark.parametrize("folder", ["train/images", "test/masks/figures"])
def test_figures_come_not_among_the_data(tmp_path: Path, folder: str) -> None:
    data = make_splits(tmp_path / "isic")
    before = sorted(tmp_path.rglob("*"))
    options = ["--rows", "none", "--device", "cpu", "--score", "--figures", data / folder, "--out", tmp_path / "runs"]
    result = CliRunner().invoke(group, [str(x) for x in ("reproduce", "--data", data, *options)])
    assert result.exit_code == 2, result.output
    assert "images or masks of the data set lie there. Choose another folder" in " ".join(result.output.split())
    assert sorted(tmp_path.rglob("*")) == before
