"""Where commands write their results."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from isicrt.cli.result_files import check_results, write_result
from isicrt.engine.errors import DataError, SettingsError

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
        (["x"], "it is a folder"),
        (["made"], "it is a folder"),
        (["photo.jpg"], "that is an image's name"),
        (["photo.PNG"], "that is an image's name"),
        ([".isicrt-journal.jsonl"], "isicrt keeps its own files under such names"),
        (["/dev/fd/999999"], "cannot be written: Bad file descriptor"),
        (["-"], "the standard output is /dev/stdout"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is_made(
    files: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x").mkdir()
    Path("link.json").symlink_to("a.json")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SettingsError, match=message):
        check_results({f"--{n}": Path(file) for n, file in enumerate(files)}, [Path("made")])
    assert sorted(tmp_path.rglob("*")) == before


def test_two_results_may_go_to_one_device() -> None:
    check_results({"--json": Path("/dev/null"), "--csv": Path("/dev/null")})


def test_what_is_read_again_is_no_device() -> None:
    with pytest.raises(SettingsError, match="--table /dev/stdout: it is read again later, and must be a file"):
        check_results({"--table": Path("/dev/stdout")}, streams=False)


def test_a_picture_may_be_named_like_one(tmp_path: Path) -> None:
    check_results({"--json": tmp_path / "a.json"}, pictures={"--sheet": tmp_path / "a.png"})
    with pytest.raises(SettingsError, match="--json and --sheet: both are"):
        check_results({"--json": tmp_path / "a"}, pictures={"--sheet": tmp_path / "a"})


def test_a_folder_is_made(tmp_path: Path) -> None:
    figures = tmp_path / "new" / "figures"
    check_results({"--csv": figures / "a.csv", "--json": tmp_path / "new" / "a.json"}, [figures], make=False)
    assert not (tmp_path / "new").exists()
    check_results({"--csv": figures / "a.csv", "--json": tmp_path / "new" / "a.json"}, [figures])
    assert figures.is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="cannot be written"):
        check_results({}, [tmp_path / "file" / "figures"])
