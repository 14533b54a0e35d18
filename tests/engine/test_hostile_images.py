"""A folder of hostile files in one run: each gets the mask or the reason that the table says, and the run goes on."""

from __future__ import annotations

import io
import random
import re
import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isicrt.engine import images
from isicrt.engine.errors import ImageError
from isicrt.engine.images import DamagedImageError, decode_image, read_mask
from isicrt.engine.isolation import ImageDecoder
from isicrt.engine.journal import read_name
from isicrt.engine.ledger import Ledger
from isicrt.engine.model_identity import mask_settings
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.outcome import Outcome
from isicrt.engine.pipeline import run_jobs
from isicrt.engine.sources import find_jobs
from tests.engine.hostile_files import CASES, JPEG, PNG, make_folder, png
from tests.journal_lines import read_journal

SIZE = (32, 32)


@pytest.fixture(scope="module")
def ended(darkness_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Outcomes by name of one run over all cases; its journal must agree."""
    root = tmp_path_factory.mktemp("hostile")
    make_folder(root / "in")
    jobs = find_jobs(root / "in", root / "out", on_clash="extension")
    outcomes: list[Outcome] = []
    with OnnxRuntime(darkness_onnx, threads=1) as runtime:
        settings = mask_settings(runtime.card, None, 1)
        with Ledger(root / "out", jobs, model={"sha256": "0"}, settings=settings) as ledger:
            run_jobs(jobs, runtime, on_outcome=outcomes.append, ledger=ledger, decode_threads=1, decode_timeout=120)
    lines = [line for line in read_journal(root / "out") if "status" in line]
    assert sorted(read_name(line["image"]) for line in lines) == sorted(CASES)
    assert {read_name(line["image"]): line["status"] == "done" for line in lines} == {
        outcome.job.image.name: outcome.error is None for outcome in outcomes
    }
    return {outcome.job.image.name: outcome for outcome in outcomes}


def test_the_table_is_long_enough() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", CASES, ids=ascii)
def test_every_file_ends_as_the_table_says(ended: dict[str, Outcome], name: str) -> None:
    expected, outcome = CASES[name][1], ended[name]
    if isinstance(expected, str):
        assert outcome.error is not None
        assert outcome.error.startswith(f"{outcome.job.image}: ")
        assert re.search(expected, outcome.error)
        assert not outcome.job.mask.exists()
    else:
        assert outcome.error is None
        assert outcome.native_size == expected
        assert read_mask(outcome.job.mask).shape == expected


@pytest.mark.parametrize("change", ["grow", "shrink", "touch"])
def test_a_file_that_changes_while_it_is_read(tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(JPEG)
    read_all = images._read_all

    def read_and_change(file: int, size: int) -> bytes:
        if change == "shrink":
            path.write_bytes(JPEG[:-100])
        data = read_all(file, size)
        if change == "grow":
            path.write_bytes(JPEG + b"more")
        elif change == "touch":
            path.write_bytes(JPEG[::-1])
            monkeypatch.undo()
        return data

    monkeypatch.setattr(images, "_read_all", read_and_change)
    with pytest.raises(ImageError, match="changed while it was read"):
        decode_image(path, SIZE)


def test_a_limit_on_pixels(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(100, 100, 8, 0, bytes(101 * 100)))
    (tmp_path / "a.jpg").write_bytes(JPEG)
    assert decode_image(tmp_path / "a.png", SIZE, max_pixels=10_000).native_size == (100, 100)
    for name, limit in (("a.png", 9_999), ("a.jpg", 3000)):
        with pytest.raises(ImageError, match=r"megapixels.*--max-megapixels.* max_pixels") as caught:
            decode_image(tmp_path / name, SIZE, max_pixels=limit)
        assert not isinstance(caught.value, DamagedImageError)  # another limit, another run


def _mutated(data: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut out, doubled, or the end cut off."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        position = rng.randrange(len(changed))
        action = rng.randrange(5)
        if action == 0:
            changed[position] ^= 1 << rng.randrange(8)
        elif action == 1:
            changed[position] = rng.choice((0, 0xFF, 0x7F, 0x80, rng.randrange(256)))
        elif action == 2:
            del changed[position : position + rng.randint(1, 64)]
        elif action == 3:
            changed[position:position] = changed[position : position + rng.randint(1, 64)]
        else:
            del changed[max(position, 8) :]
        if len(changed) < 8:
            break
    return bytes(changed)


def _fuzz(seeds: range, folder: Path) -> None:
    progressive = io.BytesIO()
    Image.open(io.BytesIO(JPEG)).save(progressive, format="JPEG", progressive=True)
    originals = (JPEG, PNG, progressive.getvalue())
    path = folder / "fuzzed"
    decoded = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in seeds:
        path.write_bytes(_mutated(originals[seed % 3], random.Random(seed)))
        try:
            image = decode_image(path, SIZE, max_pixels=1 << 22)
        except ImageError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017
        else:
            decoded += 1
            assert image.pixels.shape == (*SIZE, 3)
            assert image.pixels.dtype == np.uint8
            assert image.native_size[0] * image.native_size[1] <= 1 << 22
    assert 0 < decoded < len(seeds)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize("start", range(0, 500, 125))
def test_mutated_images_are_images_or_errors(tmp_path: Path, start: int) -> None:
    _fuzz(range(start, start + 125), tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("start", range(10_000, 20_000, 1000))
def test_more_mutated_images_are_images_or_errors(tmp_path: Path, start: int) -> None:
    _fuzz(range(start, start + 1000), tmp_path)


@pytest.mark.nightly
def test_mutated_tiff_webp_and_bmp_cost_themselves(tmp_path: Path) -> None:
    path = tmp_path / "fuzzed"
    with ImageDecoder("always", timeout=60, max_pixels=1 << 22) as decoder:
        for seed in range(1500):
            file = io.BytesIO()
            kind = ("TIFF", "WEBP", "BMP")[seed % 3]
            Image.open(io.BytesIO(PNG)).save(file, format=kind, **({"compression": "tiff_lzw"} if seed % 2 else {}))
            path.write_bytes(_mutated(file.getvalue(), random.Random(seed)))
            try:
                assert decoder(path, SIZE).pixels.shape == (*SIZE, 3)
            except ImageError as error:
                assert str(error).startswith(f"{path}: ")  # noqa: PT017


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_400_megapixels(darkness_onnx: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    image = Image.new("L", (20_000, 20_000), 220)
    image.paste(40, (5_000, 5_000, 9_000, 12_000))
    image.save(tmp_path / "in" / f"slide.{kind.lower()}", format=kind)
    jobs = find_jobs(tmp_path / "in", tmp_path / "out")
    with OnnxRuntime(darkness_onnx, threads=1) as runtime:
        summary = run_jobs(jobs, runtime, decode_timeout=600)  # nobody knows what else the machine does
        assert summary.failed == 0
    mask = read_mask(jobs[0].mask)  # `Image.open` takes 400 megapixels for a bomb
    assert mask.shape == (20_000, 20_000)
    assert np.count_nonzero(mask) == pytest.approx(4_000 * 7_000, rel=0.02)
