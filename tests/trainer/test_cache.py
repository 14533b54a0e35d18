"""The cache of resized pairs: right pixels, made once, whole or absent."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import mmap
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isicrt.engine.errors import DataError
from isicrt.engine.geometry import resize_image
from isicrt.engine.images import read_image, read_mask
from isicrt.engine.lock import lock
from isicrt.trainer import cache
from isicrt.trainer.cache import nearest, resized_pairs
from isicrt.trainer.dataset import Pair, find_pairs
from isicrt.trainer.loop import RunSettings, train
from isicrt.trainer.recipe import Recipe, Stage


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


def test_parts_of_a_list_share_its_cache_and_copy_nothing(rendered_pairs: Path, tmp_path: Path) -> None:
    pairs = find_pairs(rendered_pairs)
    chosen = [4, 0, 7]
    part = resized_pairs([pairs[i] for i in chosen], 32, tmp_path, within=pairs)
    whole = resized_pairs(pairs, 32, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    for ours, theirs in ((part.images, whole.images), (part.masks, whole.masks)):
        expected = np.array(theirs)[chosen]
        assert (ours.shape, ours.nbytes, len(ours)) == (expected.shape, expected.nbytes, 3)
        np.testing.assert_array_equal(np.array(ours), expected)
        np.testing.assert_array_equal(np.stack(list(ours)), expected)
        np.testing.assert_array_equal(ours[1:], expected[1:])
        np.testing.assert_array_equal(ours[np.array([2, 0])], expected[[2, 0]])
        image = ours[0]
        while isinstance(image, np.ndarray):  # down to what it is a view of
            image = image.base
        assert isinstance(image, mmap.mmap)


def test_all_folds_share_one_cache(rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISICRT_CACHE", str(tmp_path / "caches"))
    recipe = Recipe("tiny", "unet", (Stage("tuned", 1, 1e-3, 1e-4),), decoder_channels=(8, 8, 8, 8), input_size=32)
    recipe = dataclasses.replace(recipe, augmentation=None, batch_size=4, folds=3)
    for fold in (0, 1, None):
        train(RunSettings(recipe, (rendered_pairs,), tmp_path / str(fold), fold=fold, pretrained=None))
    assert len(list((tmp_path / "caches").iterdir())) == 1


def test_masks_that_change_places_are_learned_as_they_are(
    rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bitmaps of one size, unpacked with one time: nothing but their bytes tells them apart."""
    caches, data = tmp_path / "caches", Path(shutil.copytree(rendered_pairs, tmp_path / "data"))
    monkeypatch.setenv("ISICRT_CACHE", str(caches))
    for path in data.glob("*/*"):
        with Image.open(path) as image:
            image.resize((40, 40)).save(path.with_suffix(".bmp"))
        path.unlink()
    recipe = Recipe("tiny", "unet", (Stage("tuned", 1, 1e-3, 1e-4),), decoder_channels=(8, 8, 8, 8), input_size=32)
    recipe = dataclasses.replace(recipe, augmentation=None, batch_size=4, folds=3)

    def cached_masks(out: str) -> list[bytes]:
        for path in data.glob("*/*"):
            os.utime(path, ns=(1, 1))
        before = set(caches.glob("*"))
        train(RunSettings(recipe, (data,), tmp_path / out, fold=None, pretrained=None))
        (made,) = set(caches.iterdir()) - before
        return [mask.tobytes() for mask in np.load(made / "masks.npy")]

    first = cached_masks("first")
    a, b = sorted((data / "masks").iterdir())[:2]
    a.rename(tmp_path / "a")
    b.rename(a)
    (tmp_path / "a").rename(b)
    assert cached_masks("second") == [first[1], first[0], *first[2:]]
    assert first[0] != first[1]


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _squeeze(path: Path) -> None:
    np.save(path, np.load(path)[:, ::2])


@pytest.mark.parametrize("name", ["images.npy", "masks.npy"])
@pytest.mark.parametrize("spoil", [Path.unlink, _empty, _cut, _squeeze])
def test_a_damaged_cache_is_made_again(
    rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, spoil: Callable[[Path], None]
) -> None:
    pairs = find_pairs(rendered_pairs)[:3]
    good = resized_pairs(pairs, 32, tmp_path)
    images, masks = np.array(good.images), np.array(good.masks)
    (place,) = tmp_path.iterdir()
    spoil(place / name)
    again = resized_pairs(pairs, 32, tmp_path)
    np.testing.assert_array_equal(again.images, images)
    np.testing.assert_array_equal(again.masks, masks)

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    spoil(place / name)
    monkeypatch.setattr(cache.shutil, "rmtree", refused)
    with pytest.raises(DataError, match=rf"{place.name}: .* is damaged .*\. Remove that folder"):
        resized_pairs(pairs, 32, tmp_path)


