"""The report's offline copies on a disk that is full."""

from __future__ import annotations

import errno
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from isicrt.engine.errors import TrainingError
from isicrt.trainer.dataset import find_pairs
from isicrt.trainer.offline import augment_offline
from isicrt.trainer.recipe import Augmentation


def test_a_full_disk_is_an_error_that_names_the_run_and_the_next_try_goes_on(
    rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run" / "copies"
    make = partial(augment_offline, find_pairs(rendered_pairs)[:3], out, copies=1, size=32, seed=0)
    save, saved = Image.Image.save, list[Path]()

    def fills(image: Image.Image, path: Path, **options: Any) -> None:
        if len(saved) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(path)
        save(image, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", fills)
        with pytest.raises(TrainingError, match=rf"{out}: the augmented copies could not be saved: .*No space left"):
            make(augmentation=Augmentation())
    assert all(copy.image.is_file() and copy.mask.is_file() for copy in make(augmentation=Augmentation()))
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"could not be saved: .*Not a directory"):
        augment_offline([], tmp_path / "file" / "copies", copies=1, size=32, seed=0, augmentation=Augmentation())
