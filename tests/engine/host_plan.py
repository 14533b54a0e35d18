"""An open plan with everything of the GPU on the CPU: nvImageCodec's CPU decoder, compiled kernels, ONNX Runtime."""

from __future__ import annotations

from contextlib import nullcontext
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


class HostRuntime(SimpleNamespace):
    """What a chain and a run ask of a `TensorRtRuntime`; `HostPlan` closes it."""

    def __enter__(self) -> HostRuntime:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class HostPlan:
    """`chain` is a `GpuChain` of batches of 4 on `runtime`; `slots` are its, and `onnx` computes."""

    def __init__(self, path: Path, kernels: CpuKernels, depth: int = 2, *, record: bool = False) -> None:
        self.device = HostDevice()
        self.onnx = OnnxRuntime(path, threads=1)
        self.contexts = [OnnxContext(self.device, self.onnx, SIGNATURE.largest) for _ in range(depth)]
        device: Any = self.device
        slots = [
            TensorRtSlot(device, context, SIGNATURE, record=record, refused=lambda problem: ModelError(f"it {problem}"))
            for context in self.contexts
        ]
        runtime: Any = HostRuntime(
            card=self.onnx.card,
            max_batch=SIGNATURE.largest,
            name="host",
            device=self.device,
            slots=slots,
            lend_slots=nullcontext,
        )
        self.slots = slots
        self.runtime = runtime
        decoder = GpuDecoder(GpuDecoder.CPU_ONLY, cpu_threads=1)
        self.chain = GpuChain(runtime, decoder=decoder, kernels=kernels)

    def close(self) -> None:
        """Everything is given back, or the test fails."""
        self.chain.close()
        self.chain.close()
        for slot in self.slots:
            slot.free()
        assert self.device.allocated == 0
        assert self.device.pushed == 0
