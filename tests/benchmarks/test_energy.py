from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from isicrt.benchmarks.energy import EnergyMeter, gpu_millijoules


def _zone(folder: Path, name: str, kind: str, microjoules: int) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "name").write_text(f"{kind}\n")
    (folder / name / "energy_uj").write_text(f"{microjoules}\n")
    (folder / name / "max_energy_range_uj").write_text("1000000000\n")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((1_000_000, 5_000_000), (3_500_000, 5_500_000), 3.0),
        # The counter ran over.
        ((999_000_000, 0), (500_000, 0), 1.5),
    ],
)
def test_packages_are_added_and_their_parts_are_not(
    tmp_path: Path, first: tuple[int, int], second: tuple[int, int], expected: float
) -> None:
    for values in (first, second):
        for n, value in enumerate(values):
            _zone(tmp_path, f"intel-rapl:{n}", f"package-{n}", value)
        _zone(tmp_path, "intel-rapl:0:0", "core", 7 * values[0])
        _zone(tmp_path, "intel-rapl:2", "psys", 7 * values[0])
        if values is first:
            meter = EnergyMeter(tmp_path)
    assert meter.joules() == pytest.approx(expected)


def test_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path / "none").joules() is None
    _zone(tmp_path, "intel-rapl:0", "package-0", 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert EnergyMeter(tmp_path).joules() is None


class Nvml:
    """What NVIDIA's library does for boards that have spent so many millijoules; None for one that does not count."""

    def __init__(self, *boards: int | None) -> None:
        self.boards = boards

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.boards)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, device: Any) -> int:
        device._obj.value = index + 1
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, device: Any, spent: Any) -> int:
        board = self.boards[device.value - 1]
        spent._obj.value = board or 0
        return 3 if board is None else 0  # NVML_ERROR_NOT_SUPPORTED


@pytest.mark.parametrize(
    ("nvml", "expected"),
    [(None, None), (Nvml(), None), (Nvml(5), 5), (Nvml(2**33, 7), 2**33 + 7), (Nvml(5, None), None)],
)
def test_gpus_are_added_and_all_must_count(nvml: Any, expected: int | None) -> None:
    assert gpu_millijoules(nvml) == expected


@pytest.mark.parametrize(("counts", "expected"), [([1000, 3500], 2.5), ([None, None], None), ([1000, None], None)])
def test_gpu_joules_since_the_making(tmp_path: Path, counts: list[int | None], expected: float | None) -> None:
    readings = iter(counts)
    assert EnergyMeter(tmp_path, lambda: next(readings)).gpu_joules() == expected
