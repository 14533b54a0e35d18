"""Where commands write their results."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from isicrt.cli.result_files import ResultFile, check_results, write_result
from isicrt.engine.errors import DataError, SettingsError
from isicrt.engine.lock import lock

needs_full = pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")


def test_a_result_replaces_an_older_one_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    path.write_text("older")
    check_results({"--json": path})
    assert path.read_text() == "older"
    write_result(path, "newer \udcff")
    assert path.read_bytes() == b"newer \xff"
    assert capsys.readouterr().out == f"Wrote {path}\n"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_behind_a_link_is_written_and_the_link_stays(tmp_path: Path) -> None:
    link, file = tmp_path / "latest.json", tmp_path / "monday.json"
    file.touch()
    link.symlink_to(file.name)
    write_result(link, "x", quiet=True)
    assert link.is_symlink()
    assert file.read_text() == "x"


@needs_full
def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    link = tmp_path / "full"  # a link: the device itself would not come back
    link.symlink_to("/dev/full")
    check_results({"--json": link})
    with pytest.raises(DataError, match="No space left"):
        write_result(link, "x")
    assert Path("/dev/full").is_char_device()
    assert link.is_symlink()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    check_results({"--json": pipe})
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_result(pipe, "through", quiet=True)
    reader.join(timeout=20)
    assert read == ["through"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.json", "x/../a.json"], "--0 and --1: both are x/../a.json; one would overwrite the other"),
        (["link.json", "a.json"], "--0 and --1: both are a.json"),
        (["/dev/stdout", "/dev/fd/1"], "--0 and --1: both are /dev/fd/1"),
        (["none/a.json"], "--0 none/a.json: there is no folder none"),
        (["made/more/a.json"], "there is no folder made/more"),
        (["astray.json"], "--0 astray.json: there is no folder /.*/nowhere to write it to"),
        (["x"], "it is a folder"),
        (["made"], "it is a folder"),
        (["photo.jpg"], "that is an image's name"),
        (["photo.PNG"], "that is an image's name"),
        (["best.pt"], "that is a model's name"),
        (["best.PLAN"], "that is a model's name"),
        ([".isicrt-journal.jsonl"], "isicrt keeps its own files under such names"),
        (["/dev/fd/999999"], "cannot be written: Bad file descriptor"),
        (["photo.csv"], "that is an image's name"),
        (["journal.csv"], "isicrt keeps its own files under such names"),
        (["list.txt"], "--0 list.txt: that is what is read here, and the result would replace it"),
        (["of-it.csv"], "that is what is read here"),
        (["-"], "the standard output is /dev/stdout"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is_made(
    files: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x").mkdir()
    Path("link.json").symlink_to("a.json")
    Path("astray.json").symlink_to("nowhere/a.json")
    Path("photo.csv").symlink_to("x/1.jpg")
    Path("journal.csv").symlink_to("x/.isicrt-journal.jsonl")
    Path("list.txt").touch()
    Path("of-it.csv").symlink_to("list.txt")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SettingsError, match=message):
        check_results(
            {f"--{n}": Path(file) for n, file in enumerate(files)},
            [Path("made")],
            reads=(Path("nothing"), None, Path("list.txt")),
        )
    assert sorted(tmp_path.rglob("*")) == before


def test_two_results_may_go_to_one_device() -> None:
    check_results({"--json": Path("/dev/null"), "--csv": Path("/dev/null")})


def test_what_is_read_again_is_no_device() -> None:
    with pytest.raises(SettingsError, match="--table /dev/stdout: it is read again later, and must be a file"):
        check_results({"--table": Path("/dev/stdout")}, streams=False)


def test_a_picture_may_be_named_like_one(tmp_path: Path) -> None:
    check_results({"--json": tmp_path / "a.json"}, pictures={"--sheet": tmp_path / "a.png"})
    with pytest.raises(SettingsError, match=r"--sheet .*a\.onnx: that is a model's name"):
        check_results({}, pictures={"--sheet": tmp_path / "a.onnx"})
    with pytest.raises(SettingsError, match="--json and --sheet: both are"):
        check_results({"--json": tmp_path / "a"}, pictures={"--sheet": tmp_path / "a"})


def test_a_folder_is_made(tmp_path: Path) -> None:
    figures = tmp_path / "new" / "figures"
    check_results({"--csv": figures / "a.csv", "--json": tmp_path / "new" / "a.json"}, [figures], make=False)
    assert not (tmp_path / "new").exists()
    check_results({"--csv": figures / "a.csv", "--json": tmp_path / "new" / "a.json"}, [figures])
    assert figures.is_dir()
    (tmp_path / "file").touch()
    inside = tmp_path / "file" / "figures"
    with pytest.raises(SettingsError, match=f"^{re.escape(str(inside))}: cannot be written: Not a directory"):
        check_results({}, [inside])


_KILLED = """
import os, sys
from pathlib import Path
from isicrt.cli.result_files import ResultFile

