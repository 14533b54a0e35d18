"""The kernels' bytes against Pillow's, OpenCV's and numpy's. Their source is compiled for the CPU here."""

from __future__ import annotations

import importlib.util
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

from isicrt.engine import gpu_kernels, gpu_ptx, gpu_tables
from isicrt.engine.cuda_driver import find_gpu
from isicrt.engine.cuda_memory import CudaDevice, TransferBuffer, make_stream
from isicrt.engine.errors import ModelError
from isicrt.engine.geometry import UInt8Array, cutoff, resize_by_pillow, upsample_probability
from isicrt.engine.gpu_decode import DeviceImage
from isicrt.engine.gpu_kernels import NAMES, OPTIONS, SOURCE, Kernels, cover, taps
from isicrt.engine.gpu_lane import Lane
from isicrt.engine.gpu_ptx import PTX_FILE, PTX_VERSION, compile_ptx, read_ptx
from isicrt.engine.gpu_tables import MapStack, Part, ResizePlan, aligned, mask_table
from isicrt.engine.masks import restore_mask
from tests.engine.cpu_kernels import CpuKernels

BLOCK = (8, 4)


def _rows(kernels: CpuKernels, images: list[UInt8Array], size: tuple[int, int]) -> list[UInt8Array]:
    """Images that the batch's tables and the launches of a chain resize, as in `GpuChain`."""
    (h, w), given = size, {}
    for n, image in enumerate(images):
        given[n] = DeviceImage(image.ctypes.data, image.strides[0], (image.shape[0], image.shape[1]), image)
    plan = ResizePlan(given, size)
    weights = np.full(plan.weight_bytes, 0xEE, np.uint8)
    between = np.full(plan.between_bytes, 0xEE, np.uint8)
    results = np.empty((len(images), *size, 3), np.uint8)
    axes = plan.axes(weights.ctypes.data)
    table = plan.images(weights.ctypes.data, between.ctypes.data, results.ctypes.data)
    kernels.launch("triangle_weights", (2, 1, len(axes)), (8, 1), None, axes.ctypes.data)
    for part in plan.parts:
        rows = table[part.first :].ctypes.data
        kernels.launch("resize_rows", cover(w, part.tallest, part.images, BLOCK), BLOCK, None, rows, w)
        kernels.launch("resize_columns", cover(3 * w, h, part.images, BLOCK), BLOCK, None, rows, w, h)
    return list(results)


