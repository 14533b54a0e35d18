"""torch in TensorRT's place: the ONNX file's own graph in half precision, on the streams and buffers of the GPU's way.

TensorRT for RTX may refuse a GPU, and TensorRT may not be installed. What decodes, resizes, restores, packs and writes
can be run and measured then all the same. It is a stand-in for the engine and named as such wherever it shows.

    python -m isicrt.benchmarks.gpu_torch model.onnx       # compile it beforehand
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import click

from isicrt._command import ModuleCommand
from isicrt.benchmarks.gpu_slots import SlotRuntime
from isicrt.benchmarks.time_limit import time_limit
from isicrt.engine.errors import MissingDependencyError, ModelError
from isicrt.engine.onnx_file import read_onnx_card

NAME = "torch-eager-fp16"
COMPILED_NAME = "torch-inductor-fp16"
"""Of the runtimes that `open_torch` gives."""
COMPILE_SECONDS = 120.0
"""For all sizes of batch together; what takes longer is given up."""
SETTLE = 2
"""Batches of one shape that torch runs call by call, before they are recorded as a graph."""

Queue = Callable[[int, Callable[[], None]], None]
"""Runs work on a CUDA stream, given by its handle."""


def load_network(model: Path, device: str, *, half: bool, compiled: bool | Callable[..., Any] = False) -> Any:
    """The network of an ONNX file as a torch module: uint8 N x h x w x 3 in, uint8 N x h x w out.

    Args:
        model: of isicrt.
        device: torch's name of it.
        half: the convolutions' weights in half precision, channels last; what lies behind the last convolution is
            float32, as in a plan. It is called under autocast then.
        compiled: by torch.compile, at the first call of each shape; or by that backend of it.

    Raises:
        MissingDependencyError: torch or onnx is not installed.
        ModelError: the file has an operator that no network of isicrt has.
    """
    try:
        import torch
        from torch.nn import functional

        from isicrt.benchmarks.peers.onnx_module import load_module

        module = load_module(model)
    except ImportError as error:
        raise MissingDependencyError("torch or onnx", "train", str(error)) from error
    if half:
        convolutions: set[Any] = {functional.conv2d, functional.conv_transpose2d}
        found = [node for node in module.graph.nodes if node.target in convolutions]
        for weight in {argument for node in found for argument in node.args[1:3] if argument is not None}:
            value = getattr(module, weight.target).half()
            setattr(module, weight.target, value.contiguous(memory_format=_layout(torch, value)))
        if found:
            with module.graph.inserting_after(found[-1]):
                wide = module.graph.call_method("float", (found[-1],))
            found[-1].replace_all_uses_with(wide, delete_user_cb=lambda user: user is not wide)
        for node in module.graph.nodes:
            if node.target is torch.matmul:
                node.target = _exact_product
        module.recompile()
    module = module.to(device)
    # Whole or not at all; the graphs are recorded here, and not by the compiler too.
    options: Any = {"options": {"triton.cudagraphs": False}} if compiled is True else {"backend": compiled}
    call: Any = torch.compile(module, dynamic=False, fullgraph=True, **options) if compiled else module

    def network(images: Any) -> Any:
        # Without autocast's cache, which must not outlive the recording of a graph: the weights are half already.
        typed = torch.autocast(device, torch.float16, cache_enabled=False) if half else nullcontext()
        with torch.inference_mode(), typed:
            return call(images)

    return network


def _exact_product(a: Any, b: Any) -> Any:
    """In float32 under autocast too, which halves what it multiplies."""
    import torch

    with torch.autocast(a.device.type, enabled=False):
        return torch.matmul(a, b)


class CompiledNetwork:
    """A network by torch.compile for some sizes of batch, and as it is for all others: no run waits for a compiler.

    Args:
        model: of isicrt.
        device: torch's name of it.
        sizes: of the batches that it is compiled for, here and now.
        half: see `load_network`.
        seconds: that this may take.

    Raises:
        MissingDependencyError, ModelError: see `load_network`; or it took too long, or the compiler failed.
    """

    def __init__(
        self, model: Path, device: str, sizes: Sequence[int], *, half: bool = True, seconds: float = COMPILE_SECONDS
    ) -> None:
        self._plain = load_network(model, device, half=half)
        self._compiled = load_network(model, device, half=half, compiled=True)
        self.seconds: dict[int, float] = {}
        """What it took, by size."""
        shape = (*read_onnx_card(model).input_size, 3)
        try:
            with time_limit(seconds):
                for size in sizes:
                    started = time.perf_counter()
                    _settle(self._compiled, (size, *shape), device)
                    self.seconds[size] = round(time.perf_counter() - started, 2)
        except TimeoutError as error:
            _end_workers()
            done = ", ".join(f"{size} in {took:.0f} s" for size, took in self.seconds.items()) or "none"
            raise ModelError(f"torch.compile: not done after {seconds:g} s (batches that are: {done})") from error
        except Exception as error:  # a compiler is missing, or whatever else it comes to
            raise ModelError(f"torch.compile: {type(error).__name__}: {error}"[:1000]) from error

    def __call__(self, images: Any) -> Any:
        network = self._compiled if len(images) in self.seconds else self._plain
        return network(images)


def _settle(network: Any, shape: tuple[int, ...], device: str) -> None:
    """Compile, load and run it, beside the default stream, so that nothing of that is left for a recording."""
    import torch

    images = torch.zeros(shape, dtype=torch.uint8, device=device)
    cuda: Any = torch.cuda
    beside = nullcontext()
    if device != "cpu":
        cuda.synchronize()  # the pixels are there
        beside = cuda.stream(cuda.Stream())
    with beside:
        for _ in range(SETTLE):
            network(images)
    if device != "cpu":
        cuda.synchronize()


def _end_workers() -> None:
    """Those of the compiler, which go on with what was given up."""
    with suppress(Exception):
        from torch._inductor import async_compile

        async_compile.shutdown_compile_workers()


def _layout(torch: Any, value: Any) -> Any:
    return torch.channels_last if value.dim() == 4 else torch.contiguous_format


class _Memory:
    """uint8 memory at an address, as numpy and torch take it without a copy."""

    def __init__(self, address: int, shape: tuple[int, ...], device: str) -> None:
        interface = {"shape": shape, "typestr": "|u1", "data": (address, False), "version": 3}
        if device == "cpu":
            self.__array_interface__ = interface
        else:
            self.__cuda_array_interface__ = interface


def memory_at(address: int, shape: tuple[int, ...], device: str) -> Any:
    """A uint8 tensor on memory that somebody else keeps."""
    import numpy as np
    import torch

    memory: Any = _Memory(address, shape, device)
    return torch.from_numpy(np.asarray(memory)) if device == "cpu" else torch.as_tensor(memory, device=device)


def on_stream(handle: int, work: Callable[[], None]) -> None:
    """`Queue` on a GPU."""
    import torch

    external: Any = torch.cuda.ExternalStream
    with torch.cuda.stream(external(handle)):
        work()


class TorchContext:
    """What a `TensorRtSlot` asks of TensorRT's execution context.

    A shape is run `SETTLE` times call by call, then recorded as a CUDA graph with memory of its own, and launched as
    one from then on, as TensorRT for RTX does for itself. Where recording fails, `graph_error` says why.

    Args:
        network: see `load_network`; several contexts may share it.
        largest: batch.
        device: torch's name of it.
        queue: puts work on a stream.
        record: whether to record graphs.
        about: gets ``graph_error``, too.
    """

    def __init__(
        self,
        network: Any,
        largest: int,
        *,
        device: str = "cuda",
        queue: Queue = on_stream,
        record: bool = True,
        about: dict[str, Any] | None = None,
    ) -> None:
        self._network, self._largest, self._device, self._queue = network, largest, device, queue
        self._record, self._about = record, {} if about is None else about
        self._addresses: dict[str, int] = {}
        self._images: Any = None
        self._masks: Any = None
        self._graph: Any = None
        self._calls = 0
        self.graph_error = ""

    @property
    def recorded(self) -> bool:
        """Whether batches of this shape run as a graph."""
        return self._graph is not None

    def set_tensor_address(self, name: str, address: int) -> bool:
        """As TensorRT's."""
        self._addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """As TensorRT's."""
        if shape[0] > self._largest:
            return False
        self._graph, self._calls = None, 0
        output = next(other for other in self._addresses if other != name)
        self._images = memory_at(self._addresses[name], shape, self._device)
        self._masks = memory_at(self._addresses[output], shape[:3], self._device)
        return True

    def execute_async_v3(self, stream: int) -> bool:
        """As TensorRT's."""
        images, masks = self._images, self._masks

        def compute() -> None:
            masks.copy_(self._network(images))

        if self._graph is None and self._record and self._calls == SETTLE:
            self._capture(stream, compute)
        self._calls += 1
        self._queue(stream, compute if self._graph is None else self._graph.replay)
        return True

    def _capture(self, stream: int, work: Callable[[], None]) -> None:
        import torch

        try:
            external: Any = torch.cuda.ExternalStream
            graph = torch.cuda.CUDAGraph()
            # Other threads may allocate meanwhile, such as nvImageCodec's.
            with torch.cuda.graph(graph, stream=external(stream), capture_error_mode="thread_local"):
                work()
            self._graph = graph
        except RuntimeError as error:
            self._record, self.graph_error = False, str(error)[:300]
            self._about["graph_error"] = self.graph_error


