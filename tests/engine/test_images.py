"""Decoding: every format and mode that a folder may hold, and everything that must be refused."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from isicrt.benchmarks.rendered import render
from isicrt.engine import images
from isicrt.engine.errors import DataError, ImageError
from isicrt.engine.geometry import UInt8Array, resize_image
from isicrt.engine.images import decode_image, read_image, read_mask

HEIGHT, WIDTH = 60, 90
PIXELS = render(3, (HEIGHT, WIDTH))[0]
SIZE = (24, 32)


def _save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


LOSSLESS = [
    ("rgb.png", "RGB", {}),
    ("grey.png", "L", {}),
    ("bit.png", "1", {}),
    ("palette.png", "P", {}),
    ("alpha.png", "RGBA", {}),
    ("grey_alpha.png", "LA", {}),
    ("interlaced.bmp", "RGB", {}),
    ("palette.bmp", "P", {}),
    ("plain.tif", "RGB", {}),
    ("lzw.tiff", "RGB", {"compression": "tiff_lzw"}),
    ("cmyk.tif", "CMYK", {}),
    ("lossless.webp", "RGB", {"lossless": True}),
    ("alpha.webp", "RGBA", {"lossless": True, "exact": True}),
    ("UPPER.PNG", "RGB", {}),
]


@pytest.mark.parametrize(("name", "mode", "options"), LOSSLESS)
def test_lossless_formats_and_modes(tmp_path: Path, name: str, mode: str, options: dict[str, object]) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    path = _save(tmp_path / name, image, **options)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read_image(path), expected)
    decoded = decode_image(path, SIZE)
    assert decoded.native_size == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(decoded.pixels, resize_image(expected, SIZE))


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"progressive": True}),
        ("RGB", {"subsampling": "4:4:4"}),
        ("RGB", {"subsampling": "4:2:2"}),
        ("L", {}),
        ("CMYK", {}),
        ("RGB", {"icc_profile": b"profile"}),
    ],
)
def test_jpegs(tmp_path: Path, mode: str, options: dict[str, object]) -> None:
    path = _save(tmp_path / "a.jpg", Image.fromarray(PIXELS).convert(mode), quality=95, **options)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    # libjpeg-turbo inside simplejpeg and inside Pillow may round differently.
    assert abs(read_image(path).astype(int) - expected).max() <= 2
    decoded = decode_image(path, SIZE)
    assert decoded.native_size == (HEIGHT, WIDTH)
    assert decoded.pixels.shape == (*SIZE, 3)
    assert decoded.pixels.dtype == np.uint8
    assert abs(decoded.pixels.astype(int) - resize_image(expected, SIZE)).mean() < 4


@pytest.mark.parametrize(
    ("height", "width"), [(767, 1022), (512, 512), (1129, 1504), (100, 2000), (300, 300), (20, 30)]
)
def test_scaled_jpeg_decoding_is_never_below_the_size(tmp_path: Path, height: int, width: int, monkeypatch) -> None:
    seen: list[tuple[int, ...]] = []

    def spy(image: UInt8Array, size: tuple[int, int]) -> UInt8Array:
        seen.append(image.shape[:2])
        return resize_image(image, size)

    monkeypatch.setattr(images, "resize_image", spy)
    pixels = render(1, (height, width))[0]
    path = _save(tmp_path / "a.jpg", Image.fromarray(pixels), quality=95)
    decoded = decode_image(path, (256, 192))
    assert decoded.native_size == (height, width)
    assert seen[0][0] >= min(256, height)
    assert seen[0][1] >= min(192, width)
    assert abs(decoded.pixels.astype(int) - resize_image(read_image(path), (256, 192))).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "lzw.tif", "a.webp"])
def test_exif_orientation_is_ignored(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"compression": "tiff_lzw"} if name == "lzw.tif" else {"lossless": True} if name == "a.webp" else {}
    plain = _save(tmp_path / f"plain{Path(name).suffix}", Image.fromarray(PIXELS), **options)
    turned = _save(tmp_path / name, Image.fromarray(PIXELS), exif=exif, **options)
    np.testing.assert_array_equal(read_image(turned), read_image(plain))
    assert decode_image(turned, SIZE).native_size == (HEIGHT, WIDTH)


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_16_bit_grey_is_scaled(tmp_path: Path, name: str) -> None:
    deep = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    path = _save(tmp_path / name, Image.fromarray(deep))
    assert read_image(path)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_transparent_palette_is_decoded_without_a_warning(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS).convert("P")
    path = _save(tmp_path / "a.png", image, transparency=bytes(range(256)))
    np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.tif"])
def test_the_first_frame_counts(tmp_path: Path, name: str) -> None:
    first = Image.fromarray(PIXELS)
    others = [Image.new("RGB", first.size, (0, 255, 0))]
    path = _save(tmp_path / name, first, save_all=True, append_images=others, lossless=True)
    np.testing.assert_array_equal(read_image(path), PIXELS)


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(PIXELS).save(path, format="PNG")
    np.testing.assert_array_equal(read_image(path), PIXELS)


def test_trailing_garbage_after_a_jpeg_is_harmless(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(simplejpeg.encode_jpeg(PIXELS, quality=95) + b"garbage" * 100)
    assert decode_image(path, SIZE).native_size == (HEIGHT, WIDTH)


def _encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, format=kind)
    return file.getvalue()


def _png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(simplejpeg.encode_jpeg(PIXELS))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "the file is empty", id="zero_bytes"),
        pytest.param(b"hello", "not a JPEG, PNG, BMP, TIFF or WebP", id="text"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a JPEG, PNG, BMP, TIFF or WebP", id="postscript"),
        pytest.param(b"GIF89a" + b"\0" * 100, "not a JPEG, PNG, BMP, TIFF or WebP", id="gif"),
        pytest.param(_encoded("JPEG")[: len(_encoded("JPEG")) // 2], "truncated", id="truncated_jpeg"),
        pytest.param(_encoded("PNG")[:-2000], "truncated|cannot be decoded", id="truncated_png"),
        pytest.param(_encoded("BMP")[:-2000], "truncated", id="truncated_bmp"),
        pytest.param(_encoded("TIFF")[:-2000], "truncated", id="truncated_tiff"),
        pytest.param(_encoded("WEBP")[:-200], "cannot be decoded|WEBP|decoder", id="truncated_webp"),
        pytest.param(b"\xff\xd8\xff", "cannot be decoded", id="jpeg_signature_only"),
        pytest.param(b"\xff\xd8\xff\xd9", "cannot be decoded", id="jpeg_without_image"),
        pytest.param(b"\x89PNG\r\n\x1a\n", "cannot be decoded", id="png_signature_only"),
        pytest.param(b"II*\0", "cannot be decoded", id="tiff_signature_only"),
        pytest.param(b"BM", "cannot be decoded", id="bmp_signature_only"),
        pytest.param(b"RIFF\0\0\0\0WAVE", "cannot be decoded", id="wave"),
        pytest.param(_png_claiming(20_001, 20_001), "20001 x 20001 is more than 400 megapixels", id="png_bomb"),
        pytest.param(_png_claiming(2**31 - 1, 2**31 - 1), "more than 400 megapixels", id="png_huge"),
        pytest.param(_jpeg_claiming(65_500, 65_500), "more than 400 megapixels", id="jpeg_bomb"),
    ],
)
def test_bad_files_are_image_errors_that_name_the_file(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "bad.jpg"
    path.write_bytes(data)
    for attempt in (lambda: decode_image(path, SIZE), lambda: read_image(path)):
        with pytest.raises(ImageError, match=message) as caught:
            attempt()
        assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(("error", "reason"), [(MemoryError(), "not enough memory"), (IndexError(), "IndexError")])
def test_an_error_without_words_has_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(images, "_to_rgb", fails)
    path = _save(tmp_path / "a.png", Image.fromarray(PIXELS))
    with pytest.raises(ImageError, match=f"cannot be decoded: {reason}$"):
        read_image(path)


def test_float_pixels_are_refused(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.tif", Image.fromarray(np.zeros((4, 4), np.float32)))
    with pytest.raises(ImageError, match="32-bit pixels"):
        read_image(path)


def test_what_is_not_a_regular_file(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.jpg"
    os.mkfifo(fifo)
    dangling = tmp_path / "dangling.jpg"
    dangling.symlink_to(tmp_path / "nowhere")
    cases = {fifo: "not a regular file", tmp_path: "not a regular file", Path("/dev/zero"): "not a regular file"}
    cases |= {dangling: "No such file", tmp_path / "absent.jpg": "No such file", tmp_path / ("x" * 300): "too long"}
    cases |= {tmp_path / "nul\0.jpg": "null"}
    for path, message in cases.items():
        with pytest.raises(ImageError, match=message):
            decode_image(path, SIZE)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.png"
    with path.open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    with pytest.raises(ImageError, match=r"2\.0 GiB is more"):
        decode_image(path, SIZE)


def test_pillows_own_limit_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _save(tmp_path / "a.png", Image.fromarray(PIXELS))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode_image(path, SIZE).native_size == (HEIGHT, WIDTH)


@pytest.mark.parametrize("mode", ["1", "L"])
def test_masks_are_read_as_booleans(tmp_path: Path, mode: str) -> None:
    values = np.array([[0, 255], [255, 0]], np.uint8)
    path = _save(tmp_path / "m.png", Image.fromarray(values).convert(mode))
    assert read_mask(path).tolist() == [[False, True], [True, False]]
    assert read_mask(path).dtype == bool


def test_grey_masks_are_cut_above_128(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.png", Image.fromarray(np.array([[0, 127, 128, 129, 255]], np.uint8)))
    assert read_mask(path).tolist() == [[False, False, False, True, True]]


@pytest.mark.parametrize(("highest", "remedy"), [(1, "multiply by 255"), (128, "write lesion as 255")])
def test_a_mask_of_classes_is_not_an_empty_one(tmp_path: Path, highest: int, remedy: str) -> None:
    path = _save(tmp_path / "m.png", Image.fromarray(np.array([[0, highest]], np.uint8)))
    with pytest.raises(DataError, match=rf"m\.png: its highest value is {highest}, .* above 128: {remedy}"):
        read_mask(path)


def test_an_empty_mask_is_one(tmp_path: Path) -> None:
    assert not read_mask(_save(tmp_path / "m.png", Image.new("L", (3, 2)))).any()


def test_a_damaged_mask_is_an_error(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.png", Image.fromarray(PIXELS[..., 0]))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ImageError, match="truncated"):
        read_mask(path)


def test_real_photographs(real_data: Path) -> None:
    folder = real_data / "fullres" / "images"
    files = sorted(folder.glob("*.jpg"))[:6]
    if not files:
        pytest.skip(f"no photographs in {folder}")
    for path in files:
        decoded = decode_image(path, (256, 256))
        with Image.open(path) as image:
            assert decoded.native_size == (image.height, image.width)
            expected = np.asarray(image.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR))
        assert abs(decoded.pixels.astype(int) - expected).mean() < 1.5