def test_a_cache_that_cannot_be_read_just_now_stays(
    rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = find_pairs(rendered_pairs)[:3]
    images = np.array(resized_pairs(pairs, 32, tmp_path).images)

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(cache.np, "load", refused)
        with pytest.raises(DataError, match=r"cannot be read: Too many open files\. Name another place"):
            resized_pairs(pairs, 32, tmp_path)
    monkeypatch.setattr(cache, "_fill", refused)
    np.testing.assert_array_equal(resized_pairs(pairs, 32, tmp_path).images, images)


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


def test_a_user_without_a_home_is_told_of_the_variable(rendered_pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(*_: Any) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    for variable in ("ISICRT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(DataError, match="Name a folder with ISICRT_CACHE, or train without a cache"):
        resized_pairs(find_pairs(rendered_pairs)[:1], 32)


def test_nothing_to_cache(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image"):
        resized_pairs([], 32, tmp_path)


def test_a_full_disk_is_told_before_anything_is_decoded(
    rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing into a map of a file that the disk has no room for would end the process (SIGBUS)."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    monkeypatch.setattr(cache, "read_image", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DataError, match=r"No space left on device\. Name another folder with ISICRT_CACHE"):
        resized_pairs(find_pairs(rendered_pairs), 32, tmp_path / "caches")
    assert list((tmp_path / "caches").iterdir()) == []


@pytest.mark.parametrize("there", [True, False])
def test_where_room_cannot_be_reserved_writing_says_that_there_is_none(
    rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    def unknown(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    if there:
        monkeypatch.setattr(os, "posix_fallocate", unknown, raising=False)
    else:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    pairs = find_pairs(rendered_pairs)
    assert resized_pairs(pairs[:1], 32, tmp_path).masks.shape == (1, 32, 32)
    script = (
        "import resource, sys; from pathlib import Path; from isicrt.trainer import cache, dataset\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "cache.resized_pairs(dataset.find_pairs(sys.argv[1]), 32, Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", f"import os; vars(os).pop('posix_fallocate', 0); {script}"]
    done = subprocess.run([*command, rendered_pairs, tmp_path / "caches"], capture_output=True, text=True, check=False)
    assert "DataError" in done.stderr
    assert "File too large. Name another folder with ISICRT_CACHE" in done.stderr
    assert list((tmp_path / "caches").iterdir()) == []


def test_only_what_dead_processes_left_is_removed(
    rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    key = "0123456789abcdef01234567"
    here, there = (hashlib.sha256(name.encode()).hexdigest()[:8] for name in (socket.gethostname(), "another"))
    names = {
        "dead": f".pairs-256-{key}.{here}.{dead.pid}.0a1b2c3d",
        "of another machine": f".pairs-128-{key}.{there}.{dead.pid}.0a1b2c3d",
        "ours, of a container before": f".pairs-64-{key}.{here}.{os.getpid()}.0a1b2c3d",
        "locked": f".pairs-32-{key}.{here}.{dead.pid}.ffffffff",
        "alive": f".pairs-32-{key}.{here}.{os.getppid()}.0a1b2c3d",
        "of another kind": f".pairs-mine.{dead.pid}",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / "images.npy").touch()
    link = f".pairs-16-{key}.{here}.{dead.pid}.0a1b2c3d"
    (tmp_path / link).symlink_to(tmp_path / names["of another kind"])
    kept = {names[why] for why in ("of another machine", "locked", "alive", "of another kind")} | {link}
    pairs = find_pairs(rendered_pairs)
    with (tmp_path / names["locked"] / "images.npy").open("r+b") as held:
        assert lock(held.fileno())
        with monkeypatch.context() as other:
            other.setattr(os, "getuid", lambda: -1)
            resized_pairs(pairs[:1], 32, tmp_path)
            assert len(list(tmp_path.glob(".pairs-*"))) == len(names) + 1
        resized_pairs(pairs[:2], 32, tmp_path)
        assert {path.name for path in tmp_path.glob(".pairs-*")} == kept
