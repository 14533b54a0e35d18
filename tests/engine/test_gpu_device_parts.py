"""What of the GPU's way needs no plan: its decoder, its kernels, a graph. Each test runs on a GPU where there is one,
and on the stand-ins everywhere, so that a test that fails on a GPU has passed before.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import pytest
from PIL import Image

from isicrt.benchmarks.rendered import render
from isicrt.engine.cuda_driver import find_gpu
from isicrt.engine.cuda_graph import CudaGraph
from isicrt.engine.cuda_memory import CudaDevice, TransferBuffer, make_stream
from isicrt.engine.geometry import UInt8Array, resize_by_pillow, upsample_probability
from isicrt.engine.gpu_decode import HARDWARE_LOAD, DeviceImage, GpuDecoder
from isicrt.engine.gpu_kernels import Kernels, cover
from isicrt.engine.gpu_tables import MapStack, ResizePlan, Table, mask_table
from tests.engine.cpu_kernels import CpuKernels
from tests.engine.stand_ins import HostDevice, RecordedGraph

BLOCK = (32, 8)


class Place(Protocol):
    """A GPU, or what stands in for one."""

    device: Any
    kernels: Any

    def decoder(self, load: float) -> GpuDecoder: ...

    def graph(self, handle: int, enqueue: Callable[[], None]) -> Any: ...

    def pixels(self, image: DeviceImage) -> UInt8Array: ...


class HostPlace:
    """nvImageCodec's CPU decoder, the kernels compiled for the CPU, and a list of calls as a graph."""

    def __init__(self, kernels: CpuKernels) -> None:
        self.device: Any = HostDevice()
        self.kernels: Any = kernels

    def decoder(self, load: float) -> GpuDecoder:
        pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed (extra gpu)")
        return GpuDecoder(GpuDecoder.CPU_ONLY, hardware_load=load, cpu_threads=1)

    def graph(self, handle: int, enqueue: Callable[[], None]) -> Any:
        return RecordedGraph(self.device, handle, enqueue)

    def pixels(self, image: DeviceImage) -> UInt8Array:
        return np.asarray(image.owner.cpu())


class GpuPlace:
    """The first GPU of this machine."""

    def __init__(self) -> None:
        if find_gpu() is None:
            pytest.skip("no NVIDIA GPU with a driver here")
        pytest.importorskip("pycuda.driver", reason="PyCUDA is not installed (extra gpu)", exc_type=ImportError)
        self.device: Any = CudaDevice()
        with self.device.current():
            self.kernels: Any = Kernels(self.device)

    def decoder(self, load: float) -> GpuDecoder:
        pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed (extra gpu)")
        return GpuDecoder(self.device.index, hardware_load=load)

    def graph(self, handle: int, enqueue: Callable[[], None]) -> Any:
        return CudaGraph(handle, enqueue)

    def pixels(self, image: DeviceImage) -> UInt8Array:
        assert image.owner.buffer_kind.name == "STRIDED_DEVICE"
        height, width = image.size
        rows = np.empty((height, image.pitch), np.uint8)
        # The last row need not reach to the pitch.
        self.device.cuda.memcpy_dtoh(rows.ravel()[: (height - 1) * image.pitch + 3 * width], image.address)
        return rows[:, : 3 * width].reshape(height, width, 3)


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest, kernels: CpuKernels) -> Iterator[Place]:
    """Its context is current during the test."""
    place: Place = HostPlace(kernels) if request.param == "host" else GpuPlace()
    with place.device.current():
        yield place
        place.kernels = None  # PyCUDA unloads them while their context is current


