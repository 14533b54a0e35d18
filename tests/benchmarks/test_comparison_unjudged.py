from __future__ import annotations

import dataclasses

from isicrt.benchmarks.comparison import NOISE, UNKNOWN, Comparison, compare, comparison_lines, comparison_tables
from tests.benchmarks.sample_report import sample_model, sample_report


def _verdicts(found: Comparison) -> dict[str, str]:
    ((_, changes),) = found.changes
    return {c.name: c.verdict for c in changes}


def test_what_cannot_be_judged_is_not_called_unchanged() -> None:
    model = sample_model(scored=False)
    costs = {s: ms[:1] for s, ms in model.stages.cpu_ms.items()}
    once = sample_report(
        dataclasses.replace(
            model,
            latencies=(),
            stages=dataclasses.replace(model.stages, wall_ms=costs, cpu_ms=costs),
            end_to_end=dataclasses.replace(model.end_to_end, runs=model.end_to_end.runs[:1]),
            process=None,
        )
    )
    found = compare(once, once)
    assert set(_verdicts(found).values()) == {UNKNOWN}
    assert comparison_lines(found) == [
        "5 of 5 figures cannot be judged: too few repeats: measure both sides at least twice (--repeats)"
    ]
    (table,) = comparison_tables(found)
    assert table.note == ""
    (table,) = comparison_tables(compare(sample_report(), sample_report()))
    assert table.note == "14 of 14 figures are within noise and not shown."


def test_a_stage_whose_cpu_time_the_clock_did_not_see() -> None:
    seen = sample_model()
    costs = {**seen.stages.cpu_ms, "write": (0.0, 0.0)}
    unseen = dataclasses.replace(seen, stages=dataclasses.replace(seen.stages, cpu_ms=costs))
    for old, new, verdict in ((unseen, unseen, NOISE), (unseen, seen, "worse"), (seen, unseen, "better")):
        assert _verdicts(compare(sample_report(old), sample_report(new)))["write_cpu_ms"] == verdict
