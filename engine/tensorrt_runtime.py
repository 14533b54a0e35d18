"""TensorRT through PyCUDA: runs the ``.plan`` files of `isicrt build-engine`, on `tensorrt` and on TensorRT for RTX."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from isicrt.engine import tensorrt_api
from isicrt.engine.card import ModelCard
from isicrt.engine.cuda_driver import Gpu
from isicrt.engine.cuda_memory import CudaDevice
from isicrt.engine.errors import ModelError, NoGpuError, OtherGpuError, SettingsError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.in_flight import SlotPool, SlotTicket
from isicrt.engine.plan import read_plan_file
from isicrt.engine.rebuild import onnx_advice, rebuild_advice, targets
from isicrt.engine.runtime import check_batch
from isicrt.engine.tensorrt_kernels import NEEDS_LESS_MEMORY, KernelCache, make_context
from isicrt.engine.tensorrt_slot import Signature, TensorRtSlot, Timing

BATCHES_IN_FLIGHT = 3
"""One is copied in, one computes, one is copied out."""


class TensorRtRuntime:
    """A plan with its card, loaded on a GPU. See `isicrt.engine.runtime.PipelinedRuntime`.

    Each batch in flight has an execution context, a stream and buffers of the profile's largest batch. The methods may
    be called from any thread and take turns: one that closes it waits for one that collects.

    Args:
        path: the plan.
        device: index of the GPU.
        depth: batches in flight, 1 to 8.

    Raises:
        ModelError: not a plan of ours, or one for another GPU or version (both sides are named, and the command
            that builds it again); no GPU; or TensorRT refuses it.
        MissingDependencyError: PyCUDA or the TensorRT that built the plan is not installed.
        SettingsError: `depth` is out of its range.
    """

    def __init__(self, path: str | os.PathLike[str], *, device: int = 0, depth: int = BATCHES_IN_FLIGHT) -> None:
        if not 1 <= depth <= 8:
            raise SettingsError(f"{depth} batches in flight: expected 1 to 8")
        self.path = Path(path)
        file = read_plan_file(path)
        self.card, self.digest = file.card, file.digest
        flavour = str(self.card.builder["flavour"])
        self.device = self._find_device(device)
        self._trt = tensorrt_api.load(flavour)
        check_version(self.path, self.card, self._trt)
        check_gpu(self.path, self.card, self.device.gpu)
        self.name = f"{flavour}-{self.card.precision}"
        self.max_batch: int | None = None
        self._heard = tensorrt_api.Heard(tensorrt_api.shared_logger(self._trt))
        self._runtime: Any = None
        self._engine: Any = None
        self._kernels: KernelCache | None = None
        self._slots: list[TensorRtSlot] = []
        self._pool: SlotPool | None = None
        self._lock = threading.RLock()
        try:
            with self.device.errors(f"load {path}"), self.device.current():
                try:
                    self._load(file.plan, depth)
                except (TypeError, RuntimeError) as error:  # what pybind11 makes of C++'s null pointers and exceptions
                    raise self._refused(f"failed while it loaded it ({str(error).strip()})") from error
        except BaseException:
            with suppress(Exception):  # what went wrong first is what matters
                self.close()
            raise

    def _find_device(self, index: int) -> CudaDevice:
        try:
            return CudaDevice(index)
        except NoGpuError as error:
            advice = onnx_advice(self.card, self.path)
            raise NoGpuError(f"{self.path}: {error}, and a plan runs on nothing else. {advice}") from None

    def _load(self, plan: bytes, depth: int) -> None:
        trt = self._trt.module
        try:
            self._runtime = trt.Runtime(self._heard.logger)
        except TypeError as error:  # what pybind11 makes of a null pointer: no driver, or one that is too old
            raise ModelError(
                f"{self.path}: {self._trt.title} could not start its runtime on {self.device.gpu.name}.{self._said()} "
                f"The driver may be too old for it: isicrt doctor says. {onnx_advice(self.card, self.path)}"
            ) from error
        if hasattr(self._runtime, "get_engine_validity"):  # TensorRT for RTX only
            validity, bits = self._runtime.get_engine_validity(plan[: self._runtime.engine_header_size])
            if validity == trt.EngineValidity.INVALID:
                known = trt.EngineInvalidityDiagnostics.__members__.items()
                raise self._invalid([name for name, flag in known if int(bits) & flag.value])
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self._refused("cannot load it")
        signature = self._signature()
        self.max_batch = signature.largest
        self._kernels = KernelCache(self._trt, self._engine, self.card, self.device.gpu, refused=self._refused)
        for _ in range(depth):
            context, records = make_context(self._trt, self._engine, self._kernels, refused=self._refused)
            slot = TensorRtSlot(
                self.device,
                context,
                signature,
                record=not records,
                few_shapes=self._kernels.compiles,
                refused=self._refused,
                forget=self._heard.forget,
            )
            self._slots.append(slot)
        self._pool = SlotPool(self._slots)
        self._heard.forget()

    def _signature(self) -> Signature:
        trt, engine = self._trt.module, self._engine
        tensors = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in tensors}
        inputs = [name for name in tensors if modes[name] == trt.TensorIOMode.INPUT]
        outputs = [name for name in tensors if modes[name] == trt.TensorIOMode.OUTPUT]
        h, w = self.card.input_size
        expected = {(-1, h, w, 3): inputs, (-1, h, w): outputs}
        for shape, names in expected.items():
            if (
                len(names) != 1
                or tuple(engine.get_tensor_shape(names[0])) != shape
                or engine.get_tensor_dtype(names[0]) != trt.DataType.UINT8
            ):
                found = [(n, tuple(engine.get_tensor_shape(n)), engine.get_tensor_dtype(n)) for n in names]
                raise self._refused(f"sees {found} where its card promises one uint8 tensor of {shape}")
        smallest, _, largest = (tuple(dims) for dims in engine.get_tensor_profile_shape(inputs[0], 0))
        return Signature(inputs[0], outputs[0], (h, w), smallest[0], largest[0])

    def _refused(self, problem: str, advice: str = "") -> ModelError:
        advice = advice or rebuild_advice(self.card, self.path)
        return ModelError(f"{self.path}: {self._trt.title} {problem}.{self._said()} {advice}")

    def _invalid(self, reasons: Collection[str]) -> ModelError:
        """By TensorRT for RTX. Where that is this machine's fault, the same plan again would be refused again."""
        if "UNSUPPORTED_CC" in reasons:
            return self._for_another_gpu()
        advice, other = "", onnx_advice(self.card, self.path)
        if "OLD_CUDA_DRIVER" in reasons or "OLD_CUDA_RUNTIME" in reasons:
            advice = f"Update the NVIDIA driver: isicrt doctor says which CUDA it serves. {other}"
        elif "CUDA_ERROR" in reasons:
            advice = f"CUDA's driver or runtime is not in order: isicrt doctor says more. {other}"
        elif "INSUFFICIENT_GPU_MEMORY" in reasons:
            advice = NEEDS_LESS_MEMORY
        said = ", ".join(reasons) or "no reason given"
        return self._refused(f"calls it invalid on {self.device.gpu.name} ({said})", advice)

    def _for_another_gpu(self) -> OtherGpuError:
        """Of a plan of TensorRT for RTX."""
        gpu, built = self.device.gpu, targets(self._trt, self.card.builder)
        again = rebuild_advice(self.card, self.path, gpu=gpu, trt=self._trt)
        here = f"{gpu.name} ({gpu.compute_capability}), where {self._trt.title} does not run it (UNSUPPORTED_CC)"
        return OtherGpuError(
            f"{self.path}: built for compute capability {', '.join(built)}; this GPU is {here}.{self._said()} {again}"
        )

    def _said(self) -> str:
        reason = self._heard.reason
        self._heard.forget()  # else it would be the reason of the next refusal too
        return f" It says: {reason.rstrip('.')}." if reason else ""

    @property
    def depth(self) -> int:
        """See `PipelinedRuntime.depth`."""
        return self._open().depth

    def infer(self, images: UInt8Array) -> UInt8Array:
        """See `Runtime.infer`. Returns when the result is in host memory."""
        return self.collect(self.submit(images))

    def submit(self, images: UInt8Array) -> SlotTicket:
        """See `PipelinedRuntime.submit`."""
        with self._lock:
            pool = self._open()
            check_batch(images, self.card, self.max_batch)
            return pool.submit(images)

    def collect(self, ticket: SlotTicket) -> UInt8Array:
        """See `PipelinedRuntime.collect`."""
        with self._lock:
            return self._open().collect(ticket)

    def time(self, images: UInt8Array) -> Timing:
        """How long the two transfers and the network of one batch take, without a CUDA graph, nothing beside it.

        Raises:
            ModelError: as `infer`.
            RuntimeError: batches are in flight.
        """
        with self._lock:
            pool = self._open()
            pool.require_unlent()
            check_batch(images, self.card, self.max_batch)
            if pool.busy:
                raise RuntimeError("collect the batches in flight first: they would be in the figures")
            return self._slots[0].time(images)

    @property
    def slots(self) -> list[TensorRtSlot]:
        """For whoever writes pixels to the device by other ways than `infer`, while they are lent to him."""
        self._open()
        return self._slots

    @contextmanager
    def lend_slots(self) -> Iterator[None]:
        """Keep `slots` for `isicrt.engine.gpu_chain`; until the end `submit`, `infer` and `time` raise ModelError.

        Raises:
            RuntimeError: batches are in flight.
            ModelError: the slots are lent already, or the runtime is closed.
        """
        with ExitStack() as lent:
            with self._lock:
                lent.enter_context(self._open().lend())
            yield

    def _open(self) -> SlotPool:
        if self._pool is None:
            raise ModelError(f"{self.path}: this runtime is closed")
        return self._pool

    def close(self) -> None:
        """See `Runtime.close`. Batches in flight are waited for and lost. What cannot be freed keeps nothing else.

        Raises:
            ModelError: the device failed. It is closed all the same.
        """
        with self._lock, self.device.errors(f"close {self.path}"), self.device.current(), ExitStack() as steps:
            # Called from the last to the first, each of them whatever becomes of the others.
            self._pool = None
            slots, self._slots = self._slots, []
            steps.callback(self._forget)
            steps.callback(SlotPool(slots).free)
            if self._kernels is not None:
                steps.callback(self._kernels.save)

    def _forget(self) -> None:
        # TensorRT's objects go while the context is current, children first.
        self._kernels = None
        self._engine = None
        self._runtime = None

    def __enter__(self) -> TensorRtRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(Exception) if kind is not None else nullcontext():  # what went wrong first is what matters
            self.close()


