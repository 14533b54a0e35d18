"""A file that is replaced while it is read is refused or not seen: no card meets other weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from isicrt.engine.errors import ModelError
from isicrt.export.build import Destination, build, open_source
from isicrt.export.parity import Sample
from isicrt.export.quantisation import quantise_file
from isicrt.export.second_look import look_again_below
from isicrt.export.tensorrt_build import Profile
from isicrt.export.views import average_file
from tests.tiny_models import write_darkness_model


@pytest.fixture
def replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in whose place another one lies when it has been read once."""
    path, other = tmp_path / "model.onnx", tmp_path / "other.onnx"
    write_darkness_model(path)
    write_darkness_model(other, name="other")
    model = onnx.load(str(other))
    model.graph.name = "other"
    onnx.save(model, other)
    read = Path.read_bytes

    def read_once(self: Path) -> bytes:
        content = read(self)
        if self == path and other.exists():
            other.replace(path)
        return content

    monkeypatch.setattr(Path, "read_bytes", read_once)
    return path


def test_a_second_look_is_put_on_what_was_read(replaced: Path) -> None:
    made = onnx.load_from_string(look_again_below(replaced, 0.9))
    assert made.graph.name == "darkness"


@pytest.mark.parametrize(
    "work",
    [
        lambda path, samples: open_source(path, "x"),
        lambda path, samples: average_file(path, 4),
        lambda path, samples: quantise_file(path, [samples[0].pixels], samples),
    ],
    ids=["build", "views", "int8"],
)
def test_another_file_is_noticed(
    replaced: Path, samples: list[Sample], work: Callable[[Path, list[Sample]], object]
) -> None:
    with pytest.raises(ModelError, match=r"model\.onnx: was changed since it was first read"):
        work(replaced, samples)


def test_what_needs_no_conversion_is_written_as_it_was_read(tmp_path: Path) -> None:
    write_darkness_model(path := tmp_path / "model.onnx")
    before = path.read_bytes()
    source = open_source(path, "x")
    path.write_bytes(b"another")
    built = build(
        source,
        [Sample("black", np.zeros((64, 64, 3), np.uint8))],
        precision="fp32",
        profile=Profile(1, 1, 1),
        destination=Destination(None, None, ""),
        out=tmp_path / "out",
        images="one",
        report=lambda stage, share: None,
    )
    assert built.onnx.read_bytes() == before
