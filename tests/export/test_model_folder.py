"""A folder of models at any moment of a build: never a new ONNX file beside an old plan, never a file in part."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from isicrt.engine.errors import BuildError
from isicrt.engine.plan import read_plan, write_plan
from isicrt.export import model_folder
from isicrt.export.model_folder import replace_both, trial_file
from tests.tiny_models import plan_card


def _fill(folder: Path, what: str) -> None:
    card = plan_card(source=what)
    replace_both(folder / "model.onnx", what.encode(), folder / "model.plan", card, what.encode())


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _plan(folder: Path) -> bytes:
    return read_plan(folder / "model.plan")[1]


def test_both_are_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    _fill(tmp_path / "new", "old")
    _fill(tmp_path / "new", "new")
    assert _names(tmp_path / "new") == ["model.onnx", "model.plan"]
    assert ((tmp_path / "new" / "model.onnx").read_bytes(), _plan(tmp_path / "new")) == (b"new", b"new")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    ("step", "onnx", "plan"),
    [
        (0, b"old", b"old"),  # the old plan cannot be moved
        (1, b"old", b"old"),  # the ONNX file cannot take its place
        (2, b"new", None),  # the plan cannot
    ],
)
@pytest.mark.parametrize("done", [False, True])
def test_what_ends_a_build_between_two_renames_leaves_no_mixture(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    onnx: bytes,
    plan: bytes | None,
    error: BaseException,
    done: bool,
) -> None:
    """`done`: the step itself was done, and the interruption came just after it."""
    _fill(tmp_path, "old")
    steps = []

    def failing(name: str) -> Any:
        real = getattr(Path, name)

        def move(path: Path, target: Path) -> Path:
            if path.name not in ("model.plan", "model.onnx") or not path.exists():
                return real(path, target)  # type: ignore[no-any-return]
            steps.append(name)
            if len(steps) == step + 1:
                if done:
                    real(path, target)
                raise error
            return real(path, target)  # type: ignore[no-any-return]

        return move

    monkeypatch.setattr(model_folder, "write_plan", lambda path, card, engine: path.write_bytes(b"new"))
    monkeypatch.setattr(Path, "rename", failing("rename"))
    monkeypatch.setattr(Path, "replace", failing("replace"))
    with pytest.raises(BuildError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        _fill(tmp_path, "new")
    monkeypatch.undo()
    if isinstance(error, OSError):
        name = "model.onnx" if step == 1 else "model.plan"
        assert str(caught.value) == f"{tmp_path / name}: cannot be written: No space left on device"
    found = (tmp_path / "model.onnx").read_bytes()
    kept = (tmp_path / "model.plan").read_bytes() if (tmp_path / "model.plan").exists() else None
    if done and step == 1:
        assert (found, kept) == (b"new", None)
    elif done and step == 2:
        assert (found, kept) == (b"new", b"new")
    else:
        assert found == onnx
        assert (kept is None) == (plan is None)
        assert plan is None or _plan(tmp_path) == plan
    assert not [name for name in _names(tmp_path) if name.startswith(".")]


@pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")
def test_two_builds_into_one_folder_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(what: str) -> None:
        card = plan_card(onnx_sha256=hashlib.sha256(what.encode()).hexdigest())
        replace_both(tmp_path / "model.onnx", what.encode(), tmp_path / "model.plan", card, what.encode())

    other, real, states = threading.Thread(target=fill, args=("b",)), Path.replace, []

    def replace(path: Path, target: Path) -> Path:
        """The other build begins just before this one's ONNX file takes its place."""
        if threading.current_thread() is other or path.name != "model.onnx":
            return real(path, target)
        other.start()
        other.join(0.5)
        moved = real(path, target)
        states.append((other.is_alive(), (tmp_path / "model.plan").exists()))
        return moved

    fill("old")
    monkeypatch.setattr(Path, "replace", replace)
    fill("a")
    other.join()
    assert states == [(True, False)]  # it waits; the new ONNX file has no plan beside it yet
    assert ((tmp_path / "model.onnx").read_bytes(), _plan(tmp_path)) == (b"b", b"b")
    assert _names(tmp_path) == ["model.onnx", "model.plan"]


