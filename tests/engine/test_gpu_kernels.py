"""The kernels' bytes against Pillow's, OpenCV's and numpy's. Their source is compiled for the CPU here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from isicrt.engine.cuda_driver import find_gpu
from isicrt.engine.cuda_memory import CudaDevice, TransferBuffer, make_stream
from isicrt.engine.errors import ModelError
from isicrt.engine.geometry import UInt8Array, cutoff, resize_by_pillow, upsample_probability
from isicrt.engine.gpu_kernels import NAMES, OPTIONS, SOURCE, Kernels, cover, linear_scale, taps
from isicrt.engine.gpu_ptx import PTX_FILE, compile_ptx, read_ptx
from isicrt.engine.masks import restore_mask
from tests.engine.cpu_kernels import CpuKernels

BLOCK = (8, 4)


def _weights(kernels: CpuKernels, size_in: int, size_out: int) -> tuple[npt.NDArray[np.int32], ...]:
    count = taps(size_in, size_out)
    tables = tuple(np.full(shape, -7, np.int32) for shape in (size_out, size_out, (size_out, count)))
    addresses = [table.ctypes.data for table in tables]
    kernels.launch("triangle_weights", (2, 1), (8, 1), None, size_in, size_out, count, *addresses)
    return tables


def _resize(kernels: CpuKernels, image: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    height, width = image.shape[:2]
    pitch = image.strides[0]
    rows = np.empty((height, size[1], 3), np.uint8)
    result = np.empty((*size, 3), np.uint8)
    across, down = _weights(kernels, width, size[1]), _weights(kernels, height, size[0])
    kernels.launch(
        *("resize_rows", cover(size[1], height, BLOCK), BLOCK, None),
        *(image.ctypes.data, pitch, height, size[1], across[2].shape[1]),
        *(table.ctypes.data for table in across),
        rows.ctypes.data,
    )
    kernels.launch(
        *("resize_columns", cover(3 * size[1], size[0], BLOCK), BLOCK, None),
        *(rows.ctypes.data, 3 * size[1], size[0], down[2].shape[1]),
        *(table.ctypes.data for table in down),
        result.ctypes.data,
    )
    return result


def _restore(kernels: CpuKernels, probability: UInt8Array, size: tuple[int, int], level: int) -> npt.NDArray[np.bool_]:
    (h, w), (height, width) = probability.shape, size
    packed = np.full((height, -(-width // 8)), 0xEE, np.uint8)
    kernels.launch(
        *("restore_mask", cover(packed.shape[1], height, BLOCK), BLOCK, None),
        *(probability.ctypes.data, h, w, height, width, linear_scale(h, height), linear_scale(w, width), level),
        packed.ctypes.data,
    )
    mask = np.unpackbits(packed, axis=1, count=width)
    np.testing.assert_array_equal(np.packbits(mask, axis=1), packed)  # what is behind the last pixel is black
    return mask.view(np.bool_)


SIZES = [(1, 1), (1, 9), (9, 1), (7, 5), (64, 64), (97, 131), (33, 250), (200, 31), (300, 400)]


@pytest.mark.parametrize("target", [(64, 64), (48, 80), (1, 1), (128, 96)])
@pytest.mark.parametrize("size", SIZES)
def test_resize_is_pillows_to_the_last_bit(kernels: CpuKernels, size: tuple[int, int], target: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    difference = np.abs(_resize(kernels, image, target).astype(int) - resize_by_pillow(image, target))
    # Pillow 13 shrinks the height first where that is much less work; the kernels begin with the width, as before.
    turned = size[0] * target[1] > 1.3 * size[1] * target[0]
    assert difference.max() <= turned


@pytest.mark.parametrize("value", [0, 1, 128, 254, 255])
def test_resize_keeps_a_flat_image(kernels: CpuKernels, value: int) -> None:
    image = np.full((301, 77, 3), value, np.uint8)
    assert (_resize(kernels, image, (64, 64)) == value).all()


def test_resize_reads_rows_with_a_gap_between_them(kernels: CpuKernels) -> None:
    padded = np.random.default_rng(2).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    image = padded[:, :121]
    assert image.strides[0] == 480
    np.testing.assert_array_equal(
        _resize(kernels, image, (64, 64)), resize_by_pillow(np.ascontiguousarray(image), (64, 64))
    )


def test_weights_are_pillows_count_and_sum_to_one(kernels: CpuKernels) -> None:
    first, count, weights = _weights(kernels, 1000, 96)
    assert taps(1000, 96) == weights.shape[1] == 23
    assert first[0] == 0
    assert first[-1] + count[-1] == 1000
    assert np.abs(weights.sum(axis=1) - (1 << 22)).max() < 30
    assert all((row[n:] == 0).all() for row, n in zip(weights, count, strict=True))


@pytest.mark.parametrize("level", [1, 77, 128, 255])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("source", [(64, 64), (48, 80), (1, 1), (2, 3)])
def test_masks_are_opencvs_to_the_last_bit(
    kernels: CpuKernels, source: tuple[int, int], size: tuple[int, int], level: int
) -> None:
    probability = np.random.default_rng(3).integers(0, 256, source, dtype=np.uint8)
    expected = upsample_probability(probability, size) >= level
    np.testing.assert_array_equal(_restore(kernels, probability, size, level), expected)


def test_a_mask_of_a_smooth_probability_at_a_photographs_size(kernels: CpuKernels) -> None:
    noise = np.random.default_rng(4).integers(0, 256, (256, 256), dtype=np.uint8)
    probability = np.asarray(cv2.GaussianBlur(noise, (0, 0), 12), np.uint8)
    for size in ((767, 1022), (1500, 2003)):
        expected = restore_mask(probability, size, threshold=0.5, keep_largest=False, fill_holes=False)
        assert 0 < expected.mean() < 1
        np.testing.assert_array_equal(_restore(kernels, probability, size, cutoff(0.5)), expected)


def test_a_grid_covers_every_thread() -> None:
    assert cover(17, 9, (8, 4)) == (3, 3)
    assert cover(1, 1_000_000, (8, 4)) == (1, 65535)


def test_resize_agrees_with_pillow_itself(kernels: CpuKernels, rendered_pairs: Path) -> None:
    for path in sorted((rendered_pairs / "images").iterdir())[:2]:
        image = Image.open(path)
        expected = np.asarray(image.resize((48, 48), Image.Resampling.BILINEAR))
        difference = np.abs(_resize(kernels, np.ascontiguousarray(image), (48, 48)).astype(int) - expected)
        assert difference.max() <= (image.height > 1.3 * image.width)


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
def test_nvcc_compiles_the_kernels(tmp_path: Path, architecture: str) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc of the CUDA toolkit on the PATH")
    (tmp_path / "kernels.cu").write_text(SOURCE)
    command = [nvcc, *OPTIONS, "-Werror", "all-warnings", "-cubin", f"-arch={architecture}", "-o", "kernels.cubin"]
    done = subprocess.run([*command, "kernels.cu"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    content = (tmp_path / "kernels.cubin").read_bytes()
    assert all(name.encode() in content for name in NAMES)


@pytest.mark.gpu
def test_masks_are_opencvs_on_the_gpu_too() -> None:
    if find_gpu() is None:
        pytest.skip("no NVIDIA GPU with a driver here")
    pytest.importorskip("pycuda.driver", reason="PyCUDA is not installed (extra gpu)", exc_type=ImportError)
    device = CudaDevice()
    probability = np.random.default_rng(5).integers(0, 256, (64, 64), dtype=np.uint8)
    with device.current():
        kernels, stream = Kernels(device), make_stream(device)
        for height, width in ((64, 64), (97, 131), (767, 1022)):
            source = TransferBuffer(device, probability.shape)
            result = TransferBuffer(device, (height, -(-width // 8)))
            source.host[:] = probability
            source.upload(64, stream)
            kernels.launch(
                *("restore_mask", cover(result.host.shape[1], height, (32, 8)), (32, 8), stream),
                *(source.address, 64, 64, height, width, linear_scale(64, height), linear_scale(64, width), 128),
                result.address,
            )
            result.download(height, stream)
            stream.synchronize()
            found = np.unpackbits(result.host, axis=1, count=width).view(np.bool_)
            expected = upsample_probability(probability, (height, width)) >= 128
            source.free()
            result.free()
            np.testing.assert_array_equal(found, expected)


def test_the_ptx_is_of_this_source() -> None:
    ptx = read_ptx(SOURCE, OPTIONS)
    assert ptx is not None, "after a change of the source: python -m isicrt.engine.gpu_ptx"
    assert ptx.endswith(b"\0")
    assert all(f".entry {name}(".encode() in ptx for name in NAMES)
    assert b"fma." not in ptx
    assert read_ptx(SOURCE + " ", OPTIONS) is None
    assert read_ptx(SOURCE, OPTIONS[:1]) is None


def test_nvcc_gives_the_ptx_again(tmp_path: Path) -> None:
    nvcc, ptxas = shutil.which("nvcc"), shutil.which("ptxas")
    if nvcc is None or ptxas is None:
        pytest.skip("no nvcc of the CUDA toolkit on the PATH")
    text = compile_ptx(SOURCE, OPTIONS, nvcc)
    kept = PTX_FILE.read_text()
    versions = [re.search(r"^\.version .*$", ptx, re.MULTILINE) for ptx in (text, kept)]
    if versions[0] and versions[1] and versions[0][0] == versions[1][0]:  # another nvcc may choose other registers
        assert text == kept
    for architecture in ("sm_75", "sm_80", "sm_90", "sm_120"):
        command = [ptxas, f"-arch={architecture}", str(PTX_FILE), "-o", "kernels.cubin"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr


class _Cuda:
    """What `Kernels` asks of PyCUDA."""

    class Error(Exception):
        pass

    def __init__(self, refuses: bool) -> None:
        self._refuses = refuses
        self.prepared: list[tuple[str, str]] = []

    def module_from_buffer(self, ptx: bytes) -> Any:
        if self._refuses:
            raise self.Error("device kernel image is invalid")
        return SimpleNamespace(get_function=self._function)

    def _function(self, name: str) -> Any:
        return SimpleNamespace(prepare=lambda types: self.prepared.append((name, types)))


def test_the_driver_takes_the_ptx_or_nvcc_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = _Cuda(refuses=False)
    device: Any = SimpleNamespace(cuda=cuda)
    Kernels(device)
    assert dict(cuda.prepared) == NAMES
    device.cuda = _Cuda(refuses=True)
    monkeypatch.setitem(sys.modules, "pycuda.compiler", None)
    with pytest.raises(ModelError, match=r"the driver refuses the PTX \(device kernel image is invalid\), and nvcc"):
        Kernels(device)
