"""The cache of resized pairs: right pixels, made once, whole or absent."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from isicrt.engine.errors import DataError
from isicrt.engine.geometry import resize_image
from isicrt.engine.images import read_image, read_mask
from isicrt.trainer.cache import nearest, resized_pairs
from isicrt.trainer.dataset import Pair, find_pairs


def test_holds_the_pixels_of_the_resize_rule(rendered_pairs: Path, tmp_path: Path) -> None:
    pairs = find_pairs(rendered_pairs)[:3]
    cached = resized_pairs(pairs, 48, tmp_path)
    assert cached.images.shape == (3, 48, 48, 3)
    assert cached.masks.shape == (3, 48, 48)
    for pair, image, mask in zip(pairs, cached.images, cached.masks, strict=True):
        np.testing.assert_array_equal(image, resize_image(read_image(pair.image), (48, 48)))
        np.testing.assert_array_equal(mask > 0, nearest(read_mask(pair.mask), (48, 48)) > 0)
        assert set(np.unique(mask)) == {0, 255}


def test_is_made_once_and_again_when_a_file_changes(rendered_pairs: Path, tmp_path: Path) -> None:
    pairs = []
    for pair in find_pairs(rendered_pairs)[:2]:
        image = tmp_path / pair.image.name
        image.write_bytes(pair.image.read_bytes())
        pairs.append(Pair(pair.id, image, pair.mask))
    caches = tmp_path / "caches"
    resized_pairs(pairs, 32, caches)
    (first,) = caches.iterdir()
    made = (first / "images.npy").stat().st_mtime_ns
    resized_pairs(pairs, 32, caches)
    assert (first / "images.npy").stat().st_mtime_ns == made
    os.utime(pairs[0].image, ns=(1, 1))
    resized_pairs(pairs, 32, caches)
    assert len(list(caches.iterdir())) == 2
    resized_pairs(pairs, 64, caches)
    assert len(list(caches.iterdir())) == 3


def test_a_bad_image_leaves_no_cache(rendered_pairs: Path, tmp_path: Path) -> None:
    good, *_ = find_pairs(rendered_pairs)
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.jpg"):
        resized_pairs([good, Pair("bad", bad, good.mask)], 32, tmp_path / "caches")
    assert list((tmp_path / "caches").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(rendered_pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="ISICRT_CACHE"):
        resized_pairs(find_pairs(rendered_pairs)[:1], 32, tmp_path / "file" / "caches")


def test_nothing_to_cache(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image"):
        resized_pairs([], 32, tmp_path)
