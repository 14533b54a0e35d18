from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isicrt.benchmarks.rendered import render
from isicrt.engine import gpu_decode
from isicrt.engine.cuda_driver import find_gpu
from isicrt.engine.errors import ModelError
from isicrt.engine.gpu_decode import DeviceImage, GpuDecoder, suits_gpu
from isicrt.engine.images import read_image
from tests.engine.stand_ins import memory_at


def _jpeg(size: tuple[int, int] = (30, 44), mode: str = "RGB", **options: object) -> bytes:
    image, _ = render(1, size)
    buffer = io.BytesIO()
    Image.fromarray(image).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def _unmarked(data: bytes) -> bytes:
    """A JPEG without the markers of applications: what it holds, the names of its components say alone."""
    while data[2] == 0xFF and 0xE0 <= data[3] <= 0xEF:
        data = data[:2] + data[4 + int.from_bytes(data[4:6], "big") :]
    return data


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (_jpeg(), (30, 44)),
        (_jpeg(progressive=True), (30, 44)),
        (_jpeg(mode="L"), (30, 44)),
        (_jpeg() + b"\0" * 100, (30, 44)),
        (_unmarked(_jpeg()), (30, 44)),
        (_unmarked(_jpeg(keep_rgb=True)), None),
        (_jpeg(keep_rgb=True), None),
        (_jpeg(mode="CMYK"), None),
        (_jpeg()[:-400], None),
        (_jpeg()[:100] + b"\xff\xd9", None),
        (_png(), None),
        (b"", None),
        (b"\xff\xd8\xff\xd9", None),
    ],
    ids=[
        "YCbCr",
        "progressive",
        "grey",
        "padded",
        "unmarked",
        "named RGB",
        "RGB by Adobe",
        "CMYK",
        "half",
        "no frame",
        "PNG",
        "empty",
        "markers",
    ],
)
def test_what_is_left_to_the_cpu(data: bytes, size: tuple[int, int] | None) -> None:
    assert suits_gpu(data) == size


@pytest.fixture(scope="module")
def decoder() -> GpuDecoder:
    pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed (extra gpu)")
    return GpuDecoder(GpuDecoder.CPU_ONLY, cpu_threads=1)


def _pixels(image: DeviceImage) -> np.ndarray:
    height, width = image.size
    rows = memory_at(image.address, (height, image.pitch))
    return rows[:, : 3 * width].reshape(height, width, 3)


def test_nvimagecodec_decodes_what_libjpeg_turbo_decodes(decoder: GpuDecoder, rendered_pairs: Path) -> None:
    files = sorted((rendered_pairs / "images").iterdir())[:4]
    images = decoder.decode([file.read_bytes() for file in files], 0)
    for file, image in zip(files, images, strict=True):
        assert image is not None
        expected = read_image(file)
        assert image.size == expected.shape[:2]
        assert np.abs(_pixels(image).astype(int) - expected).max() <= 2


def test_a_grey_jpeg_has_three_equal_channels(decoder: GpuDecoder) -> None:
    (image,) = decoder.decode([_jpeg(mode="L")], 0)
    assert image is not None
    assert np.ptp(_pixels(image), axis=2).max() == 0


def test_orientation_is_ignored(decoder: GpuDecoder) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, plain = decoder.decode([_jpeg(exif=exif), _jpeg()], 0)
    assert turned is not None
    assert plain is not None
    assert turned.size == plain.size == (30, 44)
    np.testing.assert_array_equal(_pixels(turned), _pixels(plain))


def test_what_cannot_be_decoded_costs_itself(decoder: GpuDecoder) -> None:
    images = decoder.decode([_jpeg(), b"\xff\xd8\xff rubbish", _jpeg()], 0)
    assert [image is None for image in images] == [False, True, False]
    assert decoder.decode([], 0) == []


@pytest.mark.parametrize(("wanted", "speaks"), [(None, False), ("2", True)])
@pytest.mark.usefixtures("decoder")
def test_what_is_refused_is_for_isicrt_to_say_unless_its_user_asks_for_more(wanted: str | None, speaks: bool) -> None:
    """nvImageCodec reads the variable when it is imported: hence a process of its own."""
    program = """
from isicrt.engine.gpu_decode import GpuDecoder

decoder = GpuDecoder(GpuDecoder.CPU_ONLY, cpu_threads=1)
print(decoder.decode([bytes.fromhex("ffd8ff") + b" rubbish"], 0))
decoder.close()
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYNVIMGCODEC_VERBOSITY"}
    if wanted is not None:
        environment["PYNVIMGCODEC_VERBOSITY"] = wanted
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (0, "[None]\n"), done.stderr
    assert ("[ERROR]" in done.stderr) is speaks
    assert bool(done.stderr) is speaks


def test_what_a_decoder_keeps_goes_with_it(decoder: GpuDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with one that cannot be made. nvImageCodec's own decoders are those of the CPU here."""
    from nvidia import nvimgcodec

    told: list[str] = []

    def keep(index: int, size: int) -> Callable[[], None]:
        told.append(f"keep {size >> 30} GiB of {index}")
        return lambda: told.append("end")

    monkeypatch.setattr(gpu_decode, "keep_freed_memory", keep)
    monkeypatch.setattr(nvimgcodec, "Decoder", lambda **_: None)
    made = GpuDecoder(0)
    assert told == ["keep 3 GiB of 0"]
    made.close()
    assert told == ["keep 3 GiB of 0", "end"]

    def fail(**_: object) -> None:
        raise RuntimeError("no device")

    monkeypatch.setattr(nvimgcodec, "Decoder", fail)
    with pytest.raises(ModelError, match="cannot start a decoder on GPU 0: no device"):
        GpuDecoder(0)
    assert told[2:] == ["keep 3 GiB of 0", "end"]


@pytest.mark.parametrize(
    ("wanted", "usable", "asked"),
    [(None, 16, 0), (None, 4, 4), (6, 4, 6), (2, 16, 2), (16, 16, 0), (64, 4, 0)],
)
@pytest.mark.usefixtures("decoder")
def test_its_threads_are_those_that_a_container_may_use(
    wanted: int | None, usable: int, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nvidia import nvimgcodec

    options: dict[str, object] = {}
    monkeypatch.setattr(nvimgcodec, "Decoder", lambda **given: options.update(given))
    monkeypatch.setattr(gpu_decode, "available_cores", lambda: usable, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    GpuDecoder(GpuDecoder.CPU_ONLY, cpu_threads=wanted)
    assert options["max_num_cpu_threads"] == asked


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU here")
def test_without_a_gpu_the_decoder_says_so(decoder: GpuDecoder) -> None:
    with pytest.raises(ModelError, match="nvImageCodec cannot start a decoder on GPU 0"):
        GpuDecoder(0)
