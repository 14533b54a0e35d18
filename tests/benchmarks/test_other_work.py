"""What other programs take is told apart from what is measured."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isicrt.benchmarks import other_work
from isicrt.benchmarks.busy_machine import busy_processes
from isicrt.benchmarks.other_work import OtherWork

pytestmark = pytest.mark.skipif(not hasattr(os, "sysconf"), reason="what is counted is not counted here")
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def _write(stat: Path, *rows: tuple[int, ...]) -> None:
    lines = [" ".join(map(str, (f"cpu{n}", *row))) for n, row in enumerate(rows)]
    stat.write_text("\n".join(["cpu  1 1 1 1 1 1 1 1 1 1", *lines, "intr 5 0 0", "ctxt 7"]) + "\n", encoding="ascii")


def test_what_is_not_idle_and_not_own_is_others(tmp_path: Path) -> None:
    own = [5.0]
    stat = tmp_path / "stat"
    _write(stat, (100,) * 10, (0,) * 10, (0,) * 10)
    work = OtherWork(lambda: own[0], stat, frozenset({0, 2}))
    assert work.cpu_seconds() == 0
    # user nice system idle iowait irq softirq steal guest guest_nice; the second core is not ours.
    more = [n * TICKS for n in (1, 2, 4, 1000, 1000, 8, 16, 32, 1000, 1000)]
    _write(stat, tuple(100 + n for n in more), (999 * TICKS,) * 10, tuple(more))
    own[0] = 9.0
    assert work.cpu_seconds() == pytest.approx(2 * 63 - 4)
    own[0] = 500.0  # the clocks differ by ticks
    assert work.cpu_seconds() == 0


def test_where_the_kernel_does_not_tell(tmp_path: Path) -> None:
    assert OtherWork(lambda: 0.0, tmp_path / "none", frozenset({0})).cpu_seconds() is None
    stat = tmp_path / "stat"
    _write(stat, (1,) * 10)
    assert OtherWork(lambda: 0.0, stat, frozenset({0, 1})).cpu_seconds() is None, "a core is not there"
    assert OtherWork(lambda: 0.0, stat, frozenset()).cpu_seconds() is None, "of no core nothing is known"


def test_cores_that_a_quota_shares_are_nobodys_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    _write(stat, (1,) * 10, (1,) * 10)
    for quota, expected in ((2, 0.0), (1, None)):
        monkeypatch.setattr(other_work, "available_cores", lambda quota=quota: quota)
        assert OtherWork(lambda: 0.0, stat).cpu_seconds() == expected


def test_a_file_in_which_nothing_is_counted(tmp_path: Path) -> None:
    own = [0.0]
    _write(tmp_path / "stat", (0,) * 10)
    work = OtherWork(lambda: own[0], tmp_path / "stat", frozenset({0}))
    own[0] = 2.0
    assert work.cpu_seconds() is None


def _own_seconds() -> float:
    return time.process_time() + sum(os.times()[2:4])


needs_counts = pytest.mark.skipif(
    OtherWork(_own_seconds).cpu_seconds() is None, reason="the kernel does not tell, or the cores are not our own"
)


@needs_counts
def test_a_process_beside_is_seen() -> None:
    with busy_processes(1):
        work = OtherWork(_own_seconds)
        until = time.monotonic() + 60
        while (work.cpu_seconds() or 0) < 0.1:
            assert time.monotonic() < until
            time.sleep(0.05)


@needs_counts
def test_own_work_and_that_of_own_processes_is_not_others() -> None:
    """What is counted as others' is less by what is own than all that the cores did."""
    code = "import time\nwhile time.process_time() < 0.5: pass"
    own, work, everything = _own_seconds(), OtherWork(_own_seconds), OtherWork(lambda: 0.0)
    subprocess.run([sys.executable, "-c", code], check=True)
    while _own_seconds() - own < 1:
        pass
    others, all_of_it = work.cpu_seconds(), everything.cpu_seconds()
    assert others is not None
    assert all_of_it is not None
    assert 0.8 < all_of_it - others < 1.3
