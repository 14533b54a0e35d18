from __future__ import annotations

import hashlib
import os
import re
import struct
from pathlib import Path

import pytest

from isicrt.engine import plan as plan_module
from isicrt.engine.errors import ModelError
from isicrt.engine.plan import MAGIC, read_plan, read_plan_file, write_plan
from tests.tiny_models import darkness_card, plan_card

PLAN = bytes(range(256)) * 4
BUILDER = {"flavour": "tensorrt-rtx", "version": "1.7.1", "source": "runs/a b/best.pt", "profile": [1, 8, 16]}
HEADER_BYTES = len(MAGIC) + 12 + 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.plan"
    write_plan(path, darkness_card(precision="fp16", builder=BUILDER), PLAN)
    return path


def test_card_and_plan_come_back(path: Path) -> None:
    card, plan = read_plan(path)
    assert plan == PLAN
    assert card.builder == BUILDER | {"plan_sha256": hashlib.sha256(PLAN).hexdigest()}
    assert card.replace(builder={}) == darkness_card(precision="fp16")


@pytest.mark.skipif(os.name == "nt", reason="Windows replaces no file that is open")
def test_the_hash_of_a_file_is_that_of_what_was_read(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another takes its name while it is being read: neither its size nor its bytes count."""
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_plan_file(path).digest == expected
    opened, other = Path.open, tmp_path / "other.plan"
    write_plan(other, plan_card(), b"another, which is shorter")

    def replaced(self: Path, *arguments: object) -> object:
        file = opened(self, *arguments)  # type: ignore[call-overload]
        if self == path and other.exists():
            other.replace(path)
        return file

    monkeypatch.setattr(Path, "open", replaced)
    assert (read_plan_file(path).plan, other.exists()) == (PLAN, False)
    write_plan(other, plan_card(), b"another, which is shorter")
    found = read_plan_file(path)
    assert found.plan == b"another, which is shorter"
    assert found.digest != expected


def test_only_the_plan_is_left_in_the_folder(path: Path) -> None:
    write_plan(path, plan_card(), b"another")
    assert [p.name for p in path.parent.iterdir()] == ["model.plan"]
    assert read_plan(path)[1] == b"another"


def test_every_truncation_is_found(path: Path) -> None:
    whole = path.read_bytes()
    for length in [*range(HEADER_BYTES + 8), len(whole) - len(PLAN), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"truncated|not a plan made by|is empty"):
            read_plan(path)


def test_every_altered_byte_is_found(path: Path) -> None:
    whole = path.read_bytes()
    for position in range(len(whole)):
        altered = bytearray(whole)
        altered[position] ^= 0x40
        path.write_bytes(altered)
        with pytest.raises(ModelError, match=r"altered|truncated|not a plan made by|plan format"):
            read_plan(path)


def test_bytes_behind_the_end_are_found(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ModelError, match="altered: 1 bytes follow"):
        read_plan(path)


def test_an_altered_plan_names_both_hashes_and_the_rebuild(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    recorded = hashlib.sha256(PLAN).hexdigest()
    found = hashlib.sha256(PLAN[:-1] + bytes([PLAN[-1] ^ 1])).hexdigest()
    with pytest.raises(ModelError) as error:
        read_plan(path)
    for part in (
        str(path),
        recorded,
        found,
        "isicrt build-engine 'runs/a b/best.pt' --fp16 --batch-size 1,8,16 --target tensorrt-rtx --out ",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("content", [b"ftrt and a bare engine", b"\x08\x0a an ONNX file", MAGIC[:5]])
def test_something_else_is_not_a_plan(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.plan"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"other\.plan: not a plan made by .*isicrt build-engine"):
        read_plan(path)


def test_another_format_is_named(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(MAGIC[:-1] + b"\x07" + data[len(MAGIC) :])
    with pytest.raises(ModelError, match="plan format 7; this isicrt reads 1"):
        read_plan(path)


@pytest.mark.parametrize("lengths", [(1 << 31, 10), (0, 10), (10, 0), (10, 1 << 60)])
def test_a_header_that_claims_too_much_is_refused_before_it_is_read(tmp_path: Path, lengths: tuple[int, int]) -> None:
    path = tmp_path / "bomb.plan"
    path.write_bytes(MAGIC + struct.pack("<IQ", *lengths) + bytes(32))
    with pytest.raises(ModelError, match=f"claims {lengths[0]} \\+ {lengths[1]} bytes"):
        read_plan(path)


def test_a_card_of_another_isicrt_is_explained(tmp_path: Path) -> None:
    text = darkness_card().to_json().replace('"format": 1', '"format": 9').encode()
    path = tmp_path / "new.plan"
    path.write_bytes(MAGIC + struct.pack("<IQ", len(text), 1) + hashlib.sha256(text).digest() + text + b"p")
    with pytest.raises(ModelError, match=r"new\.plan: model card: field 'format' is 9"):
        read_plan(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.plan: cannot be read"):
        read_plan(tmp_path / "none.plan")


def test_an_empty_plan_and_a_card_that_is_too_large_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="do not fit"):
        write_plan(tmp_path / "a.plan", darkness_card(), b"")
    monkeypatch.setattr(plan_module, "MAX_CARD_BYTES", 100)
    with pytest.raises(ModelError, match="do not fit"):
        write_plan(tmp_path / "a.plan", darkness_card(), PLAN)
    assert not list(tmp_path.iterdir())


def test_where_the_card_is_lost_the_onnx_file_beside_it_is_named(path: Path, darkness_onnx: Path) -> None:
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(ModelError, match=r"with: isicrt build-engine CHECKPOINT --fp16 \(or --fp32, and the options"):
        read_plan(path)
    beside = path.with_suffix(".onnx")
    beside.write_bytes(darkness_onnx.read_bytes())
    with pytest.raises(ModelError, match=f"with: isicrt build-engine {beside} --fp32 \\(and the options"):
        read_plan(path)


def test_an_altered_card_names_both_hashes(path: Path) -> None:
    data = bytearray(path.read_bytes())
    recorded = bytes(data[HEADER_BYTES - 32 : HEADER_BYTES]).hex()
    data[HEADER_BYTES + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        ModelError, match=f"altered: its model card's SHA-256 is [0-9a-f]{{64}}, the header says {recorded}"
    ):
        read_plan(path)


def test_a_truncated_plan_whose_card_is_whole_names_its_exact_command(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"--fp16 --batch-size 1,8,16 --target tensorrt-rtx --out \S+$"):
        read_plan(path)


def test_an_empty_file_and_an_onnx_file_are_called_what_they_are(tmp_path: Path, darkness_onnx: Path) -> None:
    path = tmp_path / "a.plan"
    path.touch()
    with pytest.raises(ModelError, match=r"a\.plan: is empty\. Build it again with: isicrt build-engine"):
        read_plan(path)
    path.write_bytes(darkness_onnx.read_bytes())
    with pytest.raises(ModelError, match=r"a\.plan: is an ONNX file and no plan: rename it to a\.onnx$"):
        read_plan(path)


def test_where_only_the_hash_in_the_header_was_altered_the_card_is_believed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES - 3] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"altered: its model card's SHA-256 .* --batch-size 1,8,16 --target"):
        read_plan(path)
    data[HEADER_BYTES - 32 : HEADER_BYTES] = bytes(32)  # nobody can say which of the two was altered
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"altered: its model card's SHA-256 .* isicrt build-engine CHECKPOINT"):
        read_plan(path)


def test_a_card_of_another_isicrt_gives_one_piece_of_advice(tmp_path: Path) -> None:
    text = darkness_card().to_json().replace('"format": 1', '"format": 2').encode()
    path = tmp_path / "new.plan"
    path.write_bytes(MAGIC + struct.pack("<IQ", len(text), 1) + hashlib.sha256(text).digest() + text + b"p")
    with pytest.raises(ModelError) as error:
        read_plan(path)
    assert str(error.value).endswith("Build the model again, or install the isicrt that made it.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flavour": None}, "built by None; this isicrt knows tensorrt, tensorrt-rtx"),
        ({"flavour": "tensorrt-next"}, "built by 'tensorrt-next'; this isicrt knows"),
        ({"flavour": ["tensorrt"]}, r"built by \['tensorrt'\]"),
        ({"flavour": {}}, r"built by {}"),
        ({"version": None}, "version must be text, not None"),
        ({"version": "1\x1b[2J"}, "version must be text"),
        ({"profile": 4}, "profile must be three batch sizes, not 4"),
        ({"profile": "abc"}, "profile must be three batch sizes, not 'abc'"),
        ({"profile": [[1], None]}, "profile must be three batch sizes"),
        ({"profile": [1, True, 2]}, "profile must be three batch sizes"),
        ({"profile": [8, 4, 2]}, "profile must be three batch sizes"),
        ({"options": "--opt-level 5"}, "options must be a list of texts"),
        ({"options": [1]}, "options must be a list of texts"),
        ({"options": ["--opt-level"]}, "options must be those of `isicrt build-engine`"),
        ({"options": ["--opt-level", "9"]}, "options must be those of"),
        ({"options": ["--opt-level", "5\n"]}, "options must be a list of texts"),
        ({"options": ["--out", "/etc"]}, r"options must be those of .*, not \['--out', '/etc'\]"),
        ({"options": ["--workspace", "--help"]}, "options must be those of"),
        ({"options": ["--compute-capability", "8.6,"]}, "options must be those of"),
        ({"source": "--help"}, "source must be text that does not begin with -, not '--help'"),
        ({"compute_capabilities": [8.9]}, "compute_capabilities must be a list of texts"),
        ({"source": 3}, "source must be text"),
        ({"onnx_sha256": 3}, "onnx_sha256 must be text"),
        ({"gpu": {}}, "gpu must be text"),
        ({"compute_capability": 8.9}, "compute_capability must be text"),
    ],
)
def test_what_a_builder_wrote_is_checked(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "model.plan"
    write_plan(path, plan_card(**change), PLAN)
    with pytest.raises(ModelError, match=message) as error:
        read_plan(path)
    assert re.search("Build it again with: isicrt build-engine (best.pt|CHECKPOINT) --fp32 ", str(error.value))


def test_no_plan_is_int8(tmp_path: Path) -> None:
    path = tmp_path / "model.plan"
    write_plan(path, plan_card().replace(precision="int8"), PLAN)
    with pytest.raises(ModelError, match=r"plan: its card says int8, .* isicrt build-engine best\.pt --fp16 \(or"):
        read_plan(path)


def test_advice_is_looked_for_only_where_something_is_wrong(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hashes the ONNX file beside the plan, which may be large."""

    def never(*_: object) -> str:
        raise AssertionError("the plan is as it should be")

    monkeypatch.setattr(plan_module, "rebuild_advice", never)
    monkeypatch.setattr(plan_module, "advice_without_builder", never)
    assert read_plan(path)[1] == PLAN