def check_version(path: Path, card: ModelCard, trt: tensorrt_api.TensorRt) -> None:
    """Raise ModelError unless the plan was built by exactly this TensorRT: no other can load it."""
    built = card.builder.get("version")
    if built != trt.version:
        title = tensorrt_api.FLAVOURS[trt.flavour].title
        raise ModelError(
            f"{path}: built by {title} {built}, but {title} {trt.version} is installed, and a plan only loads in the "
            f"version that built it. {rebuild_advice(card, path)}"
        )


def check_gpu(path: Path, card: ModelCard, gpu: Gpu) -> None:
    """Raise OtherGpuError if a plan of `tensorrt` was built for another GPU.

    Without ``--hardware-compatibility`` it belongs to the model of the GPU that built it: its kernels were chosen by
    timing them there, and TensorRT loads it on another of the same compute capability with a warning of errors. With
    ``same-compute-capability`` it runs on all of that, with ``ampere-plus`` on any from 8.0. Plans of TensorRT for RTX
    are finished on the GPU that runs them; whether it can, TensorRT for RTX says itself.
    https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/engine-compatibility.html
    """
    if card.builder.get("flavour") != "tensorrt":
        return
    built, model = card.builder.get("compute_capability"), card.builder.get("gpu")
    level = card.builder.get("hardware_compatibility") or "none"
    same = built == gpu.compute_capability
    if level == "ampere-plus" and (same or float(gpu.compute_capability) >= 8.0):
        return
    if same and (level == "same-compute-capability" or not model or _model(str(model)) == _model(gpu.name)):
        return
    made_for = "for Ampere and newer GPUs, 8.0 and up, on" if level == "ampere-plus" else "for"
    advice = ""
    if same:
        advice = (
            " A plan without --hardware-compatibility runs on the model of GPU that built it; one with "
            "same-compute-capability would run on both."
        )
    raise OtherGpuError(
        f"{path}: built {made_for} {model} (compute capability {built}), but this GPU is {gpu.name} "
        f"(compute capability {gpu.compute_capability}).{advice} {rebuild_advice(card, path, gpu=gpu)}"
    )


def _model(name: str) -> str:
    """Drivers before 470 leave NVIDIA's name out."""
    return name.removeprefix("NVIDIA ").strip()
