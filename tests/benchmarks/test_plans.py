from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")

from isicrt.benchmarks.plans import command, to_markdown
from tests.conftest import REPOSITORY


def test_builds_and_refusals(darkness_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ISICRT_DATA", raising=False)
    result = tmp_path / "plans.json"
    arguments = [str(darkness_onnx), "--json", str(result), "--batch-size", "2", "--parity-images", "1"]
    first = CliRunner().invoke(command, [*arguments, "--precision", "fp32"])
    assert first.exit_code == 0, first.output
    second = CliRunner().invoke(command, [*arguments, "--precision", "fp16", "--compute-capability", "9.0"])
    assert second.exit_code == 0, second.output
    data = json.loads(result.read_text())
    assert data["schema"] == "isicrt-plans/1"
    assert len(data["commands"]) == 2
    built, refused = data["rows"]
    assert (built["model"], built["precision"], built["compute_capabilities"]) == ("darkness", "fp32", "default")
    assert built["error"] is None
    assert built["batches"] == [1, 2, 2]
    assert built["layers"].startswith("0 of ")
    assert built["plan_mb"] > 0
    assert built["cpu_seconds"] > 0
    assert refused["error"].startswith("--compute-capability 9.0: TensorRT for RTX ")
    assert "knows 7.5, 8.0" in refused["error"]
    assert refused["plan_mb"] is None
    table = to_markdown(data["rows"])
    assert "| `darkness` | 0.00 M | fp32 | default | 0 of " in table
    assert "- `darkness`, fp16, 9.0: --compute-capability 9.0" in table


@pytest.mark.parametrize("content", ["{", '{"schema": "isicrt-memory/1"}', "[]"])
def test_another_files_figures_are_not_written_over(darkness_onnx: Path, tmp_path: Path, content: str) -> None:
    other = tmp_path / "other.json"
    other.write_text(content)
    result = CliRunner().invoke(command, [str(darkness_onnx), "--json", str(other)])
    assert result.exit_code == 1
    assert "no result of this benchmark" in result.output
    assert other.read_text() == content


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["no-such-model"])
    assert result.exit_code == 1
    assert "no such model file" in result.output


def test_the_table_in_the_documentation_is_that_of_the_committed_figures() -> None:
    data = json.loads((REPOSITORY / "benchmarks" / "results" / "plans.json").read_text())
    page = (REPOSITORY / "docs" / "gpu-measurements.md").read_text()
    for line in to_markdown(data["rows"]).splitlines():
        assert line in page
