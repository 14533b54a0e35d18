"""Every option that names a result, of every command: one check, before anything is made, and one way to write."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import pytest
from click.testing import CliRunner, Result

from isicrt.cli.main import group
from tests.conftest import make_splits

_COMMANDS = {
    "segment": ["segment", "pairs/images", "--out", "made", "--model", "model.onnx"],
    "evaluate": ["evaluate", "model.onnx", "--data", "pairs"],
    "bench": ["bench", "--quick", "--model", "model.onnx", "--repeats", "1", "--batch-size", "1"],
    "check-parity": ["check-parity", "model.onnx", "model.onnx", "--images", "pairs/images"],
    "audit": ["data", "audit", "--data", "pairs/images", "--threads", "1"],
    "reproduce": ["reproduce", "--data", "splits", "--encoder-weights", "none", "--epochs", "2", "--out", "made"],
}
_OPTIONS = [
    *(("segment", option) for option in ("--json", "--csv", "--report")),
    *(("evaluate", option) for option in ("--json", "--csv")),
    *(("bench", option) for option in ("--json", "--csv", "--markdown", "--html")),
    ("check-parity", "--json"),
    ("audit", "--json"),
    *(("reproduce", option) for option in ("--table", "--markdown")),
]


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_splits(tmp_path_factory.mktemp("isic"))


@pytest.fixture(autouse=True)
def here(
    rendered_pairs: Path, splits: Path, tmp_path: Path, darkness_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in ("images", "masks"):
        Path("pairs", kind).mkdir(parents=True)
        for file in sorted((rendered_pairs / kind).iterdir())[:3]:
            shutil.copy(file, Path("pairs", kind))
    Path("splits").symlink_to(splits)
    shutil.copy(darkness_onnx, "model.onnx")


def _run(command: str, *options: str) -> Result:
    result = CliRunner().invoke(group, [*_COMMANDS[command], *options])
    assert "Traceback" not in result.output
    return result


def _is_refused(command: str, option: str, place: str, message: str) -> None:
    before = sorted(Path().rglob("*"))
    result = _run(command, option, place)
    assert result.exit_code == 2, result.output
    assert f"{option} {place}: {message}" in " ".join(result.output.split())
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(("command", "option"), _OPTIONS)
def test_a_dash_is_refused(command: str, option: str) -> None:
    _is_refused(command, option, "-", "the standard output is /dev/stdout")


@pytest.mark.parametrize(("command", "option"), _OPTIONS)
@pytest.mark.parametrize(("place", "kind"), [("m.png", "an image"), ("model.onnx", "a model")])
def test_an_image_or_a_model_is_not_replaced(command: str, option: str, place: str, kind: str) -> None:
    _is_refused(command, option, place, f"that is {kind}'s name, and the result would replace it")


@pytest.mark.parametrize(("command", "option"), [pair for pair in _OPTIONS if pair[0] != "reproduce"])
def test_a_folder_that_nobody_makes(command: str, option: str) -> None:
    _is_refused(command, option, "missing/x", "there is no folder missing to write it to")


@pytest.mark.parametrize(("command", "option"), [*_OPTIONS, ("audit", "--sheet")])
def test_a_place_that_cannot_be_written_is_said_of_the_option(
    command: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("sealed").mkdir()

    def refuse(*, dir: Path) -> IO[bytes]:  # the tests may run as root, whom no mode stops
        if dir.name == "sealed":
            raise PermissionError(errno.EACCES, "Permission denied", str(dir / "tmpwqwm2382"))
        return TemporaryFile(dir=dir)

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    result = _run(command, option, "sealed/x")
    assert result.exit_code == 2, result.output
    assert f"Error: {option} sealed/x: cannot be written: Permission denied" in " ".join(result.output.split())


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no /dev/stdout here")
@pytest.mark.parametrize("option", ["--table", "--markdown"])
def test_what_is_read_again_is_no_device(option: str) -> None:
    _is_refused("reproduce", option, "/dev/stdout", "it is read again later, and must be a file")


@pytest.mark.parametrize(
    ("command", "option"),
    [
        *(pair for pair in _OPTIONS if pair[0] in ("segment", "evaluate")),
        *(("bench", "--json"), ("check-parity", "--json"), ("audit", "--json"), ("audit", "--sheet")),
    ],
)
def test_what_a_link_leads_to_is_written(command: str, option: str) -> None:
    name = "link.png" if option == "--sheet" else "link"
    Path(name).symlink_to("there")
    if command == "audit":  # so that there is a pair to draw
        shutil.copy(next(Path("pairs/images").iterdir()), "pairs/images/again.jpg")
    result = _run(command, option, name)
    assert result.exit_code == 0, result.output
    assert Path(name).is_symlink()
    assert Path("there").stat().st_size > 0


@pytest.mark.parametrize(
    ("command", "makes", "option", "place"),
    [
        ("segment", ["--overlay", "new/more"], "--csv", "new/more/x"),
        ("segment", ["--overlay", "new/more"], "--json", "new/x"),
        ("segment", ["--overlay", "new/more"], "--report", "new/more/x"),
        ("segment", [], "--csv", "made/x"),
        ("evaluate", ["--figures", "new/more"], "--csv", "new/more/x"),
        ("evaluate", ["--figures", "new/more"], "--json", "new/x"),
        ("reproduce", ["--rows", "none", "--score", "--figures", "new"], "--table", "new/x"),
        ("reproduce", ["--rows", "none"], "--markdown", "new/x"),
    ],
)
def test_a_folder_that_the_command_makes(command: str, makes: list[str], option: str, place: str) -> None:
    result = _run(command, *makes, option, place)
    assert result.exit_code == 0, result.output
    assert Path(place).stat().st_size > 0


@pytest.mark.parametrize("option", ["--json", "--csv", "--report"])
def test_no_result_replaces_the_list_of_images(option: str) -> None:
    listed = Path("list.txt")
    listed.write_text("pairs/images/ISIC_0000000.jpg\n")
    arguments = ["segment", str(listed), "--out", "made", "--model", "model.onnx", option, str(listed)]
    refused = CliRunner().invoke(group, arguments)
    assert refused.exit_code == 2
    assert "that is what is read here" in refused.output
    assert listed.read_text() == "pairs/images/ISIC_0000000.jpg\n"
    assert not Path("made").exists()
