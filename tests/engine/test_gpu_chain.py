"""The whole GPU chain on a CPU: nvImageCodec's CPU decoder, the kernels compiled for the CPU, ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isicrt.benchmarks.agreement import cpu_masker
from isicrt.benchmarks.rendered import render
from isicrt.engine import gpu_chain, gpu_stages, gpu_tables
from isicrt.engine.cores import available_cores
from isicrt.engine.errors import ImageError, ModelError, SettingsError
from isicrt.engine.gpu_batch import PackedMask, SourceView, read_chain_image
from isicrt.engine.gpu_chain import GpuChain
from isicrt.engine.gpu_decode import HARDWARE_LOAD, DeviceImage, GpuDecoder
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.outcome import DecodeCounts
from tests.engine.cpu_kernels import CpuKernels
from tests.engine.host_plan import HostPlan
from tests.engine.stand_ins import CudaError


def _jaccard(first: Any, second: Any) -> float:
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else 1.0


def test_masks_are_those_of_the_cpu(host: HostPlan, rendered_pairs: Path) -> None:
    files = sorted((rendered_pairs / "images").iterdir())[:10]  # batches of 4, 4 and 2, in two lanes
    found = host.chain.segment_files(files)
    expected = cpu_masker(host.onnx)(files)
    for one, other in zip(found, expected, strict=True):
        assert not isinstance(one, ImageError)
        assert not isinstance(other, ImageError)
        assert one.dtype == bool
        assert one.shape == other.shape
        assert 0 < one.mean() < 1
        assert _jaccard(one, other) > 0.98  # the decoders may differ by a level or two


def test_masks_have_eight_bits_a_pixel_only_while_they_are_looked_at(
    host: HostPlan, rendered_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [*sorted((rendered_pairs / "images").iterdir())[:5], rendered_pairs / "no such.jpg"]
    expected, clean, cleaned = host.chain.segment_files(files), host.chain._clean, []
    monkeypatch.setattr(host.chain, "_clean", lambda mask: cleaned.append(mask) or clean(mask))
    masks = host.chain.masks_of(files)
    assert len(cleaned) == 0
    for n, (mask, whole) in enumerate(zip(masks, expected, strict=True)):
        assert len(cleaned) == min(n + 1, 5)
        if n < 5:
            np.testing.assert_array_equal(mask, whole)
        else:
            assert isinstance(mask, ImageError)


def test_what_is_no_jpeg_is_decoded_on_the_cpu_and_equals_it(
    host: HostPlan, rendered_pairs: Path, tmp_path: Path
) -> None:
    source = sorted((rendered_pairs / "images").iterdir())
    files = [source[0], tmp_path / "a.png", tmp_path / "cmyk.jpg"]
    Image.open(source[1]).save(files[1])
    Image.open(source[2]).convert("CMYK").save(files[2])
    found, expected = host.chain.segment_files(files), list(cpu_masker(host.onnx)(files))
    for index in (1, 2):
        np.testing.assert_array_equal(found[index], expected[index])


def test_a_bad_file_costs_itself_only(host: HostPlan, rendered_pairs: Path, tmp_path: Path) -> None:
    good = sorted((rendered_pairs / "images").iterdir())[0]
    half, text, gone = tmp_path / "half.jpg", tmp_path / "text.jpg", tmp_path / "gone.jpg"
    half.write_bytes(good.read_bytes()[:2000])
    text.write_text("not an image")
    found = host.chain.segment_files([half, good, text, gone, good])
    assert [isinstance(mask, ImageError) for mask in found] == [True, False, True, True, False]
    assert [str(found[n]).startswith(str(path)) for n, path in ((0, half), (2, text), (3, gone))] == [True] * 3
    np.testing.assert_array_equal(found[1], found[4])
    assert all(isinstance(mask, ImageError) for mask in host.chain.segment_files([text, gone]))


def test_a_file_that_the_gpu_cannot_decode_gets_a_second_chance(
    host: HostPlan, rendered_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted((rendered_pairs / "images").iterdir())[:3]
    monkeypatch.setattr(host.chain._decoder, "decode", lambda contents, stream: [None] * len(contents))
    expected = cpu_masker(host.onnx)(files)
    for mask, other in zip(host.chain.segment_files(files), expected, strict=True):
        np.testing.assert_array_equal(mask, other)


@pytest.mark.parametrize("refuses", [False, True])
def test_a_file_that_lies_between_others_in_memory_is_the_same_file(
    host: HostPlan, rendered_pairs: Path, monkeypatch: pytest.MonkeyPatch, refuses: bool
) -> None:
    if refuses:
        monkeypatch.setattr(host.chain._decoder, "decode", lambda contents, stream: [None] * len(contents))
    images = [read_chain_image(file, (64, 64)) for file in sorted((rendered_pairs / "images").iterdir())[:2]]
    views = []
    for image in images:
        assert image.source is not None
        data = memoryview(b"between" + bytes(image.source.data) + b"others")[7:-6]
        views.append(replace(image, source=SourceView(data, image.source.stamp)))
    expected, found = (host.chain.collect(host.chain.submit(batch)) for batch in (images, views))
    for mask, other in zip(found, expected, strict=True):
        assert isinstance(mask, PackedMask)
        assert isinstance(other, PackedMask)
        np.testing.assert_array_equal(mask.bits, other.bits)
        assert mask.bits.any()


def test_masks_stay_as_they_are_while_the_next_batches_come(host: HostPlan, rendered_pairs: Path) -> None:
    images = [read_chain_image(file, (64, 64)) for file in sorted((rendered_pairs / "images").iterdir())[:4]]
    first = host.chain.collect(host.chain.submit(images))
    bits = [np.array(mask.bits) for mask in first if isinstance(mask, PackedMask)]
    assert len(bits) == 4
    for _ in range(2 * host.chain.depth):
        host.chain.collect(host.chain.submit(images[::-1]))
    for mask, before in zip(first, bits, strict=True):
        assert isinstance(mask, PackedMask)
        np.testing.assert_array_equal(mask.bits, before)


def test_it_is_counted_where_images_were_decoded(
    host: HostPlan, rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted((rendered_pairs / "images").iterdir())[:3]
    png = tmp_path / "a.png"
    Image.open(files[0]).save(png)
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(files[0].read_bytes().replace(b"\xff\xdb", b"\xff\xef"))  # no quantisation table any more
    host.chain.segment_files([*files, png])
    assert host.chain.decoded == DecodeCounts(gpu=3, cpu=1, refused=0)
    real = host.chain._decoder.decode
    monkeypatch.setattr(
        host.chain._decoder, "decode", lambda contents, stream: [*real(contents[:1], stream), None, None]
    )
    host.chain.segment_files([*files, png])
    assert host.chain.decoded == DecodeCounts(gpu=4, cpu=4, refused=2)
    monkeypatch.undo()
    assert isinstance(host.chain.segment_files([bad])[0], ImageError)
    assert host.chain.decoded == DecodeCounts(gpu=4, cpu=4, refused=2), "what nobody could decode was not decoded"
    for context in host.contexts:
        context.refuses = True
    with pytest.raises(ModelError):
        host.chain.segment_files(files)
    assert host.chain.decoded == DecodeCounts(gpu=4, cpu=4, refused=2), "no batch came of it"


def test_a_lane_that_cannot_be_freed_does_not_keep_the_rest(host: HostPlan, rendered_pairs: Path) -> None:
    images = [read_chain_image(file, (64, 64)) for file in sorted((rendered_pairs / "images").iterdir())[:4]]
    tickets = [host.chain.submit(images), host.chain.submit(images)]
    for ticket in tickets:
        ticket.queued.result()
    held = [image for ticket in tickets for image in ticket.held]
    assert len(held) == 8
    first = host.chain._lanes[0]
    free = first.packed.free

    def fail() -> None:
        raise CudaError("an illegal memory access was encountered")

    first.packed.free = fail  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="could not close decoding on the GPU: an illegal memory access"):
        host.chain.close()
    assert all(image.owner is None for image in held)
    assert host.chain._decoder._decoder is None
    assert host.chain._kernels is None
    assert host.chain._threads._shutdown
    assert first.done is None
    with host.device.current():
        free()  # and after it nothing is left, which the fixture looks for


def test_what_ended_the_work_is_what_is_said(host: HostPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: Any) -> None:
        raise CudaError("gone")

    lane = host.chain._lanes[0]
    monkeypatch.setattr(lane, "free", fail)
    with pytest.raises(KeyError, match="the cause"), host.chain:
        raise KeyError("the cause")


@pytest.mark.parametrize("load", [-0.1, 1.1, float("nan")])
def test_the_load_of_the_hardware_decoder_is_a_share(load: float) -> None:
    with pytest.raises(SettingsError, match="hardware decoder load"):
        GpuDecoder(GpuDecoder.CPU_ONLY, hardware_load=load)


def test_the_load_of_the_hardware_decoder_and_the_threads_reach_the_decoder(
    host: HostPlan, kernels: CpuKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[float, int | None]] = []

    def make(device: int, *, hardware_load: float, cpu_threads: int | None) -> GpuDecoder:
        made.append((hardware_load, cpu_threads))
        return GpuDecoder(GpuDecoder.CPU_ONLY, cpu_threads=1)

    host.device.index = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(gpu_chain, "GpuDecoder", make)
    monkeypatch.setattr(gpu_chain, "TensorRtRuntime", type(host.runtime))
    monkeypatch.setattr(gpu_chain, "Kernels", lambda device: kernels)
    for options in ({}, {"hardware_load": 0.25, "threads": 3}):
        chain = gpu_stages.open_chain(host.runtime, "gpu", **options)
        assert chain is not None
        assert chain._threads._max_workers == options.get("threads", available_cores())
        chain.close()
    assert made == [(HARDWARE_LOAD, None), (0.25, 3)]


def test_several_batches_are_in_flight_and_come_back_in_any_order(host: HostPlan, rendered_pairs: Path) -> None:
    files = sorted((rendered_pairs / "images").iterdir())[:6]
    alone = host.chain.segment_files(files)
    images = [read_chain_image(file, (64, 64)) for file in files]
    first, second = host.chain.submit(images[:4]), host.chain.submit(images[4:])
    with pytest.raises(RuntimeError, match="2 batches are in flight already"):
        host.chain.submit(images[:1])
    found = [*host.chain.collect(second), *host.chain.collect(first)]
    for mask, other in zip([*found[2:], *found[:2]], alone, strict=True):
        assert isinstance(mask, PackedMask)
        assert mask.bits.shape == (mask.native_size[0], -(-mask.native_size[1] // 8))
        np.testing.assert_array_equal(mask.clean(keep_largest=True, fill_holes=True).whole(), other)
    with pytest.raises(RuntimeError, match="collected already"):
        host.chain.collect(first)


def test_decoded_images_are_given_back_whatever_becomes_of_the_batch(
    host: HostPlan, rendered_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that the traceback of an error refers to: nvImageCodec frees them on a stream that goes soon."""
    seen: list[DeviceImage] = []
    real = host.chain._decoder.decode

    def decode(contents: Any, stream: int) -> Any:
        images = real(contents, stream)
        seen.extend(images)
        return images

    monkeypatch.setattr(host.chain._decoder, "decode", decode)
    files = sorted((rendered_pairs / "images").iterdir())[:3]
    host.chain.segment_files(files)
    for context in host.contexts:
        context.refuses = True
    with pytest.raises(ModelError):
        host.chain.segment_files(files)
    assert len(seen) == 6
    assert all(image.owner is None for image in seen)