def _resize(kernels: CpuKernels, image: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    return _rows(kernels, [image], size)[0]


def _restore(
    kernels: CpuKernels, probabilities: UInt8Array, sizes: list[tuple[int, int]], level: int
) -> list[npt.NDArray[np.bool_]]:
    h, w = probabilities.shape[1:]
    packed = [np.full((height, -(-width // 8)), 0xEE, np.uint8) for height, width in sizes]
    addresses = [one.ctypes.data for one in packed]
    table = mask_table(dict(enumerate(sizes)), addresses, 0, MapStack(probabilities.ctypes.data, (h, w)))
    shape = [max(one.shape[axis] for one in packed) for axis in (0, 1)]
    grid = cover(shape[1], shape[0], len(sizes), BLOCK)
    kernels.launch("restore_mask", grid, BLOCK, None, table.ctypes.data, h, w, level)
    masks = []
    for one, (_, width) in zip(packed, sizes, strict=True):
        mask = np.unpackbits(one, axis=1, count=width)
        np.testing.assert_array_equal(np.packbits(mask, axis=1), one)  # what is behind the last pixel is black
        masks.append(mask.view(np.bool_))
    return masks


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
    assert taps(1000, 96) == 23
    first, count, weights = (np.full(shape, -7, np.int32) for shape in (96, 96, (96, 23)))
    table = np.concatenate([first, count, weights.ravel()])
    axis = np.array([1000, 96, 23, table.ctypes.data])
    kernels.launch("triangle_weights", (2, 1, 1), (8, 1), None, axis.ctypes.data)
    first, count, weights = table[:96], table[96:192], table[192:].reshape(96, 23)
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
    np.testing.assert_array_equal(_restore(kernels, probability[None], [size], level)[0], expected)


def test_one_launch_is_for_a_batch_of_all_sizes(kernels: CpuKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
    alone = [_resize(kernels, image, (48, 80)) for image in images]
    for most in (gpu_tables.BETWEEN_BYTES, 1 << 16, 1):
        monkeypatch.setattr(gpu_tables, "BETWEEN_BYTES", most)
        for found, expected in zip(_rows(kernels, images, (48, 80)), alone, strict=True):
            np.testing.assert_array_equal(found, expected)
    probabilities = rng.integers(0, 256, (len(SIZES), 48, 80), dtype=np.uint8)
    for n, mask in enumerate(_restore(kernels, probabilities, SIZES, 128)):
        np.testing.assert_array_equal(mask, upsample_probability(probabilities[n], SIZES[n]) >= 128)


def test_parts_are_as_large_as_their_bound_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    images = {n: DeviceImage(0, 0, (height, 9), None) for n, height in enumerate((10, 20, 400, 5, 5))}
    own = [aligned(image.size[0] * 64 * 3) for image in images.values()]
    monkeypatch.setattr(gpu_tables, "BETWEEN_BYTES", own[0] + own[1])
    plan = ResizePlan(images, (32, 64))
    assert plan.parts == [Part(0, 2, 20), Part(2, 1, 400), Part(3, 2, 5)]
    assert plan.between_bytes == own[2]
    assert len(plan.axes(0)) == 5  # four heights and one width
    assert ResizePlan({}, (32, 64)).parts == []


def test_a_mask_of_a_smooth_probability_at_a_photographs_size(kernels: CpuKernels) -> None:
    noise = np.random.default_rng(4).integers(0, 256, (256, 256), dtype=np.uint8)
    probability = np.asarray(cv2.GaussianBlur(noise, (0, 0), 12), np.uint8)
    for size in ((767, 1022), (1500, 2003)):
        expected = restore_mask(probability, size, threshold=0.5, keep_largest=False, fill_holes=False)
        assert 0 < expected.mean() < 1
        np.testing.assert_array_equal(_restore(kernels, probability[None], [size], cutoff(0.5))[0], expected)


def test_a_grid_covers_every_thread() -> None:
    assert cover(17, 9, 2, (8, 4)) == (3, 3, 2)
    assert cover(1, 1_000_000, 1, (8, 4)) == (1, 128, 1)
    assert cover(1_000_000, 1, 3, (8, 4)) == (64, 1, 3)


def test_kernels_go_round_again_where_the_grid_ends_earlier(
    kernels: CpuKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_kernels, "_MOST_BLOCKS", (2, 3))
    rng = np.random.default_rng(8)
    image = rng.integers(0, 256, (97, 131, 3), dtype=np.uint8)
    np.testing.assert_array_equal(_resize(kernels, image, (48, 80)), resize_by_pillow(image, (48, 80)))
    probability = rng.integers(0, 256, (64, 64), dtype=np.uint8)
    expected = upsample_probability(probability, (97, 331)) >= 128
    np.testing.assert_array_equal(_restore(kernels, probability[None], [(97, 331)], 128)[0], expected)


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
    sizes = [(64, 64), (97, 131), (767, 1022)]
    maps = np.random.default_rng(5).integers(0, 256, (3 * 64, 64), dtype=np.uint8)
    with device.current():
        kernels, stream = Kernels(device), make_stream(device)
        slot: Any = SimpleNamespace(stream=stream)
        lane = Lane(device, slot)
        source = TransferBuffer(device, maps.shape)
        source.host[:] = maps
        source.upload(len(maps), stream)
        offsets = [0]
        for height, width in sizes:
            offsets.append(offsets[-1] + aligned(height * -(-width // 8)))
        packed = lane.packed.at_least(offsets[-1])
        stack = MapStack(source.address, (64, 64))
        (table,) = lane.upload_tables(mask_table(dict(enumerate(sizes)), offsets, packed, stack))
        for first in (0, 1):  # the second launch reads the table from a row in its midst
            grid = cover(128, 767, len(sizes) - first, (32, 8))
            kernels.launch("restore_mask", grid, (32, 8), stream, table.row(first), 64, 64, 128)
        lane.masks.download(packed, offsets[-1], stream)
        stream.synchronize()
        found = np.array(lane.masks.host)
        source.free()
        lane.free(device)
    for n, (height, width) in enumerate(sizes):
        bits = found[offsets[n] :][: height * -(-width // 8)].reshape(height, -1)
        expected = upsample_probability(maps[64 * n : 64 * (n + 1)], (height, width)) >= 128
        np.testing.assert_array_equal(np.unpackbits(bits, axis=1, count=width).view(np.bool_), expected)


def test_the_ptx_is_of_this_source() -> None:
    ptx = read_ptx(SOURCE, OPTIONS)
    assert ptx is not None, "after a change of the source: python -m isicrt.engine.gpu_ptx"
    assert ptx.endswith(b"\0")
    assert all(f".entry {name}(".encode() in ptx for name in NAMES)
    assert b"fma." not in ptx
    assert f"\n.version {PTX_VERSION} // nvcc: ".encode() in ptx
    assert read_ptx(SOURCE + " ", OPTIONS) is None
    assert read_ptx(SOURCE, OPTIONS[:1]) is None


def test_ptxas_takes_the_ptx(tmp_path: Path) -> None:
    """Also one of an older CUDA than nvcc's: that which torch brings is of CUDA 12."""
    triton = importlib.util.find_spec("triton")
    folders = [] if triton is None or triton.origin is None else [Path(triton.origin).parent / "backends/nvidia/bin"]
    found = {shutil.which("ptxas"), *(shutil.which("ptxas", path=folder) for folder in folders)} - {None}
    if not found:
        pytest.skip("no ptxas, neither of the CUDA toolkit nor of torch")
    for ptxas in found:
        for architecture in ("sm_75", "sm_80", "sm_89", "sm_90"):
            command = [str(ptxas), f"-arch={architecture}", str(PTX_FILE), "-o", "kernels.cubin"]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr


def test_what_nvcc_writes_becomes_the_ptx(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = PTX_FILE.read_text()
    written = re.sub(r"^\.version .* // nvcc: (.*)$", r".version \1", kept, flags=re.MULTILINE)
    written = "// Generated by NVIDIA NVVM Compiler\n" + written.partition("\n")[2]
    assert f"\n.version {PTX_VERSION}" not in written

    def run(command: list[str], *, cwd: str, **_: Any) -> None:
        Path(cwd, "kernels.ptx").write_text(written)

    monkeypatch.setattr(gpu_ptx.subprocess, "run", run)
    assert compile_ptx(SOURCE, OPTIONS) == kept


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
