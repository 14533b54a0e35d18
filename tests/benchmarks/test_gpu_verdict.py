"""What a report of the GPU comes to: the slowest stage, the ratio to it, and the goals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from isicrt.benchmarks.gpu_verdict import STAGES, command, conclude, to_markdown

ALONE = {
    "read": 30000.0,
    "gpu decode": 7000.0,
    "gpu resize": 20000.0,
    "gpu restore and pack": 40000.0,
    "write": 9000.0,
}


def _section(rate: float) -> dict[str, Any]:
    return {"result": {"images_per_second": rate}, "seconds": 1.0, "gpu": {}}


def _report(end_to_end: float = 5600.0, network: float = 6000.0, p50: float = 0.4) -> dict[str, Any]:
    engine: dict[str, Any] = {
        "network": {"result": {"1": {"call_ms": {"p50": p50}}}},
        "end to end": {"512": _section(end_to_end)},
        "network in the chain": {"512": _section(network)},
    }
    return {
        "environment": {"gpus": ["NVIDIA H100"], "cores": 16},
        "stages": {"512": {stage: _section(rate) for stage, rate in ALONE.items()} | {"cpu decode": _section(100.0)}},
        "engines": {"tensorrt-fp16": engine},
        "notes": ["peers: RuntimeError: nothing"],
    }


def test_the_ratio_is_to_the_slowest_stage_of_the_gpus_way() -> None:
    found = conclude(_report())["ratios"]["tensorrt-fp16"]["512"]
    assert found == {
        "end_to_end": 5600.0,
        "slowest": "network",
        "slowest_alone": 6000.0,
        "ratio": pytest.approx(0.9333, abs=1e-4),
    }
    assert conclude(_report(network=8000.0))["ratios"]["tensorrt-fp16"]["512"]["slowest"] == "gpu decode"


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ({}, [True, True, True]),
        ({"end_to_end": 4999.0}, [False, False, True]),
        ({"network": 6500.0}, [True, False, True]),
        ({"p50": 0.5}, [True, True, True]),
        ({"p50": 0.51}, [True, True, False]),
    ],
)
def test_goals(changes: dict[str, float], met: list[bool]) -> None:
    goals = conclude(_report(**changes))["goals"]["tensorrt-fp16"]
    assert [goal["met"] for goal in goals.values()] == met


@pytest.mark.parametrize("missing", STAGES)
def test_without_one_of_the_stages_there_is_no_ratio_and_no_verdict(missing: str) -> None:
    report = _report()
    place = report["engines"]["tensorrt-fp16"]
    del (place["network in the chain"] if missing == "network" else report["stages"]["512"])[
        "512" if missing == "network" else missing
    ]
    found = conclude(report)
    assert found["ratios"]["tensorrt-fp16"] == {}
    assert [goal["met"] for goal in found["goals"]["tensorrt-fp16"].values()] == [True, None, True]
    assert "| not measured |" in to_markdown(report)


def test_a_report_that_has_just_begun() -> None:
    assert conclude({"notes": []}) == {"ratios": {}, "goals": {}}


def test_markdown(tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    file.write_text(json.dumps(_report(p50=0.7)))
    result = CliRunner().invoke(command, [str(file)], catch_exceptions=False)
    assert result.output == to_markdown(_report(p50=0.7))
    row = next(line for line in result.output.splitlines() if "| 512 |" in line)
    assert row.split(" | ")[2:] == [
        "30,000",
        "7,000",
        "20,000",
        "6,000",
        "40,000",
        "9,000",
        "5,600",
        "0.93 (network) |",
    ]
    assert "| tensorrt-fp16 | batch 1, p50 of a call, ms | at most 0.5 | 0.7 | no |" in result.output
    assert "- peers: RuntimeError: nothing" in result.output
