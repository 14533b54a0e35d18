"""What goes into the GPU's chain and what comes out of it, and when there is one. `test_gpu_stages` runs it."""

from __future__ import annotations

import ctypes
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isicrt.engine import gpu_stages
from isicrt.engine.cuda_driver import driver_library
from isicrt.engine.cuda_memory import CudaDevice
from isicrt.engine.errors import ImageError, MissingDependencyError, ModelError, SettingsError
from isicrt.engine.gpu_batch import ChainImage, PackedMask, read_chain_image, within_bounds
from isicrt.engine.gpu_stages import check_decode, open_chain
from isicrt.engine.images import read_mask
from isicrt.engine.isolation import ImageDecoder
from isicrt.engine.masks import encode_png, restore_mask
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.pipeline import default_threads, run_jobs
from isicrt.engine.shipped import resolve
from isicrt.engine.sources import find_jobs
from isicrt.engine.tensorrt_runtime import TensorRtRuntime
from tests.engine.gpu_plan import MODULES, open_plan


def test_the_way_is_chosen(darkness_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with OnnxRuntime(darkness_onnx, threads=1) as onnx:
        assert open_chain(onnx) is open_chain(onnx, "cpu") is None
        with pytest.raises(SettingsError, match=r"needs a \.plan"):
            open_chain(onnx, "gpu")
        with pytest.raises(SettingsError, match="decode 'fast': must be one of auto, gpu, cpu"):
            open_chain(onnx, "fast")
    plan = object.__new__(TensorRtRuntime)

    def missing(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(gpu_stages, "GpuChain", missing)
    for error in (MissingDependencyError("nvImageCodec", "gpu", "no module"), ModelError("H100: not enough memory")):
        assert open_chain(plan) is open_chain(plan, "cpu") is None
        with pytest.raises(type(error), match=r"^--decode gpu: .*--decode cpu"):
            open_chain(plan, "gpu")
    monkeypatch.setattr(gpu_stages, "GpuChain", lambda runtime, **settings: (runtime, settings))
    chosen = {"threshold": 0.3, "hardware_load": 0.5}
    settings = chosen | {"cpu_threads": 3}
    assert open_chain(plan, **chosen, threads=3) == open_chain(plan, "gpu", **chosen, threads=3) == (plan, settings)


def test_why_a_plan_is_fed_by_the_cpu_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ModelError("H100: an old driver")

    monkeypatch.setattr(gpu_stages, "_said", set())
    monkeypatch.setattr(gpu_stages, "GpuChain", fail)
    plan = object.__new__(TensorRtRuntime)
    assert open_chain(plan) is open_chain(plan) is open_chain(plan, "cpu") is None
    said = "Images are decoded and masks restored on the CPU, not on the GPU: H100: an old driver"
    assert caplog.messages == [said]


def test_without_a_setting_of_its_own_that_goes_to_the_standard_error() -> None:
    code = "from isicrt.engine import gpu_stages; gpu_stages._say_once('why'); gpu_stages._say_once('why')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "why\n")


def test_an_onnx_file_cannot_be_fed_by_the_gpu() -> None:
    with pytest.raises(SettingsError, match=r"--decode gpu: m\.onnx is an ONNX file.*build-engine m\.onnx --fp16"):
        check_decode("gpu", Path("m.onnx"))
    with pytest.raises(SettingsError, match=r"build-engine unet-light --fp16\) and give"):
        check_decode("gpu", resolve("unet-light-int8"))
    with pytest.raises(SettingsError, match="decode 'x'"):
        check_decode("x", Path("m.plan"))
    for decode, name in (("auto", "m.onnx"), ("cpu", "m.onnx"), ("gpu", "m.plan")):
        check_decode(decode, Path(name))


def test_writing_gets_more_threads_where_the_gpu_decodes() -> None:
    assert default_threads(16) == (16, 8)
    assert default_threads(16, on_gpu=True) == (8, 16)
    assert default_threads(1, on_gpu=True) == (1, 1)


def test_large_slow_and_refused_jpegs_are_for_the_cpu(
    rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = next((rendered_pairs / "images").iterdir())
    assert read_chain_image(file, (64, 64)).pixels is None
    with ImageDecoder(max_pixels=100) as decoder, pytest.raises(ImageError, match=r"more than 0\.0001 megapixels"):
        read_chain_image(file, (64, 64), decode=decoder, max_pixels=100)
    for name, value in (("LARGE_PIXELS", 100), ("may_take_long", lambda data: True)):
        with monkeypatch.context() as patch:
            patch.setattr(f"isicrt.engine.gpu_batch.{name}", value)
            image = read_chain_image(file, (64, 64))
        assert image.source is None
        assert image.pixels is not None
        assert image.pixels.shape == (64, 64, 3)
        assert image.stamp is not None


@pytest.mark.parametrize("keep_largest", [True, False])
def test_packed_masks_are_unpacked_and_cleaned(keep_largest: bool) -> None:
    mask = np.zeros((3, 11), bool)
    mask[0, :4] = mask[2, 10] = True
    packed = PackedMask(np.packbits(mask, axis=1), (3, 11))
    found = packed.clean(keep_largest=keep_largest, fill_holes=False).whole()
    assert found.dtype == bool
    mask[2, 10] = not keep_largest
    np.testing.assert_array_equal(found, mask)
    assert not PackedMask(np.zeros((3, 2), np.uint8), (3, 11)).clean(keep_largest=True, fill_holes=True).whole().any()


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [([], []), ([5], [1]), ([50], [1]), ([4, 4, 4, 4], [2, 2]), ([9, 2, 8, 1], [1, 2, 1]), ([50, 1, 50], [1, 1, 1])],
)
def test_images_are_cut_into_parts_of_so_many_pixels(sizes: list[int], parts: list[int]) -> None:
    images = [ChainImage(Path(str(n)), (1, size), None, None, None) for n, size in enumerate(sizes)]
    found = list(within_bounds(images, 10))
    assert [len(part) for part in found] == parts
    assert [image for part in found for image in part] == images


@pytest.mark.gpu
@pytest.mark.parametrize("flavour", MODULES)
def test_a_run_on_a_gpu_gives_the_masks_of_the_cpu_and_its_memory_back(
    flavour: str, darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path
) -> None:
    """Full batches twice, so that graphs run, a partial one, a PNG, and a file that is none."""
    pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed (extra gpu)")
    images = tmp_path / "images"
    images.mkdir()
    for n, file in enumerate(sorted((rendered_pairs / "images").iterdir()) * 4):
        (images / f"{n:02d}.jpg").write_bytes(file.read_bytes())
    with Image.open(images / "00.jpg") as image:
        image.save(images / "other.png")
    (images / "bad.jpg").write_bytes((images / "00.jpg").read_bytes()[:500])
    with OnnxRuntime(darkness_onnx, threads=1) as onnx:
        run_jobs(find_jobs(images, tmp_path / "cpu"), onnx)
    open_plan(darkness_onnx, flavour, tmp_path / "plan").close()  # built, and what libraries load once is loaded
    device = CudaDevice()
    before, kept_before = _free_memory(device), _pool_memory()
    with TensorRtRuntime(tmp_path / "plan" / "model.plan") as runtime:
        for n, share in enumerate((0.0, 0.0, 0.5)):
            out = tmp_path / f"gpu{n}"
            chain = open_chain(runtime, "gpu")
            assert chain is not None
            with chain:
                summary = run_jobs(find_jobs(images, out), runtime, batch_size=8, chain=chain, cpu_share=share)
            assert (summary.images, summary.failed) == (50, 1)
            for path in sorted((tmp_path / "cpu").iterdir()):
                ours, theirs = read_mask(out / path.name), read_mask(path)
                assert np.count_nonzero(ours & theirs) > 0.98 * np.count_nonzero(ours | theirs), path.name
    after = _free_memory(device)  # waits for the device: what is freed in the order of a stream is given back then
    bound, reserved = _pool_memory()
    assert bound == kept_before[0]
    assert reserved <= kept_before[1], "decoded images stay in the device's pool"
    # Of nvImageCodec's own libraries something stays loaded; the images of full batches are more.
    assert after > before - (512 << 20), "a run on the GPU keeps memory"


def _free_memory(device: CudaDevice) -> int:
    with device.current():
        device.cuda.Context.synchronize()
        free, _ = device.cuda.mem_get_info()
    return int(free)


def _pool_memory() -> tuple[int, int]:
    """Of the first device's default pool: the bytes that it may keep, and those that it has from the system."""
    cuda, device, pool = driver_library(), ctypes.c_int(), ctypes.c_void_p()
    assert cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
    assert cuda.cuDeviceGetDefaultMemPool(ctypes.byref(pool), device) == 0
    kept, reserved = ctypes.c_uint64(), ctypes.c_uint64()
    for attribute, value in ((4, kept), (5, reserved)):  # CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, _RESERVED_MEM_CURRENT
        assert cuda.cuMemPoolGetAttribute(pool, attribute, ctypes.byref(value)) == 0
    return kept.value, reserved.value


@pytest.mark.parametrize("rules", [(True, True, 0.2), (True, False, 0.0), (False, True, 0.0), (False, False, 0.0)])
def test_a_packed_mask_is_cleaned_as_the_map_that_it_was_made_of(rules: tuple[bool, bool, float]) -> None:
    rng = np.random.default_rng(1)
    given = dict(zip(("keep_largest", "fill_holes", "centre_sigma"), rules, strict=True))
    for size in ((1, 1), (9, 7), (33, 64), (40, 61), (64, 130)):
        for share in (0.0, 0.002, 0.1, 0.7, 1.0):
            mask = np.zeros(size, bool)
            top, left = rng.integers(0, size[0]), rng.integers(0, size[1])
            part = mask[top:, left:]
            part[:] = rng.random(part.shape) < share
            bits = np.packbits(mask, axis=1)
            bits[:, -1] |= rng.integers(0, 256, size[0], dtype=np.uint8) & np.uint8((1 << (-size[1] % 8)) - 1)
            bits.flags.writeable = False  # as it comes from another process
            found = PackedMask(bits, size).clean(**given)  # type: ignore[arg-type]
            expected = restore_mask(mask * np.uint8(255), size, threshold=0.5, **given)  # type: ignore[arg-type]
            np.testing.assert_array_equal(found.whole(), expected, err_msg=f"{size}, {share}")
            assert encode_png(found) == encode_png(expected)


def test_the_padding_of_a_packed_row_is_no_lesion() -> None:
    # The last byte of a row of 11 pixels has five bits that belong to none.
    bits = np.array([[0, 0b00011111], [0, 0b00111111]], np.uint8)
    mask = PackedMask(bits, (2, 11)).clean(keep_largest=False, fill_holes=False)
    assert mask.whole().tolist() == [[False] * 11, [False] * 10 + [True]]
    assert mask.lesion == pytest.approx(1 / 22)
    with Image.open(io.BytesIO(encode_png(mask))) as image:
        np.testing.assert_array_equal(np.asarray(image), mask.whole())
