"""What the GPU's figures are measured on where there is no GPU: nvImageCodec's CPU decoder, compiled kernels, torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from isicrt.benchmarks.gpu_alone import GpuParts
from isicrt.benchmarks.gpu_slots import IdleContext, SlotRuntime
from isicrt.benchmarks.gpu_torch import NAME, TorchContext, load_network
from isicrt.engine.card import METADATA_KEY, ModelCard
from isicrt.engine.gpu_decode import GpuDecoder
from isicrt.engine.onnx_file import read_onnx_card
from tests.engine.cpu_kernels import CpuKernels
from tests.engine.stand_ins import HostDevice
from tests.tiny_models import darkness_card


def host_parts(kernels: CpuKernels) -> GpuParts:
    """Of a chain on the CPU."""
    return GpuParts(lambda device, load: GpuDecoder(GpuDecoder.CPU_ONLY, cpu_threads=1), lambda device: kernels)


def write_convolution_model(path: Path, size: tuple[int, int] = (64, 64)) -> ModelCard:
    """`tests.tiny_models.write_darkness_model` of the operators that isicrt's networks have: a 1 x 1 convolution."""
    card = darkness_card(size)
    weights = np.array([0, -1, 0], np.float32).reshape(1, 3, 1, 1)
    constants = {"weights": weights, "bias": np.array([255], np.float32), "axis": np.array([1], np.int64)}
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["channels"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["channels", "weights", "bias"], ["dark"], kernel_shape=[1, 1]),
        helper.make_node("Squeeze", ["dark", "axis"], ["map"]),
        helper.make_node("Round", ["map"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["probability"], to=TensorProto.UINT8),
    ]
    h, w = card.input_size
    graph = helper.make_graph(
        nodes,
        "darkness",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", h, w, 3])],
        [helper.make_tensor_value_info("probability", TensorProto.UINT8, ["batch", h, w])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: card.to_json()})
    onnx.save(model, path)
    return card


def idle_host(card: ModelCard, largest: int = 4) -> SlotRuntime:
    """A runtime whose network does nothing."""
    return SlotRuntime(card, "no network", HostDevice(), IdleContext, largest)


def torch_host(model: Path, largest: int = 4, network: Any = None) -> SlotRuntime:
    """`isicrt.benchmarks.gpu_torch.open_torch` on the CPU, in single precision."""
    device = HostDevice()
    network = network or load_network(model, "cpu", half=False)

    def queue(handle: int, work: Callable[[], None]) -> None:
        device.streams[handle].queue("execute", work)

    def make_context() -> TorchContext:
        return TorchContext(network, largest, device="cpu", queue=queue, record=False)

    return SlotRuntime(read_onnx_card(model), NAME, device, make_context, largest)