def test_an_old_plan_that_somebody_takes_away_meanwhile_is_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(tmp_path, "old")
    real = Path.rename

    def rename(path: Path, target: Path) -> Path:
        path.unlink()
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    _fill(tmp_path, "new")
    assert _plan(tmp_path) == b"new"


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
@pytest.mark.parametrize(("limit", "name"), [(100, "model.onnx"), (3000, "model.plan")])
def test_a_file_that_does_not_fit_is_named_and_the_old_ones_stay(tmp_path: Path, limit: int, name: str) -> None:
    import resource

    _fill(tmp_path, "old")
    content, soft = b"x" * 1000, resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, soft[1]))
    try:
        with pytest.raises(BuildError) as error:
            replace_both(tmp_path / "model.onnx", content, tmp_path / "model.plan", plan_card(), content * 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
        signal.signal(signal.SIGXFSZ, before)
    assert str(error.value) == f"{tmp_path / name}: cannot be written: File too large"
    assert ((tmp_path / "model.onnx").read_bytes(), _plan(tmp_path)) == (b"old", b"old")
    assert _names(tmp_path) == ["model.onnx", "model.plan"]


def test_a_folder_in_the_plans_place_is_nobodys_to_remove(tmp_path: Path) -> None:
    (tmp_path / "model.plan").mkdir()
    (tmp_path / "model.plan" / "mine").touch()
    with pytest.raises(BuildError, match=r"model\.plan: cannot be written: a folder is in its place"):
        _fill(tmp_path, "new")
    assert _names(tmp_path) == ["model.plan"]
    assert _names(tmp_path / "model.plan") == ["mine"]


def test_where_nothing_can_be_tried_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(BuildError, match=r"file.trial\.plan: cannot be written: "),
        trial_file(tmp_path / "file", "trial.plan"),
    ):
        pass


_KILLED = """
import os, signal
from pathlib import Path
from isicrt.export.model_folder import trial_file
with trial_file(Path({out!r}), "model.onnx") as path:
    path.write_bytes(b"x" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")
def test_what_a_killed_build_left_goes_and_what_a_living_one_has_stays(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _KILLED.format(out=str(tmp_path))], check=False)
    (left,) = _names(tmp_path)
    for name in (".isicrt-journal.jsonl", ".isicrt-0123456789ab"):
        (tmp_path / name).mkdir()
    with trial_file(tmp_path, "a") as first:
        assert left not in _names(tmp_path)
        with trial_file(tmp_path, "b") as second:
            assert first.parent.is_dir()
            assert second.parent.is_dir()
    assert _names(tmp_path) == [".isicrt-0123456789ab", ".isicrt-journal.jsonl"]


@pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")
@pytest.mark.parametrize(("beside", "back"), [(b"old", True), (b"new", False)])
def test_the_plan_that_a_killed_build_had_moved_goes_back_to_its_own_onnx_file(
    tmp_path: Path, beside: bytes, back: bool
) -> None:
    hidden = tmp_path / ".isicrt-0123456789abcdef"
    hidden.mkdir()
    (hidden / "lock").touch()
    write_plan(hidden / "old.plan", plan_card(onnx_sha256=hashlib.sha256(b"old").hexdigest()), b"plan")
    (tmp_path / "model.onnx").write_bytes(beside)
    with trial_file(tmp_path, "model.onnx"):
        assert (tmp_path / "model.plan").exists() is back
    assert _names(tmp_path) == ["model.onnx", *(["model.plan"] if back else [])]
    if back:  # one that is there stays
        write_plan(tmp_path / "model.plan", plan_card(), b"another")
        hidden.mkdir()
        (hidden / "lock").touch()
        write_plan(hidden / "old.plan", plan_card(onnx_sha256=hashlib.sha256(b"old").hexdigest()), b"plan")
        with trial_file(tmp_path, "model.onnx"):
            assert _plan(tmp_path) == b"another"
