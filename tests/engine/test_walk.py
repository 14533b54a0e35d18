"""Whatever people do between runs, and wherever these are cut off, docs/reliability.md holds.

Hypothesis takes the walks and, where one fails, shortens it to the steps that matter.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isicrt.engine.segmenter import Segmenter
from tests.engine.walk import NAMES, Command, World
from tests.engine.walk_photographs import BITS, DAMAGED, Photographs

Step = tuple[Any, ...]
"""A method of `World` and its arguments."""

_names = st.sampled_from(NAMES)
_commands = st.builds(
    Command,
    bits=st.sampled_from([1, 1, 1, 8]),
    overlays=st.booleans(),
    overwrite=st.sampled_from([False] * 4 + [True]),
    retry_failed=st.sampled_from([False] * 4 + [True]),
    only=st.sampled_from([None] * 3 + ["a"]),
    fails=st.sampled_from([None] * 6 + [*NAMES]),
    dies_at=st.one_of(st.none(), st.none(), st.integers(0, 7)),
    dies_in=st.booleans(),
)
_photographs = st.sampled_from([*range(DAMAGED), *[DAMAGED] * DAMAGED])
_steps = st.one_of(
    *[st.tuples(st.just("run"), _commands)] * 4,
    *[st.tuples(st.just("photograph"), _names, _photographs)] * 2,
    *[st.tuples(st.sampled_from(["draw", "draw", "draw_small"]), _names)] * 2,
    st.tuples(st.sampled_from(["remove_mask", "cut_mask"]), _names),
    st.tuples(st.sampled_from(["remove_overlay", "block_overlay"]), _names),
    st.tuples(st.sampled_from(["remove_photograph", "lose_photograph", "touch"]), _names),
    st.sampled_from([("move",), ("exchange", *NAMES[:2])]),
    st.sampled_from([("remove_overlays",), ("remove_journal",)]),
    st.tuples(st.just("cut_journal"), st.floats(0, 1)),
    st.tuples(st.just("run_elsewhere"), st.sampled_from(BITS)),
)
_first_run = st.one_of(st.just(Command(overlays=True)), _commands)
_walks = st.builds(lambda run, steps: [("run", run), *steps], _first_run, st.lists(_steps, min_size=5, max_size=14))


@pytest.fixture(scope="module")
def photographs(darkness_onnx: Path) -> Iterator[Photographs]:
    with Segmenter(darkness_onnx, threads=1) as segmenter:
        yield Photographs(segmenter)


def _some(walks: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test of so many walks, the same ones each time."""
    chosen = settings(max_examples=walks, derandomize=True, database=None, deadline=None, report_multiple_bugs=False)
    return lambda test: chosen(given(steps=_walks)(test))


def _walk(photographs: Photographs, steps: Sequence[Step]) -> None:
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            world = World(photographs)
            for n, name in enumerate(NAMES[:2]):
                world.photograph(name, n)
            for step, *arguments in steps:
                getattr(world, step)(*arguments)
            world.run(Command(overlays=True))
        finally:
            os.chdir(here)


@_some(200)
def test_walks(photographs: Photographs, steps: Sequence[Step]) -> None:
    _walk(photographs, steps)


@pytest.mark.nightly
@_some(4000)
def test_many_walks(photographs: Photographs, steps: Sequence[Step]) -> None:
    _walk(photographs, steps)
