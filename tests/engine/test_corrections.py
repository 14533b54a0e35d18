"""Masks that somebody corrected by hand are kept; what is cut or damaged is made again."""

from __future__ import annotations

import errno
import io
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isicrt.benchmarks.rendered import render
from isicrt.engine.corrections import Correction, find_correction, is_as_written
from isicrt.engine.errors import ImageError
from isicrt.engine.masks import encode_png
from isicrt.engine.outcome import KEPT, KEPT_DRAWN, KEPT_OUTDATED, Outcome
from isicrt.engine.segmenter import Segmenter
from tests.journal_lines import read_journal

SIZE = (40, 60)
MASK = Path("out/a.png")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images in ``in``."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for n, name in enumerate("ab"):
        Image.fromarray(render(n, SIZE)[0]).save(f"in/{name}.jpg")
    return tmp_path


def _run(segmenter: Segmenter, images: str = "in", **options: object) -> dict[str, Outcome]:
    ended: dict[str, Outcome] = {}
    segmenter.segment_folder(images, "out", on_outcome=lambda o: ended.update({o.job.image.stem: o}), **options)
    return ended


def _drawn(size: tuple[int, int] = SIZE) -> np.ndarray:
    """A mask whose upper quarter is lesion: no model draws that."""
    mask = np.zeros(size, bool)
    mask[: size[0] // 4] = True
    return mask


def _as_rgb() -> None:
    Image.fromarray(_drawn()).convert("RGBA").save(MASK)


def _as_jpeg() -> None:
    Image.fromarray(_drawn()).convert("L").save(MASK, format="JPEG", quality=100)


def _as_link() -> None:
    Path("drawn.png").write_bytes(encode_png(_drawn()))
    MASK.unlink()
    MASK.symlink_to(Path("drawn.png").resolve())


CORRECTIONS = pytest.mark.parametrize(
    "correct",
    [
        pytest.param(lambda: MASK.write_bytes(encode_png(_drawn())), id="png"),
        pytest.param(_as_rgb, id="rgba"),
        pytest.param(_as_jpeg, id="jpeg_of_that_name"),
        pytest.param(_as_link, id="link"),
    ],
)


@CORRECTIONS
def test_a_mask_that_was_corrected_is_kept(here: Path, segmenter: Segmenter, correct: Callable[[], object]) -> None:
    first = _run(segmenter)
    assert {name: o.kept for name, o in first.items()} == {"a": None, "b": None}
    correct()
    drawn = MASK.read_bytes()
    for _ in range(2):
        again = _run(segmenter)
        assert (again["a"].skipped, again["a"].kept, again["a"].error) == (True, KEPT, None)
        assert (again["a"].native_size, again["a"].lesion_fraction) == (SIZE, 0.25)
        assert (again["b"].skipped, again["b"].kept) == (True, None)
        assert MASK.read_bytes() == drawn
    noted = [line.get("kept") for line in read_journal("out") if line.get("status") == "skipped"]
    assert noted == [KEPT, KEPT]
    assert _run(segmenter, existing="overwrite")["a"].kept is None
    assert MASK.read_bytes() != drawn
    assert _run(segmenter)["a"].kept is None


def test_a_mask_that_became_a_link_to_itself_is_as_it_was(here: Path, segmenter: Segmenter) -> None:
    """As `git annex add` and DVC make of it."""
    _run(segmenter)
    moved = Path("annex.png").resolve()
    MASK.rename(moved)
    MASK.symlink_to(moved)
    written = moved.read_bytes()
    assert (_run(segmenter)["a"].skipped, _run(segmenter)["a"].kept) == (True, None)
    again = _run(segmenter, mask_bits=8)["a"]
    assert (again.skipped, again.error) == (False, None)
    assert not MASK.is_symlink()
    assert MASK.read_bytes() != written == moved.read_bytes()


def _other_image() -> None:
    Image.fromarray(render(7, (50, 70))[0]).save("in/a.jpg")


def _image_gone_for_a_run(segmenter: Segmenter) -> None:
    """It fails once, for a reason that is not its own."""
    Path("in/a.jpg").rename("a.jpg")
    Path("in/a.jpg").symlink_to("nowhere")
    assert "No such file" in (_run(segmenter)["a"].error or "")
    Path("in/a.jpg").unlink()
    Path("a.jpg").rename("in/a.jpg")


@pytest.mark.parametrize(
    ("change", "options", "kept"),
    [
        pytest.param(lambda _: None, {"mask_bits": 8}, KEPT_OUTDATED, id="other_settings"),
        pytest.param(lambda _: _other_image(), {}, KEPT_OUTDATED, id="other_image"),
        pytest.param(lambda _: Path("in/a.jpg").write_bytes(b"damaged"), {}, KEPT_OUTDATED, id="damaged_image"),
        pytest.param(lambda _: os.utime("in/a.jpg", (1, 1)), {}, KEPT, id="image_touched"),
        pytest.param(lambda _: None, {"overlays": "overlays"}, KEPT, id="overlays_wanted"),
        pytest.param(_image_gone_for_a_run, {}, KEPT, id="image_gone_for_a_run"),
    ],
)
def test_a_correction_outlives_what_changes_around_it(
    here: Path, segmenter: Segmenter, change: Callable[[Segmenter], object], options: dict, kept: str
) -> None:
    _run(segmenter)
    drawn = encode_png(_drawn())
    MASK.write_bytes(drawn)
    change(segmenter)
    ended = _run(segmenter, **options)["a"]
    assert (ended.error, ended.skipped, ended.kept) == (None, True, kept)
    assert MASK.read_bytes() == drawn


def _as_classes(level: int, kind: type[np.unsignedinteger[Any]] = np.uint8) -> bytes:
    file = io.BytesIO()
    Image.fromarray(_drawn().astype(kind) * kind(level)).save(file, format="PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("drawn", "reason"),
    [
        pytest.param(encode_png(_drawn((20, 30))), "is 30 x 20 pixels, its image 60 x 40: save it", id="another_size"),
        pytest.param(_as_classes(1), "its highest value is 1, and lesion is above 128: multiply by 255", id="0_and_1"),
        pytest.param(
            _as_classes(255, np.uint16), "highest value is 255 of 65535, and lesion is above 32896", id="16_bits"
        ),
    ],
)
@pytest.mark.parametrize("options", [{}, {"mask_bits": 8}])
def test_what_somebody_saved_and_is_no_mask_fails_and_is_not_lost(
    here: Path, segmenter: Segmenter, drawn: bytes, reason: str, options: dict
) -> None:
    _run(segmenter)
    written = MASK.read_bytes()
    MASK.write_bytes(drawn)
    for _ in range(2):
        ended = _run(segmenter, **options)
        assert ended["a"].error is not None
        assert ended["a"].error.startswith(f"{MASK}: ")
        assert reason in ended["a"].error
        assert "or remove it to have it made again" in ended["a"].error
        assert ended["b"].error is None
        assert MASK.read_bytes() == drawn
    MASK.unlink()
    assert _run(segmenter)["a"].error is None
    assert MASK.read_bytes() == written
    MASK.write_bytes(drawn)
    assert _run(segmenter, existing="overwrite")["a"].error is None
    assert MASK.read_bytes() == written


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EIO, None])
def test_a_correction_that_cannot_be_read_now_is_not_lost(
    here: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    """None: somebody is writing it."""
    _run(segmenter)
    drawn = encode_png(_drawn())
    MASK.write_bytes(drawn)
    read = os.read

    def fails(file: int, size: int) -> bytes:
        if not os.path.samestat(os.fstat(file), MASK.stat()):
            return read(file, size)
        if number is not None:
            raise OSError(number, os.strerror(number))
        os.utime(MASK)
        return read(file, size)

    with monkeypatch.context() as patched:
        patched.setattr(os, "read", fails)
        for options in ({}, {"mask_bits": 8}):
            error = _run(segmenter, **options)["a"].error or ""
            reason = os.strerror(number) if number is not None else "changed while it was read"
            assert error.startswith(f"{MASK}: the mask that stands there cannot be read ({reason}) and is left alone")
            assert MASK.read_bytes() == drawn
    assert _run(segmenter)["a"].kept == KEPT


def test_a_mask_as_written_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, png = tmp_path / "a.png", encode_png(_drawn())
    entry = {"mask_size": len(png), "mask_crc": zlib.crc32(png)}
    assert not is_as_written(path, SIZE, entry)
    path.write_bytes(png)
    assert is_as_written(path, SIZE, entry)

    def fails(_: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(ImageError, match="make it readable, or move it away"):
        is_as_written(path, SIZE, entry)


@pytest.mark.parametrize("options", [{}, {"retry_failed": True}])
def test_a_mask_that_was_drawn_for_an_image_that_failed(here: Path, segmenter: Segmenter, options: dict) -> None:
    good, drawn = Path("in/a.jpg").read_bytes(), encode_png(_drawn())
    Path("in/a.jpg").write_bytes(b"damaged")
    assert _run(segmenter)["a"].error is not None
    MASK.write_bytes(drawn)
    Path("in/c.jpg").write_bytes(good)
    for image in (b"damaged", b"damaged", good):
        Path("in/a.jpg").write_bytes(image)
        ended = _run(segmenter, **options)
        assert (ended["a"].error, ended["a"].skipped, ended["a"].kept) == (None, True, KEPT_DRAWN)
        assert (ended["a"].native_size, ended["a"].lesion_fraction) == (SIZE, 0.25)
        assert ended["c"].error is None
        assert MASK.read_bytes() == drawn
    MASK.unlink()
    assert not _run(segmenter, **options)["a"].skipped


@pytest.mark.parametrize("options", [{}, {"retry_failed": True}])
def test_what_stands_at_the_place_of_a_mask_that_failed(here: Path, segmenter: Segmenter, options: dict) -> None:
    good = Path("in/a.jpg").read_bytes()
    Path("in/a.jpg").unlink()
    Path("in/a.jpg").symlink_to("nowhere")
    assert "No such file" in (_run(segmenter)["a"].error or "")
    MASK.write_bytes(b"notes")
    assert "No such file" in (_run(segmenter, **options)["a"].error or "")
    Path("in/a.jpg").unlink()
    Path("in/a.jpg").write_bytes(good)
    for _ in range(2):
        error = _run(segmenter, **options)["a"].error or ""
        assert error == f"{MASK}: isicrt did not make it, and it is no whole image: move it away"
        assert MASK.read_bytes() == b"notes"
    MASK.unlink()
    assert _run(segmenter)["a"].error is None


def test_a_mask_of_0_throughout_is_a_correction(here: Path, segmenter: Segmenter) -> None:
    _run(segmenter)
    MASK.write_bytes(_as_classes(0))
    assert (_run(segmenter)["a"].kept, _run(segmenter)["a"].lesion_fraction) == (KEPT, 0.0)


def test_a_correction_is_no_mask_of_another_image(here: Path, segmenter: Segmenter) -> None:
    _run(segmenter)
    drawn = encode_png(_drawn())
    MASK.write_bytes(drawn)
    Path("other").mkdir()
    Path("other/a.jpg").write_bytes(bytes(Path("in/a.jpg").stat().st_size))
    for _ in range(2):  # the failure must not make it the mask of the image that failed
        assert "is the mask of another image" in (_run(segmenter, "other")["a"].error or "")
        assert MASK.read_bytes() == drawn


def _flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def _with_chunk(data: bytes) -> bytes:
    """With a comment, as paint programs write one."""
    body = b"tEXtComment\0drawn by hand"
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:33] + chunk + data[33:]


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        pytest.param(lambda png: png, Correction(SIZE, 0.25), id="whole"),
        pytest.param(_with_chunk, Correction(SIZE, 0.25), id="a_comment"),
        pytest.param(lambda png: png + b"\n", Correction(SIZE, 0.25), id="something_behind_it"),
        pytest.param(lambda png: b"II*\0" + png, Correction(None, None), id="a_tiff_is_not_looked_into"),
        pytest.param(lambda png: png[:-12], None, id="no_end"),
        pytest.param(lambda png: png[:-4], None, id="no_last_crc"),
        pytest.param(lambda png: png[:40], None, id="cut"),
        pytest.param(lambda png: _flipped(png, len(png) - 20), None, id="a_bit"),
        pytest.param(lambda png: bytes(len(png)), None, id="zeroed"),
        pytest.param(lambda png: b"", None, id="empty"),
        pytest.param(lambda png: b"drawn by hand", None, id="no_image"),
    ],
)
def test_what_is_a_correction(tmp_path: Path, made: Callable[[bytes], bytes], expected: Correction | None) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(made(encode_png(_drawn())))
    entry = {"mask_size": 1, "mask_crc": 1}
    assert not is_as_written(path, SIZE, entry)
    assert find_correction(path, SIZE, entry) == expected
    assert find_correction(path, SIZE, {}) is None  # a journal that does not say what was written