file = ResultFile(Path(sys.argv[1]))
file.write("half of a line, and " + "more" * 10_000)
os.kill(os.getpid(), 9)
"""
posix = pytest.mark.skipif(os.name == "nt", reason="Windows renames no open file")


@posix
def test_what_a_killed_run_left_the_next_one_replaces(tmp_path: Path) -> None:
    list_file = tmp_path / "list.csv"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", _KILLED, str(list_file)], check=False)
    left = list(tmp_path.iterdir())
    assert [path.name.startswith(".isicrt-") for path in left] == [True]
    assert left[0].stat().st_size > 0
    file = ResultFile(list_file)
    file.write("whole\n")
    file.finish()
    file.close()
    assert list_file.read_text() == "whole\n"
    assert list(tmp_path.iterdir()) == [list_file]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_runs_at_a_time_each_write_a_whole_result(tmp_path: Path, order: tuple[int, int]) -> None:
    list_file = tmp_path / "list.csv"
    files = [ResultFile(list_file) for _ in range(2)]
    for n, file in enumerate(files):
        file.write(f"run {n}\n")
    for n in order:
        files[n].finish()
        another = ResultFile(list_file)  # begins where that one has ended, and is given up
        another.write("another")
        files[n].close()
        another.close()
        assert list_file.read_text() == f"run {n}\n"
    assert list(tmp_path.iterdir()) == [list_file]


@posix
def test_what_lies_under_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    list_file, others = tmp_path / "list.csv", tmp_path / "others"
    others.write_text("kept")
    subprocess.run([sys.executable, "-c", _KILLED, str(list_file)], check=False)
    (left,) = (path for path in tmp_path.iterdir() if path != others)
    left.unlink()
    left.symlink_to(others)
    file = ResultFile(list_file)
    file.write("whole\n")
    file.finish()
    file.close()
    assert (list_file.read_text(), others.read_text()) == ("whole\n", "kept")
    assert left.is_symlink()


@posix
def test_a_file_that_got_its_name_before_it_was_locked_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list_file = tmp_path / "list.csv"
    first = ResultFile(list_file)
    first.write("first\n")

    def lock_late(file: int) -> bool:
        if not list_file.exists():
            first.finish()
            first.close()
        return lock(file)

    monkeypatch.setattr("isicrt.engine.lock.lock", lock_late)
    second = ResultFile(list_file)
    assert list_file.read_text() == "first\n"
    second.write("second\n")
    second.finish()
    second.close()
    assert list_file.read_text() == "second\n"


@posix
def test_a_result_has_the_mode_of_a_new_file_whatever_a_killed_run_left(tmp_path: Path) -> None:
    list_file, new = tmp_path / "list.csv", tmp_path / "new"
    subprocess.run([sys.executable, "-c", _KILLED, str(list_file)], check=False)
    (left,) = tmp_path.iterdir()
    left.chmod(0o600)
    new.touch()
    with closing(ResultFile(list_file)) as file:
        file.finish()
    assert list_file.stat().st_mode == new.stat().st_mode
    assert not left.exists()


@posix
def test_what_may_not_be_removed_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sticky folder, such as /tmp, one may neither remove nor rename what somebody else left."""
    list_file = tmp_path / "list.csv"
    subprocess.run([sys.executable, "-c", _KILLED, str(list_file)], check=False)
    (left,) = tmp_path.iterdir()
    before, unlink = left.read_bytes(), Path.unlink

    def refuse(path: Path, *, missing_ok: bool = False) -> None:
        if path == left:  # the tests may run as root, who may
            raise PermissionError(errno.EPERM, "Operation not permitted")
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    with closing(ResultFile(list_file)) as file:
        file.write("whole\n")
        file.finish()
    assert (list_file.read_text(), left.read_bytes()) == ("whole\n", before)
    assert len(list(tmp_path.iterdir())) == 2


@posix
def test_without_locks_no_run_writes_where_another_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isicrt.engine.lock._lock", _no_locks)
    test_two_runs_at_a_time_each_write_a_whole_result(tmp_path, (0, 1))


def _no_locks(_: int) -> None:
    raise OSError(errno.ENOLCK, "no locks here")


def test_names_of_files_are_written_whatever_they_hold_on_this_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "getfilesystemencodeerrors", lambda: "surrogatepass")  # as on Windows
    write_result(tmp_path / "a.json", "a\ud83d.jpg", quiet=True)
    with closing(ResultFile(tmp_path / "b.csv")) as file:
        file.write("a\ud83d.jpg")
        file.finish()
    for name in ("a.json", "b.csv"):
        assert (tmp_path / name).read_text("utf-8", "surrogatepass") == "a\ud83d.jpg"
