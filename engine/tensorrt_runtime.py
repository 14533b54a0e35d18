"""TensorRT through PyCUDA: runs the ``.plan`` files of `isicrt build-engine`, on `tensorrt` and on TensorRT for RTX."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from isicrt.engine import tensorrt_api
from isicrt.engine.card import ModelCard
from isicrt.engine.cuda_driver import Gpu
from isicrt.engine.cuda_memory import CudaDevice, TransferBuffer
from isicrt.engine.errors import ModelError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.plan import read_plan, rebuild_command
from isicrt.engine.runtime import check_batch


class TensorRtRuntime:
    """A plan with its card, loaded on a GPU. See `isicrt.engine.runtime.Runtime`.

    One execution context, one stream, one pair of buffers of the profile's largest batch. `infer` may be called from
    any thread, one at a time.

    Args:
        path: the plan.
        device: index of the GPU.

    Raises:
        ModelError: not a plan of ours, or one for another GPU or version (both sides are named, and the command
            that builds it again); no GPU; or TensorRT refuses it.
        MissingDependencyError: PyCUDA or the TensorRT that built the plan is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], *, device: int = 0) -> None:
        self.path = Path(path)
        self.card, plan = read_plan(path)
        self._device = CudaDevice(device)
        flavour = self.card.builder.get("flavour")
        if flavour not in tensorrt_api.FLAVOURS:
            raise ModelError(f"{path}: built by {flavour!r}; this isicrt knows {', '.join(tensorrt_api.FLAVOURS)}")
        self._trt = tensorrt_api.load(flavour)
        check_version(self.path, self.card, self._trt)
        check_gpu(self.path, self.card, self._device.gpu)
        self.name = f"{flavour}-{self.card.precision}"
        self.max_batch: int | None = None
        self._log = tensorrt_api.make_logger(self._trt)
        self._stream: Any = None
        self._buffers: list[TransferBuffer] = []
        try:
            with self._device.errors(f"load {path}"), self._device.current():
                self._load(plan)
        except BaseException:
            self.close()
            raise

    def _load(self, plan: bytes) -> None:
        trt = self._trt.module
        self._runtime = trt.Runtime(self._log)
        if hasattr(self._runtime, "get_engine_validity"):  # TensorRT for RTX only
            validity, bits = self._runtime.get_engine_validity(plan[: self._runtime.engine_header_size])
            if validity == trt.EngineValidity.INVALID:
                known = trt.EngineInvalidityDiagnostics.__members__.items()
                reasons = ", ".join(name for name, flag in known if int(bits) & flag.value) or "no reason given"
                raise self._refused(f"calls it invalid on {self._device.gpu.name} ({reasons})")
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self._refused("cannot load it")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._refused("has no memory for its execution context")
        tensors = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in tensors}
        inputs = [name for name in tensors if modes[name] == trt.TensorIOMode.INPUT]
        outputs = [name for name in tensors if modes[name] == trt.TensorIOMode.OUTPUT]
        h, w = self.card.input_size
        expected = {(-1, h, w, 3): inputs, (-1, h, w): outputs}
        for shape, names in expected.items():
            if (
                len(names) != 1
                or tuple(self._engine.get_tensor_shape(names[0])) != shape
                or self._engine.get_tensor_dtype(names[0]) != trt.DataType.UINT8
            ):
                found = [(n, tuple(self._engine.get_tensor_shape(n)), self._engine.get_tensor_dtype(n)) for n in names]
                raise self._refused(f"sees {found} where its card promises one uint8 tensor of {shape}")
        (self._input,), (self._output,) = inputs, outputs
        smallest, _, largest = (tuple(dims) for dims in self._engine.get_tensor_profile_shape(self._input, 0))
        self._min_batch, self.max_batch = smallest[0], largest[0]

        # Not the default stream: TensorRT would synchronise the whole device around every call on it.
        self._stream = self._device.cuda.Stream()
        for name, shape in ((self._input, (largest[0], h, w, 3)), (self._output, (largest[0], h, w))):
            self._buffers.append(TransferBuffer(self._device, shape))
            if not self._context.set_tensor_address(name, self._buffers[-1].address):
                raise self._refused(f"does not take an address for '{name}'")
        self._rows = 0

    def _refused(self, problem: str) -> ModelError:
        said = f" It says: {self._log.problems[-1].rstrip('.')}." if self._log.problems else ""
        return ModelError(
            f"{self.path}: {self._trt.title} {problem}.{said} Build it again with: {rebuild_command(self.card)}"
        )

    def infer(self, images: UInt8Array) -> UInt8Array:
        """See `Runtime.infer`. Returns when the result is in host memory."""
        if self._stream is None:
            raise ModelError(f"{self.path}: this runtime is closed")
        check_batch(images, self.card, self.max_batch)
        count = len(images)
        rows = max(count, self._min_batch)
        source, result = self._buffers
        source.host[:count] = images
        source.host[count:rows] = 0
        with self._device.errors(f"segment a batch of {count}"), self._device.current():
            if rows != self._rows:
                if not self._context.set_input_shape(self._input, (rows, *images.shape[1:])):
                    raise self._refused(f"does not take a batch of {rows}")
                self._rows = rows
            try:
                source.upload(rows, self._stream)
                if not self._context.execute_async_v3(self._stream.handle):
                    raise self._refused(f"could not run a batch of {rows}")
                result.download(rows, self._stream)
            finally:
                # Also on an error: what is in flight reads and writes the buffers.
                self._stream.synchronize()
        return np.array(result.host[:count])

    def close(self) -> None:
        """See `Runtime.close`."""
        with self._device.current():
            for buffer in self._buffers:
                buffer.free()
            self._buffers = []
            # TensorRT's objects go before the stream and while the context is current, children first.
            self._context = self._engine = self._runtime = self._stream = None

    def __enter__(self) -> TensorRtRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_version(path: Path, card: ModelCard, trt: tensorrt_api.TensorRt) -> None:
    """Raise ModelError unless the plan was built by exactly this TensorRT: no other can load it."""
    built = card.builder.get("version")
    if built != trt.version:
        title = tensorrt_api.FLAVOURS[trt.flavour].title
        raise ModelError(
            f"{path}: built by {title} {built}, but {title} {trt.version} is installed, and a plan only loads in the "
            f"version that built it. Build it again with: {rebuild_command(card)}"
        )


def check_gpu(path: Path, card: ModelCard, gpu: Gpu) -> None:
    """Raise ModelError if a plan of `tensorrt` was built for another compute capability.

    Plans of TensorRT for RTX are finished on the GPU that runs them and have no such tie.
    """
    built = card.builder.get("compute_capability")
    if card.builder.get("flavour") == "tensorrt" and built != gpu.compute_capability:
        raise ModelError(
            f"{path}: built for {card.builder.get('gpu')} (compute capability {built}), but this GPU is {gpu.name} "
            f"(compute capability {gpu.compute_capability}). Build it again with: {rebuild_command(card)}"
        )