def open_torch(model: Path, largest: int, *, compiled: bool = False, seconds: float = COMPILE_SECONDS) -> SlotRuntime:
    """The network of an ONNX file on the GPU, by torch, behind the interface of a plan's runtime.

    Args:
        model: of isicrt.
        largest: batch.
        compiled: by torch.compile for batches of 1 and of `largest`, before this returns. It takes up to a minute each.
        seconds: that compiling may take.

    Raises:
        MissingDependencyError: torch, onnx or PyCUDA is not installed.
        ModelError: there is no GPU, the network is not one of isicrt's, or it cannot be compiled in time.
    """
    from isicrt.engine.cuda_memory import CudaDevice

    device = CudaDevice()  # first: without a GPU no network is loaded
    about: dict[str, Any] = {}
    if compiled:
        network: Any = CompiledNetwork(model, "cuda", sorted({1, largest}), seconds=seconds)
        about["compile_seconds"] = network.seconds
    else:
        network = load_network(model, "cuda", half=True)
    return SlotRuntime(
        read_onnx_card(model),
        COMPILED_NAME if compiled else NAME,
        device,
        lambda: TorchContext(network, largest, about=about),
        largest,
        about=about,
    )


def torch_figures(model: Path, kind: str, size: int, calls: int) -> dict[str, Any]:
    """The network alone on the GPU, pixels and probabilities there: milliseconds by the GPU's own clock.

    Args:
        model: of isicrt.
        kind: ``eager`` or ``compile``.
        size: of the batch.
        calls: that are timed, after a few that are not.

    Raises:
        MissingDependencyError, ModelError: see `load_network`.
        RuntimeError: torch has no GPU, or fails.
        TimeoutError: it cannot be compiled in time.
    """
    network = load_network(model, "cuda", half=True, compiled=kind == "compile")
    import torch

    images = torch.randint(0, 256, (size, *read_onnx_card(model).input_size, 3), dtype=torch.uint8, device="cuda")
    event: Any = torch.cuda.Event
    with time_limit(COMPILE_SECONDS):
        for _ in range(5):
            network(images)
    milliseconds = []
    for _ in range(calls):
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        network(images)
        end.record()
        end.synchronize()
        milliseconds.append(start.elapsed_time(end))
    median = statistics.median(milliseconds)
    return {"network_ms": median, "images_per_second": 1e3 * size / median, "calls": calls}


@click.command(cls=ModuleCommand)
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--largest", type=click.IntRange(min=1), default=256, show_default=True, help="Batch.")
@click.option("--seconds", type=float, default=COMPILE_SECONDS, show_default=True, help="That it may take.")
def command(model: Path, largest: int, seconds: float) -> None:
    """Compile MODEL's network for batches of 1 and of --largest; torch keeps what comes of it for later processes."""
    network = CompiledNetwork(model, "cuda", sorted({1, largest}), seconds=seconds)
    for size, took in network.seconds.items():
        click.echo(f"batches of {size}: compiled in {took:.1f} s")


if __name__ == "__main__":
    command()
