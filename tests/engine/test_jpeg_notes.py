"""What is noted of a JPEG that is decoded all the same."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import pytest
import simplejpeg

from isicrt.engine import read_process
from isicrt.engine.gpu_batch import read_chain_image
from isicrt.engine.images import decode_image
from isicrt.engine.isolation import ImageDecoder
from isicrt.engine.jpeg_notes import DAMAGED, TURNED, damage, exif_note, turned_note
from isicrt.engine.ledger import Ledger
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.outcome import Outcome
from isicrt.engine.pipeline import run_jobs
from isicrt.engine.read_process import ReadAll
from isicrt.engine.sources import find_jobs
from tests.engine.hostile_files import CASES, JPEG, PNG, WHOLE

SIZE = (32, 32)
HALF = JPEG[: len(JPEG) // 2] + b"\xff\xd9"
ZEROED = JPEG[: len(JPEG) // 2] + bytes(400) + JPEG[len(JPEG) // 2 + 400 :]


@pytest.mark.parametrize(
    ("data", "warning"), [(HALF, "premature end of data segment"), (ZEROED, "extraneous bytes before marker")]
)
def test_a_damaged_jpeg_is_decoded_and_noted(tmp_path: Path, data: bytes, warning: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with ImageDecoder("always") as decoder:  # in a process
        for decoded in (decode_image(path, SIZE), decoder(path, SIZE)):
            assert decoded.native_size == WHOLE
            assert decoded.note is not None
            assert decoded.note.startswith(DAMAGED)
            assert warning in decoded.note


@pytest.mark.parametrize("name", [name for name, (_, expected) in CASES.items() if not isinstance(expected, str)])
def test_a_whole_image_is_not_called_damaged(tmp_path: Path, name: str) -> None:
    path = tmp_path / "image"
    CASES[name][0](path)
    assert DAMAGED not in (decode_image(path, SIZE).note or "")


def _exif(order: str, entries: list[tuple[int, int, int]], first: int = 8) -> bytes:
    head = b"II*\0" if order == "<" else b"MM\0*"
    rows = [struct.pack(order + "HHIHH", tag, kind, 1, value, 0) for tag, kind, value in entries]
    return b"Exif\0\0" + head + struct.pack(order + "IH", first, len(rows)) + b"".join(rows)


_TAG = (0x0112, 3, 6)


@pytest.mark.parametrize(
    ("exif", "found"),
    [
        pytest.param(_exif("<", [_TAG]), ["EXIF orientation 6"], id="little_endian"),
        pytest.param(_exif(">", [(0x0100, 4, 1), _TAG]), ["EXIF orientation 6"], id="big_endian_and_another_tag"),
        pytest.param(_exif("<", [(0x0112, 3, 1)]), [], id="upright"),
        pytest.param(_exif("<", [(0x0112, 3, 9)]), [], id="no_such_orientation"),
        pytest.param(_exif("<", [(0x0112, 2, 6)]), [], id="a_text"),
        pytest.param(_exif("<", [_TAG], first=2**32 - 1), [], id="leads_out"),
        pytest.param(_exif("<", [_TAG])[:-6], [], id="cut"),
        pytest.param(b"Exif\0\0II", [], id="short"),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_an_orientation_is_found(exif: bytes, found: list[str]) -> None:
    assert exif_note(exif) == found
    jpeg = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + JPEG[2:]
    assert turned_note(jpeg) == turned_note(memoryview(jpeg)) == found


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("orientation")])
def test_an_image_that_a_viewer_turns_is_noted(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    CASES[name][0](path)
    number = int(Path(name).stem[-1])
    note = f"{TURNED}{number}" if 2 <= number <= 8 else None
    assert decode_image(path, SIZE).note == note
    if path.suffix == ".jpg":  # for the GPU, which needs none here
        assert read_chain_image(path, SIZE).note == note
        answer = pickle.loads(pickle.dumps(ReadAll(1 << 20, 0.0)([str(path)]), protocol=5))
        with_process = read_process._image(path, answer[0])
        assert with_process is not None
        assert with_process.note == note


@pytest.mark.parametrize("data", [JPEG, b"\xff\xd8\xff", b"\xff\xd8\xff\xe1\xff\xffExif", JPEG[:2] + b"\xff\xe0" * 99])
def test_no_orientation(data: bytes) -> None:
    assert turned_note(data) == []


@pytest.mark.parametrize("in_stages", [False, True])
def test_a_note_goes_into_outcome_and_journal(darkness_onnx: Path, tmp_path: Path, in_stages: bool) -> None:
    (tmp_path / "in").mkdir()
    for name, data in (("half.jpg", HALF), ("whole.jpg", JPEG), ("whole.png", PNG)):
        (tmp_path / "in" / name).write_bytes(data)
    jobs = find_jobs(tmp_path / "in", tmp_path / "out", on_clash="extension")
    for skipped in (False, True):
        outcomes: list[Outcome] = []
        with (
            OnnxRuntime(darkness_onnx, threads=1) as runtime,
            Ledger(tmp_path / "out", jobs, model={"sha256": "0"}, settings={}) as ledger,
        ):
            threads = 1 if in_stages else None
            run_jobs(jobs, runtime, on_outcome=outcomes.append, ledger=ledger, decode_threads=threads)
        assert all(outcome.skipped == skipped for outcome in outcomes)
        notes = {outcome.job.image.name: outcome.note for outcome in outcomes}
        assert notes.pop("half.jpg") == f"{DAMAGED}Corrupt JPEG data: premature end of data segment"
        assert set(notes.values()) == {None}


def test_padding_before_the_end_marker_is_no_damage(tmp_path: Path) -> None:
    warning = "Corrupt JPEG data: {} extraneous bytes before marker 0xd9"
    assert damage(warning.format(3)) is None
    assert damage(warning.format(458)) == warning.format(458)
    assert damage(warning.format(3).replace("d9", "c4")) is not None
    padded = JPEG[:-2] + bytes(12) + JPEG[-2:]
    with pytest.raises(ValueError, match="extraneous bytes before marker 0xd9"):
        simplejpeg.decode_jpeg(padded, "RGB")
    (tmp_path / "a.jpg").write_bytes(padded)
    assert decode_image(tmp_path / "a.jpg", SIZE).note is None
