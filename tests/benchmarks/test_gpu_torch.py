"""torch in TensorRT's place: on the CPU here, and the same on a GPU where there is one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isicrt.benchmarks import gpu_torch
from isicrt.benchmarks.agreement import Limits, cpu_masker
from isicrt.benchmarks.gpu_alone import GpuParts, opened_chain
from isicrt.benchmarks.gpu_parity import compare
from isicrt.benchmarks.gpu_slots import SlotRuntime
from isicrt.benchmarks.gpu_torch import (
    COMPILED_NAME,
    NAME,
    CompiledNetwork,
    TorchContext,
    load_network,
    memory_at,
    open_torch,
    torch_figures,
)
from isicrt.engine.cuda_driver import find_gpu
from isicrt.engine.errors import DataError, ImageError, ModelError
from isicrt.engine.onnx_file import read_onnx_card
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.scores import score_mask
from isicrt.engine.shipped import resolve
from tests.benchmarks.host_parts import host_parts, torch_host, write_convolution_model
from tests.engine.cpu_kernels import CpuKernels

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "convolution.onnx"
    write_convolution_model(path)
    return path


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest) -> str:
    if request.param == "gpu":
        if find_gpu() is None or not torch.cuda.is_available():
            pytest.skip("no NVIDIA GPU that torch can use")
        pytest.importorskip("pycuda.driver", reason="PyCUDA is not installed (extra gpu)", exc_type=ImportError)
    return str(request.param)


@pytest.fixture
def runtime(place: str, model: Path) -> Iterator[SlotRuntime]:
    with torch_host(model) if place == "host" else open_torch(model, 4) as runtime:
        yield runtime


@pytest.fixture
def parts(place: str, tmp_path_factory: pytest.TempPathFactory) -> GpuParts:
    pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed (extra gpu)")
    return host_parts(CpuKernels(tmp_path_factory.mktemp("kernels"))) if place == "host" else GpuParts()


def test_it_gives_what_onnx_runtime_gives(runtime: SlotRuntime, model: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    with OnnxRuntime(model, threads=1) as onnx:
        # Often enough at one size that a GPU runs a graph, then others, with new pixels each time.
        for turn, count in enumerate((4, 4, 4, 4, 4, 1, 3, 4)):
            batch = np.roll(images, 7 * turn, axis=1)[:count]
            assert np.abs(runtime.infer(batch).astype(int) - onnx.infer(batch)).max() <= 1
        tickets = [runtime.submit(images[n:]) for n in range(runtime.depth)]
        for n in reversed(range(runtime.depth)):
            assert np.abs(runtime.collect(tickets[n]).astype(int) - onnx.infer(images[n:])).max() <= 1
    assert runtime.name == NAME
    with pytest.raises(ModelError, match="batches of at most 4"):
        runtime.infer(np.zeros((5, 64, 64, 3), np.uint8))
    timing = runtime.time(images)
    assert min(timing.upload, timing.network, timing.download) > 0


def test_the_chain_around_it_gives_the_masks_of_the_cpu(
    runtime: SlotRuntime, parts: GpuParts, model: Path, rendered_pairs: Path, tmp_path: Path
) -> None:
    files = sorted((rendered_pairs / "images").iterdir())[:10]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(files[0].read_bytes()[:2000])
    files.insert(3, broken)
    with OnnxRuntime(model, threads=1) as onnx, opened_chain(runtime, parts) as chain:
        expected = list(cpu_masker(onnx)(files))
        found = chain.segment_files(files)
        assert (chain.decoded.gpu, chain.decoded.refused) == (10, 0)
    assert isinstance(found[3], ImageError)
    for one, other in zip(found[:3] + found[4:], expected[:3] + expected[4:], strict=True):
        assert not isinstance(one, ImageError)
        assert not isinstance(other, ImageError)
        assert score_mask(one, other).jaccard > 0.98  # decoders differ by a level or two


def test_parity_of_the_gpus_way_with_the_cpus(
    place: str, model: Path, parts: GpuParts, rendered_pairs: Path, tmp_path: Path
) -> None:
    def engine() -> SlotRuntime:
        return torch_host(model) if place == "host" else open_torch(model, 4)

    images, masks = rendered_pairs / "images", rendered_pairs / "masks"
    agreement, decoded = compare(model, images, masks, engine, parts)
    assert decoded == {"engine": NAME, "gpu": 12, "cpu": 0, "refused": 0}
    assert (len(agreement.images), agreement.scored) == (12, 12)
    # Of a model with steep edges in small images; the limits of the command are for the shipped one.
    assert agreement.problems(Limits(min_jaccard=0.98, max_change=0.01)) == []
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no ground truth"):
        compare(model, images, tmp_path / "none", engine, parts)


def test_half_precision_changes_the_convolutions_and_no_mask() -> None:
    images = torch.randint(0, 256, (1, 192, 192, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    model = resolve("unet-light")
    whole, half = load_network(model, "cpu", half=False)(images), load_network(model, "cpu", half=True)(images)
    assert half.dtype == torch.uint8
    assert half.shape == (1, 192, 192)
    assert (whole.int() - half.int()).abs().float().mean() < 1.0
    assert not torch.equal(whole, half)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ for torch.compile")
def test_a_compiled_network_is_for_its_sizes_and_the_plain_one_for_others(model: Path) -> None:
    network = CompiledNetwork(model, "cpu", (2,), half=False)
    assert list(network.seconds) == [2]
    assert network.seconds[2] > 0
    plain, calls = load_network(model, "cpu", half=False), []
    compiled = network._compiled
    network._compiled = lambda images: (calls.append(len(images)), compiled(images))[1]
    for size in (1, 2, 3):
        images = torch.randint(0, 256, (size, 64, 64, 3), dtype=torch.uint8)
        assert (network(images).int() - plain(images).int()).abs().max() <= 1
    assert calls == [2]


def test_half_precision_is_traced_in_one_piece() -> None:
    """`_exact_product` turns autocast off in its midst, which a compiler might break the graph for."""
    shape = (1, *read_onnx_card(resolve("unet-light")).input_size, 3)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    network = load_network(resolve("unet-light"), "cpu", half=True, compiled=counter)
    network(torch.zeros(shape, dtype=torch.uint8))
    assert counter.frame_count == 1


def test_a_compiler_that_takes_too_long_or_fails_is_given_up(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(network: Any, shape: tuple[int, ...], device: str) -> None:
        if shape[0] == 1:
            return
        while True:
            with suppress(Exception):  # no error of its own
                time.sleep(0.01)

    monkeypatch.setattr(gpu_torch, "_settle", endless)
    with pytest.raises(ModelError, match=r"torch\.compile: not done after 0.2 s \(batches that are: 1 in 0 s\)"):
        CompiledNetwork(model, "cpu", (1, 2), half=False, seconds=0.2)

    def fail(*_: Any) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(gpu_torch, "_settle", fail)
    with pytest.raises(ModelError, match=r"torch\.compile: RuntimeError: Failed to find C compiler"):
        CompiledNetwork(model, "cpu", (1,), half=False)


def test_memory_of_somebody_else_is_not_copied() -> None:
    pixels = np.arange(12, dtype=np.uint8)
    tensor = memory_at(pixels.ctypes.data, (3, 4), "cpu")
    tensor[1, 2] = 99
    assert pixels[6] == 99


class _Graph:
    def __init__(self, work: Any) -> None:
        self.work = work
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        self.work()


def _context(monkeypatch: pytest.MonkeyPatch, *, fails: bool) -> tuple[TorchContext, list[_Graph], list[int]]:
    graphs: list[_Graph] = []
    runs: list[int] = []

    def network(images: Any) -> Any:
        runs.append(len(images))
        return images[..., 0]

    def capture(self: Any, stream: int, work: Any) -> None:
        if fails:
            self._record, self.graph_error = False, "operation not permitted when stream is capturing"
        else:
            graphs.append(_Graph(work))
            self._graph = graphs[-1]

    monkeypatch.setattr(TorchContext, "_capture", capture)
    context = TorchContext(network, 4, device="cpu", queue=lambda handle, work: work())
    return context, graphs, runs


@pytest.mark.parametrize("fails", [False, True])
def test_a_shape_that_has_settled_is_recorded_until_it_changes(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    images, masks = np.zeros((4, 2, 2, 3), np.uint8), np.full((4, 2, 2), 9, np.uint8)
    context, graphs, runs = _context(monkeypatch, fails=fails)
    context.set_tensor_address("image", images.ctypes.data)
    context.set_tensor_address("probability", masks.ctypes.data)
    assert not context.set_input_shape("image", (5, 2, 2, 3))
    assert context.set_input_shape("image", (4, 2, 2, 3))
    for value in range(5):
        images[:] = value
        assert context.execute_async_v3(0)
        assert (masks == value).all()
        assert context.recorded == (value >= 2 and not fails)
    assert runs == [4] * 5
    assert [graph.replays for graph in graphs] == ([] if fails else [3])
    assert bool(context.graph_error) == fails
    assert context.set_input_shape("image", (1, 2, 2, 3))
    assert not context.recorded
    images[0] = 77
    context.execute_async_v3(0)
    assert (masks[0] == 77).all()
    assert (masks[1:] == 4).all()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["eager", "compile"])
def test_the_network_alone_is_timed(model: Path, kind: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert torch_figures(model, kind, 2, 3)["network_ms"] > 0


@pytest.mark.gpu
def test_a_compiled_engine_runs_as_graphs_and_gives_what_onnx_runtime_gives(model: Path) -> None:
    if find_gpu() is None or not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU that torch can use")
    pytest.importorskip("pycuda.driver", reason="PyCUDA is not installed (extra gpu)", exc_type=ImportError)
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    with open_torch(model, 4, compiled=True) as runtime, OnnxRuntime(model, threads=1) as onnx:
        assert runtime.name == COMPILED_NAME
        assert set(runtime.about["compile_seconds"]) == {1, 4}
        for turn, count in enumerate([4] * 5 + [1] * 5 + [3, 4]):
            batch = np.roll(images, 7 * turn, axis=1)[:count]
            assert np.abs(runtime.infer(batch).astype(int) - onnx.infer(batch)).max() <= 1
        assert "graph_error" not in runtime.about


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU here")
def test_without_a_gpu_it_cannot_be_opened(model: Path) -> None:
    with pytest.raises(ModelError, match="no NVIDIA GPU"):
        open_torch(model, 4)
