from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from isicrt.benchmarks import (
    ceilings,
    decoding,
    gpu_host,
    gpu_parity,
    gpu_queue,
    gpu_speed,
    memory,
    plans,
    result_file,
    robustness,
    tradeoff,
)
from isicrt.benchmarks.agreement import Agreement, ImageAgreement
from isicrt.benchmarks.peers.__main__ import command as race
from isicrt.benchmarks.result_file import check_places, write_whole
from isicrt.engine.errors import SettingsError
from isicrt.engine.input_names import MODEL

COMMANDS = {
    "ceilings": (ceilings.main, "--images IMAGES --model MODEL"),
    "decoding": (decoding.command, "MODEL --data PAIRS"),
    "gpu_host": (gpu_host.main, "--images IMAGES --model MODEL"),
    "gpu_parity": (gpu_parity.command, "MODEL --images IMAGES"),
    "gpu_queue": (gpu_queue.command, "MODEL"),
    "gpu_speed": (gpu_speed.command, "MODEL"),
    "memory": (memory.command, "--images IMAGES --model MODEL"),
    "peers": (race, "--images IMAGES --model MODEL"),
    "plans": (plans.command, "MODEL"),
    "robustness": (robustness.command, "MODEL --data PAIRS"),
    "tradeoff": (tradeoff.main, "MODEL --data PAIRS"),
}


@pytest.mark.parametrize("module", COMMANDS)
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere/r.json", "r.json: there is no folder"),
        ("IMAGE", "that is an image's name, and the result would replace it"),
        ("MODEL", "that is a model's name, and the result would replace it"),
    ],
)
def test_the_place_is_looked_at_before_the_work(
    module: str, place: str, message: str, darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path
) -> None:
    model, image = tmp_path / "model.onnx", tmp_path / "a.jpg"
    shutil.copy(darkness_onnx, model)
    shutil.copy(next((rendered_pairs / "images").iterdir()), image)
    before = model.read_bytes(), image.read_bytes()
    words = {"MODEL": model, "PAIRS": rendered_pairs, "IMAGES": rendered_pairs / "images", "IMAGE": image}
    command, arguments = COMMANDS[module]
    given = [str(words.get(word, word)) for word in arguments.split()]
    result = CliRunner().invoke(command, [*given, "--json", str(words.get(place, tmp_path / place))])
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert len(result.output.splitlines()) < 8, "nothing was measured"
    assert (model.read_bytes(), image.read_bytes()) == before


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


@pytest.mark.parametrize(
    ("module", "options", "printed"),
    [
        ("peers", "--runs 1 --peers opencv-onnx", "| isicrt segment |"),
        ("decoding", "--limit 1 --max-change 1", "| segment | whole |"),
        ("gpu_host", "--count 8 --own-count 8 --processes 1 --repeats 1", "| on threads |"),
        ("gpu_parity", "", "mean Jaccard index of the masks 1.00000"),
        ("plans", "--precision fp32", "fp32, default: no builder here"),
    ],
)
def test_figures_are_printed_where_the_file_cannot_be_written(
    module: str,
    options: str,
    printed: str,
    darkness_onnx: Path,
    rendered_pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(result_file, "replace_file", full)
    agreement = Agreement((ImageAgreement("a", 1.0, 0, 64),))
    monkeypatch.setattr(gpu_parity, "compare", lambda *_: (agreement, {"gpu": 1}))
    monkeypatch.setattr(plans, "build_row", lambda *options: plans.Row(*options[:3], "no builder here"))
    words = {"MODEL": darkness_onnx, "PAIRS": rendered_pairs, "IMAGES": rendered_pairs / "images"}
    command, arguments = COMMANDS[module]
    given = [str(words.get(word, word)) for word in f"{arguments} {options}".split()]
    result = CliRunner().invoke(command, [*given, "--json", str(tmp_path / "r.json")])
    assert result.exit_code == 1
    assert printed in result.output
    assert "r.json: No space left on device" in result.output


def test_a_link_is_judged_by_where_it_leads_and_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere" / "r.json")
    with pytest.raises(SettingsError, match=r"link\.json: there is no folder .*nowhere to write it to"):
        check_places(tmp_path / "link.json")
    (tmp_path / "model.json").symlink_to(tmp_path / "a.onnx")
    with pytest.raises(SettingsError, match=r"a\.onnx: that is a model's name"):
        check_places(tmp_path / "model.json")
    with pytest.raises(SettingsError, match="is a folder"):
        check_places(tmp_path)


def test_a_model_may_be_named_like_one_where_that_is_what_is_written(tmp_path: Path) -> None:
    check_places(tmp_path / "a.onnx", but=MODEL)
    with pytest.raises(SettingsError, match=r"a\.png: that is an image's name"):
        check_places(tmp_path / "a.png", but=MODEL)
