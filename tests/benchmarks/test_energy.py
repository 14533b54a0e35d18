from __future__ import annotations

from pathlib import Path

import pytest

from isicrt.benchmarks.energy import EnergyMeter


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
