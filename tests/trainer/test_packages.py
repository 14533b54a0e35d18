"""What a run lacks is said before its data are looked at."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from isicrt.engine.errors import DataError, IsicrtError, MissingDependencyError, SettingsError
from isicrt.trainer.loop import train
from isicrt.trainer.pipelines import needs_dali
from isicrt.trainer.recipe import Augmentation, SoftLabels, Stage
from tests.trainer.test_loop import settings, tiny

PLAIN = tiny(augmentation=None)
SMALLER = (Stage("small", 1, 1e-3, input_size=32), Stage("large", 1, 1e-3))


@pytest.fixture
def no_dali(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia.dali", "nvidia.dali.pipeline"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("no_dali")
@pytest.mark.parametrize(
    ("system", "kind", "message"),
    [
        ("Linux", MissingDependencyError, r"NVIDIA DALI is needed .*pip install"),
        ("Windows", SettingsError, "NVIDIA DALI, which exists for Linux only.*WSL2.*`augmentation: null`"),
    ],
)
def test_a_missing_dali_is_told_before_the_data_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, kind: type[IsicrtError], message: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(tiny(name="teacher").to_dict()))
    taught = tiny(augmentation=None, soft_labels=SoftLabels(str(tmp_path / "teacher.yaml"), parts=2))
    for changes in ({}, {"recipe": PLAIN, "cache": False}, {"recipe": taught}):
        with pytest.raises(kind, match=message):
            train(settings(tmp_path / "nowhere", tmp_path / "run", **changes))
    for left in (PLAIN, tiny(augmentation=None, stages=SMALLER)):  # which need none
        with pytest.raises(DataError, match="nowhere: not a data set"):
            train(settings(tmp_path / "nowhere", tmp_path / "run", recipe=left))


def test_a_missing_matplotlib_is_told_before_the_data_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib.backends.backend_agg", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match="matplotlib is needed"):
        train(settings(tmp_path / "nowhere", tmp_path / "run"))


@pytest.mark.parametrize(
    ("changes", "how", "needed"),
    [
        ({}, {"cache": True}, True),
        ({"augmentation": None}, {"cache": True}, False),
        ({"augmentation": None}, {"cache": False}, True),
        ({"augmentation": Augmentation(), "augmented_copies": 1}, {"cache": True}, True),
        ({"augmentation": Augmentation(), "augmented_copies": 1}, {"cache": True, "copied": True}, False),
        ({"augmentation": None, "stages": SMALLER}, {"cache": True}, False),
        ({"augmentation": None, "stages": SMALLER, "soft_labels": SoftLabels("t")}, {"cache": True}, True),
        ({"augmentation": None, "soft_labels": SoftLabels("t")}, {"cache": True}, False),
    ],
)
def test_what_dali_is_needed_for(changes: dict[str, Any], how: dict[str, bool], needed: bool) -> None:
    assert needs_dali(tiny(**changes), **how) is needed


@pytest.mark.usefixtures("no_dali")
def test_what_needs_no_dali_trains_without(rendered_pairs: Path, tmp_path: Path) -> None:
    train(settings(rendered_pairs, tmp_path / "run", recipe=tiny(augmentation=None, stages=SMALLER, ema_decay=0)))
