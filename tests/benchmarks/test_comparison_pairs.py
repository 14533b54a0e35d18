"""Which model of the older report one of the newer is compared with."""

from __future__ import annotations

import dataclasses

import pytest

from isicrt.benchmarks.comparison import compare, pair_models
from isicrt.benchmarks.result import Report
from tests.benchmarks.sample_report import sample_model, sample_report


def _report(*models: str) -> Report:
    """Each of `models` is its label and the letter that its hash is of."""
    found = (dataclasses.replace(sample_model(m[:-1]), sha256=m[-1] * 64) for m in models)
    return sample_report(*found)


@pytest.mark.parametrize(
    ("old", "new", "pairs", "alone"),
    [
        # By label, or because there is no other.
        (["a1", "b2"], ["b3", "c4"], {"b": "b"}, ["c"]),
        (["a1"], ["b2"], {"b": "a"}, []),
        # By file, whatever they were called and in whichever order they were named.
        (["x #11", "x #22"], ["x #12", "x #21"], {"x #1": "x #2", "x #2": "x #1"}, []),
        (["a1", "b2"], ["c2", "d3"], {"c": "b"}, ["d"]),
        # Among several of one file by label, and none twice.
        (["a1", "b1"], ["b1", "a1"], {"a": "a", "b": "b"}, []),
        (["a1", "b2"], ["a1", "c1"], {"a": "a"}, ["c"]),
    ],
)
def test_models_are_paired(old: list[str], new: list[str], pairs: dict[str, str], alone: list[str]) -> None:
    older, newer = _report(*old), _report(*new)
    assert {label: m.label for label, m in pair_models(older, newer).items()} == pairs
    found = compare(older, newer)
    assert sorted(label for label, _ in found.changes) == sorted(pairs)
    assert list(found.alone) == alone
