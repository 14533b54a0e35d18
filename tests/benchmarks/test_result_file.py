from __future__ import annotations

import errno
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from isicrt.benchmarks import ceilings, memory, result_file, robustness, tradeoff
from isicrt.benchmarks.peers.__main__ import command as race
from isicrt.benchmarks.result_file import check_places, write_whole
from isicrt.engine.errors import SettingsError


@pytest.mark.parametrize(
    "command", [ceilings.main, memory.command, race, robustness.command, tradeoff.main], ids=lambda c: str(c.callback)
)
def test_a_folder_that_is_not_there_is_found_out_before_the_work(
    command: click.Command, darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path
) -> None:
    arguments = ["--images", str(rendered_pairs / "images"), "--model", str(darkness_onnx)]
    if command in (robustness.command, tradeoff.main):
        arguments = [str(darkness_onnx), "--data", str(rendered_pairs)]
    result = CliRunner().invoke(command, [*arguments, "--json", str(tmp_path / "nowhere" / "r.json")])
    assert result.exit_code == 2, result.output
    assert "r.json: there is no folder" in result.output
    assert len(result.output.splitlines()) < 8, "nothing was measured"


def test_a_folder_that_takes_nothing_is_found_out_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_places(None, tmp_path / "r.json", Path("/dev/stdout"))
    assert list(tmp_path.iterdir()) == []

    def full(dir: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(result_file.tempfile, "TemporaryFile", full)
    with pytest.raises(SettingsError, match=r"r\.json: cannot be written: Read-only"):
        check_places(tmp_path / "r.json")


def test_a_link_is_followed_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_whole(tmp_path / "link", "1")
    assert (tmp_path / "file").read_text() == "1"
    assert (tmp_path / "link").is_symlink()
    write_whole(Path(os.devnull), "1")
    assert not Path(os.devnull).is_file()


def test_figures_are_printed_where_the_file_cannot_be_written(
    darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(result_file, "replace_file", full)
    images = str(rendered_pairs / "images")
    arguments = ["--images", images, "--model", str(darkness_onnx), "--runs", "1", "--peers", "opencv-onnx"]
    result = CliRunner().invoke(race, [*arguments, "--json", str(tmp_path / "r.json")])
    assert result.exit_code == 1
    assert "| isicrt segment |" in result.output
    assert "r.json: No space left on device" in result.output


def test_a_link_is_judged_by_where_it_leads_and_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere" / "r.json")
    with pytest.raises(SettingsError, match=r"link\.json: there is no folder .*nowhere to write it to"):
        check_places(tmp_path / "link.json")
    with pytest.raises(SettingsError, match="is a folder"):
        check_places(tmp_path)