def _jpeg(size: tuple[int, int], mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(render(sum(size), size)[0]).convert(mode).save(buffer, "JPEG", quality=92, **options)
    return buffer.getvalue()


JPEGS = {
    "4:4:4": _jpeg((96, 128), subsampling=0),
    "4:2:2": _jpeg((96, 128), subsampling=1),
    "4:2:0": _jpeg((96, 128), subsampling=2),
    "grey": _jpeg((96, 128), "L"),
    "progressive": _jpeg((96, 128), progressive=True),
    "restart markers": _jpeg((96, 128), restart_marker_rows=1),
    "odd": _jpeg((97, 131)),
    "narrow": _jpeg((257, 33)),
    "photograph": _jpeg((767, 1022)),
}


def _check_pixels(found: UInt8Array, data: bytes, name: str) -> None:
    """As Pillow's, but for the rounding of another inverse cosine transform and of colours."""
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert found.shape == expected.shape, name
    difference = np.abs(found.astype(int) - expected)
    figures = f"{name}: mean {difference.mean():.3f}, max {difference.max()}"
    assert difference.mean() < 0.75, figures
    assert np.quantile(difference, 0.999) <= 4, figures
    assert difference.max() <= 24, figures


@pytest.mark.parametrize("load", [0.0, HARDWARE_LOAD, 1.0])
def test_jpegs_are_decoded_as_pillow_does_and_a_bad_one_costs_itself(
    place: Place, load: float, capfd: pytest.CaptureFixture[str]
) -> None:
    decoder, stream = place.decoder(load), make_stream(place.device)
    decoder.check(stream.handle)
    good = list(JPEGS.items())
    bad = b"\xff\xd8\xff rubbish \xff\xd9"
    files = [data for _, data in good[:4]] + [bad] + [data for _, data in good[4:]]
    images = decoder.decode(files, stream.handle)
    stream.synchronize()
    assert images.pop(4) is None
    for (name, data), image in zip(good, images, strict=True):
        assert image is not None, name
        assert image.pitch >= 3 * image.size[1]
        _check_pixels(place.pixels(image), data, name)
        image.release()
    decoder.close()
    capfd.readouterr()  # nvImageCodec speaks for itself


def test_a_large_batch_of_photographs_is_decoded(place: Place) -> None:
    data = JPEGS["photograph"]
    decoder, stream = place.decoder(HARDWARE_LOAD), make_stream(place.device)
    count = 2 if isinstance(place, HostPlace) else 64
    images = decoder.decode([data] * count, stream.handle)
    stream.synchronize()
    assert sum(image is not None for image in images) == count
    for image in (images[0], images[-1]):
        assert image is not None
        _check_pixels(place.pixels(image), data, "photograph")
    for image in images:
        assert image is not None
        image.release()
    decoder.close()


class _Room:
    """Buffers of one test, given back together."""

    def __init__(self, place: Place) -> None:
        self._device = place.device
        self._buffers: list[TransferBuffer] = []

    def __call__(self, *shape: int) -> TransferBuffer:
        self._buffers.append(TransferBuffer(self._device, shape))
        self._buffers[-1].host[:] = 0xEE
        return self._buffers[-1]

    def free(self) -> None:
        for buffer in self._buffers:
            buffer.free()


def _uploaded(room: _Room, stream: Any, table: Table) -> int:
    """The address of a table in device memory."""
    buffer = room(1, table.nbytes)
    buffer.host[:] = np.ascontiguousarray(table).view(np.uint8).reshape(1, -1)
    buffer.upload(1, stream)
    return int(buffer.address)


def _queue_resize(place: Place, stream: Any, sources: list[TransferBuffer], room: _Room, size: tuple[int, int]) -> Any:
    """As the chain does it, rows first; returns the buffer of the results."""
    h, w = size
    images = {}
    for n, source in enumerate(sources):
        height, pitch = source.host.shape
        images[n] = DeviceImage(source.address, pitch, (height, pitch // 3), source)
    plan = ResizePlan(images, size)
    weights, between, result = room(plan.weight_bytes), room(plan.between_bytes), room(len(sources) * h, 3 * w)
    axes = plan.axes(weights.address)
    address = _uploaded(room, stream, axes)
    place.kernels.launch("triangle_weights", cover(max(size), 1, len(axes), (128, 1)), (128, 1), stream, address)
    address = _uploaded(room, stream, plan.images(weights.address, between.address, result.address))
    (part,) = plan.parts
    place.kernels.launch("resize_rows", cover(w, part.tallest, part.images, BLOCK), BLOCK, stream, address, w)
    place.kernels.launch("resize_columns", cover(3 * w, h, part.images, BLOCK), BLOCK, stream, address, w, h)
    return result


@pytest.mark.parametrize("target", [(256, 256), (48, 80)])
@pytest.mark.parametrize("size", [(64, 64), (97, 131), (512, 512), (767, 1022), (1, 9)])
def test_images_are_resized_as_pillow_does_it(place: Place, size: tuple[int, int], target: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    image = render(7, size)[0] if min(size) > 8 else rng.integers(0, 256, (*size, 3), np.uint8)
    images = [np.ascontiguousarray(image), render(8, (90, 120))[0]]  # another one beside it, in the same launches
    room, stream = _Room(place), make_stream(place.device)
    sources = [room(one.shape[0], 3 * one.shape[1]) for one in images]
    for source, one in zip(sources, images, strict=True):
        source.host[:] = one.reshape(len(one), -1)
        source.upload(len(one), stream)
    result = _queue_resize(place, stream, sources, room, target)
    result.download(2 * target[0], stream)
    stream.synchronize()
    found = np.array(result.host).reshape(2, *target, 3)
    room.free()
    difference = np.abs(found[0].astype(int) - resize_by_pillow(images[0], target))
    # Pillow 13 shrinks the height first where that is much less work; the kernels begin with the width, as before.
    assert difference.max() <= (size[0] * target[1] > 1.3 * size[1] * target[0])
    np.testing.assert_array_equal(found[1], resize_by_pillow(images[1], target))


def test_a_graph_reads_what_lies_in_the_buffers_when_it_is_launched(place: Place) -> None:
    """Upload, kernel and download, recorded once; each launch takes the pixels of its own time."""
    rng = np.random.default_rng(3)
    room, stream = _Room(place), make_stream(place.device)
    height, width = 97, 131
    probability, packed = room(64, 64), room(height, -(-width // 8))
    table = mask_table({0: (height, width)}, [0], packed.address, MapStack(probability.address, (64, 64)))
    address = _uploaded(room, stream, table)
    grid = cover(packed.host.shape[1], height, 1, BLOCK)

    def enqueue() -> None:
        probability.upload(64, stream)
        place.kernels.launch("restore_mask", grid, BLOCK, stream, address, 64, 64, 128)
        packed.download(height, stream)

    enqueue()  # once call by call, as a slot does it
    stream.synchronize()
    graph = place.graph(stream.handle, enqueue)
    for _ in range(3):
        probability.host[:] = rng.integers(0, 256, (64, 64), dtype=np.uint8)
        packed.host[:] = 0xEE
        graph.launch(stream.handle)
        stream.synchronize()
        expected = upsample_probability(np.array(probability.host), (height, width)) >= 128
        found = np.unpackbits(packed.host, axis=1, count=width).view(np.bool_)
        np.testing.assert_array_equal(found, expected)
    graph.free()
    # The stream takes calls again afterwards.
    probability.host[:] = 255
    enqueue()
    stream.synchronize()
    assert np.unpackbits(packed.host, axis=1, count=width).all()
    room.free()


def test_what_fails_while_it_is_recorded_leaves_the_stream_in_order(place: Place) -> None:
    stream = make_stream(place.device)

    def enqueue() -> None:
        raise KeyError("in the middle")

    with pytest.raises(KeyError, match="in the middle"):
        place.graph(stream.handle, enqueue)
    room = _Room(place)
    buffer = room(4)
    buffer.host[:] = [1, 2, 3, 4]
    buffer.upload(4, stream)
    stream.synchronize()
    buffer.host[:] = 0
    buffer.download(4, stream)
    stream.synchronize()
    assert buffer.host.tolist() == [1, 2, 3, 4]
    room.free()