def test_an_error_of_the_device_is_ours_and_frees_the_lane(host: HostPlan, rendered_pairs: Path) -> None:
    files = sorted((rendered_pairs / "images").iterdir())[:2]
    for context in host.contexts:
        context.fails = True
    for _ in range(3):
        with pytest.raises(ModelError, match="could not segment a batch of 2: an illegal memory access"):
            host.chain.segment_files(files)
    for context in host.contexts:
        context.fails, context.refuses = False, True
    for _ in range(3):
        with pytest.raises(ModelError, match="it could not run a batch of 2"):
            host.chain.segment_files(files)
    for context in host.contexts:
        context.refuses = False
    assert not any(isinstance(mask, ImageError) for mask in host.chain.segment_files(files))


@pytest.mark.parametrize("count", [0, 5])
def test_a_batch_has_a_size(host: HostPlan, rendered_pairs: Path, count: int) -> None:
    images = [read_chain_image(file, (64, 64)) for file in (rendered_pairs / "images").iterdir()][:count]
    with pytest.raises(ModelError, match=f"batches of 1 to 4 images are taken, not {count}"):
        host.chain.submit(images)
    assert host.chain.segment_files([]) == []


def test_images_of_growing_size_need_more_memory_and_get_it(host: HostPlan, tmp_path: Path) -> None:
    for n, size in enumerate([(40, 30), (600, 900), (33, 500), (1200, 800)]):
        Image.fromarray(render(n, size)[0]).save(tmp_path / f"{n}.jpg")
    files = sorted(tmp_path.glob("*.jpg"))
    for one, other in zip(host.chain.segment_files(files), cpu_masker(host.onnx)(files), strict=True):
        assert not isinstance(one, ImageError)
        assert not isinstance(other, ImageError)
        assert one.shape == other.shape


