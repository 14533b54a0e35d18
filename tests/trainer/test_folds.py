"""Pairs are shared out by their ids, and images of one lesion stay together."""

from __future__ import annotations

from pathlib import Path

import pytest

from isicrt.engine.errors import DataError
from isicrt.trainer.dataset import (
    Pair,
    split_fold,
)
from isicrt.trainer.twins import TWINS, group_of


def test_folds_share_out_all_pairs_and_do_not_depend_on_the_others() -> None:
    pairs = [Pair(f"ISIC_{n:07d}", Path("i"), Path("m")) for n in range(200)]
    sides = [split_fold(pairs, 5, k) for k in range(5)]
    validated = [p.id for _, validation in sides for p in validation]
    assert sorted(validated) == [p.id for p in pairs]
    assert all(20 <= len(validation) <= 60 for _, validation in sides)
    assert all(not set(t) & set(v) for t, v in sides)
    fewer = split_fold(pairs[::2], 5, 2)[1]
    assert fewer == [p for p in sides[2][1] if p in pairs[::2]]


def test_images_of_one_lesion_share_a_fold() -> None:
    pairs = [Pair(name, Path("i"), Path("m")) for group in TWINS for name in group]
    assert len(pairs) > 20
    for fold in range(3):
        training, _ = split_fold(pairs, 3, fold)
        learned = {p.id for p in training}
        assert all(len({name in learned for name in group}) == 1 for group in TWINS)
    assert group_of(TWINS[0][1]) == TWINS[0][0]
    assert group_of("ISIC_9999999") == "ISIC_9999999"


@pytest.mark.parametrize(("count", "folds", "fold"), [(10, 5, 5), (10, 5, -1), (1, 5, 0)])
def test_folds_that_do_not_exist(count: int, folds: int, fold: int) -> None:
    pairs = [Pair(f"ISIC_{n:07d}", Path("i"), Path("m")) for n in range(count)]
    message = "fold .* does not exist|1 pair is too few for fold 0 of 5: .*: isicrt train --fold none"
    with pytest.raises(DataError, match=message):
        split_fold(pairs, folds, fold)
