"""One training at a time in a run folder."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from isicrt.engine.errors import SettingsError
from isicrt.trainer import locks
from isicrt.trainer.loop import Listener, train
from isicrt.trainer.recipe import Recipe, Stage
from isicrt.trainer.run import RunSettings

TINY = Recipe(
    name="tiny",
    architecture="unet",
    stages=(Stage("tuned", epochs=1, decoder_lr=1e-3, encoder_lr=1e-4),),
    decoder_channels=(8, 8, 8, 8),
    input_size=32,
    batch_size=4,
    augmentation=None,
    folds=3,
)


class Second(Listener):
    """Starts another training in the folder as soon as the first has begun, and when it has a checkpoint."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings, self.refused = settings, []

    def _start(self, **changes: Any) -> None:
        with pytest.raises(SettingsError) as refused:
            train(dataclasses.replace(self.settings, **changes))
        self.refused.append(str(refused.value))

    def started(self, *_: Any) -> None:
        self._start(seed=2)

    def finished(self, _: Any) -> None:
        self._start(resume=self.settings.out / "last.pt")


def test_a_second_training_in_a_run_folder_is_refused(rendered_pairs: Path, tmp_path: Path) -> None:
    settings = RunSettings(TINY, (rendered_pairs,), tmp_path / "runs" / "one", pretrained=None)
    second = Second(settings)
    train(settings, second)
    owner = f"process {os.getpid()} on "
    assert len(second.refused) == 2
    assert all(
        text.startswith(f"{settings.out}: another training is running in this folder ({owner}")
        and text.endswith("name another folder with --out")
        for text in second.refused
    )
    assert not (settings.out / locks.LOCK).exists()
    train(dataclasses.replace(settings, resume=settings.out / "last.pt"))  # given back


def test_a_folder_is_locked_again_after_an_error_and_an_empty_one_goes(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "one"
    for _ in range(2):
        with pytest.raises(IsADirectoryError), locks.locked_run(out):
            out.read_bytes()
        assert not out.parent.exists()
    out.mkdir(parents=True)
    with locks.locked_run(out):
        pass
    assert out.is_dir()  # it was there before


def test_a_file_that_a_killed_run_left_locks_nothing(tmp_path: Path) -> None:
    (tmp_path / locks.LOCK).write_text('{"pid": 1, "host": "here"}')
    with locks.locked_run(tmp_path):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_stops_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    with locks.locked_run(tmp_path), locks.locked_run(tmp_path):
        pass


def test_a_folder_that_is_never_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)
    with (
        pytest.raises(SettingsError, match="the run folder cannot be written: No such file"),
        locks.locked_run(tmp_path / "out"),
    ):
        pass