@pytest.mark.parametrize("most", [1, 1 << 16, 1 << 25])
def test_images_of_all_kinds_share_their_launches(
    host: HostPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(gpu_tables, "BETWEEN_BYTES", most)
    rng, files = np.random.default_rng(0), []
    for n in range(24):
        size = (int(rng.integers(9, 60 + n * 20)), int(rng.integers(9, 60 + n * 20)))
        files.append(tmp_path / f"{n:02d}.{'png' if n % 6 == 4 else 'jpg'}")
        Image.fromarray(render(n, size)[0]).save(files[-1])
        if n % 6 == 5:
            files[-1].write_bytes(files[-1].read_bytes().replace(b"\xff\xdb", b"\xff\xef"))
    alone = [host.chain.segment_files([file])[0] for file in files]
    host.device.log.clear()
    for one, other in zip(host.chain.segment_files(files), alone, strict=True):
        assert isinstance(one, ImageError) == isinstance(other, ImageError)
        if not isinstance(one, ImageError):
            np.testing.assert_array_equal(one, other)
    count = host.device.log.count
    assert count("triangle_weights") == count("restore_mask") == 6  # batches of 4
    assert count("resize_rows") == count("resize_columns")
    if most == 1:
        assert count("resize_rows") == 16
    if most == 1 << 25:
        assert count("resize_rows") == 6


def test_only_a_plan_can_be_fed_by_the_gpu(darkness_onnx: Path) -> None:
    with (
        OnnxRuntime(darkness_onnx) as runtime,
        pytest.raises(SettingsError, match=r"decoding on the GPU needs a \.plan"),
    ):
        GpuChain(runtime)