def test_a_correction_that_is_too_large_to_be_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of an image for which --max-megapixels was raised."""
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(_drawn()))
    monkeypatch.setattr("isicrt.engine.images.MAX_PIXELS", 100)
    assert find_correction(path, SIZE, {"mask_crc": 1}) == Correction(None, None)


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs there")
def test_a_correction_of_any_size_and_a_fifo(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(_drawn((20, 30))))
    assert find_correction(path, None, {"mask_crc": 1}) == Correction((20, 30), 0.25)
    path.unlink()
    os.mkfifo(path)
    assert find_correction(path, None, {"mask_crc": 1}) is None


def test_masks_that_are_as_the_journal_says_are_not_decoded(
    here: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it was looked at more closely")

    _run(segmenter)
    monkeypatch.setattr("isicrt.engine.ledger.find_correction", never)
    assert all(o.skipped for o in _run(segmenter).values())
    assert not any(o.skipped for o in _run(segmenter, mask_bits=8).values())
    assert all(o.error is None for o in _run(segmenter, mask_bits=8).values())


def _stored(mask: np.ndarray) -> bytes:
    """A 1-bit PNG that is not compressed: its length does not tell what it shows."""
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(mask, axis=1))
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", mask.shape[1], mask.shape[0], 1, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 0)),
    )
    chunks = (*parts, (b"IEND", b""))
    framed = [struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def _noted(data: bytes) -> dict[str, int]:
    return {"mask_size": len(data), "mask_crc": zlib.crc32(data)}


def test_a_correction_of_the_same_length_is_one(here: Path) -> None:
    written, drawn = _stored(~_drawn()), _stored(_drawn())
    assert len(written) == len(drawn)
    MASK.parent.mkdir()
    MASK.write_bytes(written)
    assert is_as_written(MASK, SIZE, _noted(written))
    MASK.write_bytes(drawn)
    assert not is_as_written(MASK, SIZE, _noted(written))
    assert find_correction(MASK, SIZE, _noted(written)) == Correction(SIZE, 0.25)


def test_a_torn_mask_of_the_same_length_is_made_again(here: Path, segmenter: Segmenter) -> None:
    _run(segmenter)
    data = MASK.read_bytes()
    torn = bytearray(data)
    torn[len(torn) // 2] ^= 0xFF
    MASK.write_bytes(torn)
    assert not _run(segmenter)["a"].skipped
    assert MASK.read_bytes() == data


def test_what_was_noted_of_a_file_that_is_no_mask_does_not_make_it_one(here: Path) -> None:
    """A journal can come from anywhere."""
    mask = encode_png(_drawn())
    MASK.parent.mkdir()
    for data in (mask[:-1] + b"?", mask[:9], b"GIF" + mask[3:], encode_png(_drawn((SIZE[0] + 1, SIZE[1])))):
        MASK.write_bytes(data)
        assert not is_as_written(MASK, SIZE, _noted(data))
