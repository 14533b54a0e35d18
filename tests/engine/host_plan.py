"""An open plan with everything of the GPU on the CPU: nvImageCodec's CPU decoder, compiled kernels, ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from isicrt.engine.errors import ModelError
from isicrt.engine.gpu_chain import GpuChain
from isicrt.engine.gpu_decode import GpuDecoder
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.tensorrt_slot import Signature, TensorRtSlot
from tests.engine.cpu_kernels import CpuKernels
from tests.engine.stand_ins import HostDevice, OnnxContext

SIGNATURE = Signature("image", "probability", (64, 64), smallest=1, largest=4)


class HostPlan:
    """`chain` is a `GpuChain` of batches of 4; `slots` are its runtime's, and `onnx` computes."""

    def __init__(self, path: Path, kernels: CpuKernels, depth: int = 2) -> None:
        self.device = HostDevice()
        self.onnx = OnnxRuntime(path, threads=1)
        self.contexts = [OnnxContext(self.device, self.onnx, SIGNATURE.largest) for _ in range(depth)]
        device: Any = self.device
        slots = [
            TensorRtSlot(device, context, SIGNATURE, record=False, refused=lambda problem: ModelError(f"it {problem}"))
            for context in self.contexts
        ]
        runtime: Any = SimpleNamespace(
            card=self.onnx.card, max_batch=SIGNATURE.largest, name="host", device=self.device, slots=slots
        )
        self.slots = slots
        decoder = GpuDecoder(GpuDecoder.CPU_ONLY, cpu_threads=1)
        self.chain = GpuChain(runtime, decoder=decoder, kernels=kernels)
