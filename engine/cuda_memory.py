"""PyCUDA on the device's primary context, the one that torch, DALI and TensorRT share.

`pycuda.autoinit` is never imported: it makes a context of its own, in which the others' pointers mean nothing.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from isicrt.engine.cuda_driver import driver_problem, find_gpu
from isicrt.engine.errors import MissingDependencyError, ModelError, NoGpuError
from isicrt.engine.geometry import UInt8Array

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, of which PyCUDA has no name

_contexts: dict[int, Any] = {}
_lock = threading.Lock()


class CudaDevice:
    """A GPU's primary context.

    The context is retained once a process and never released: PyCUDA leaves a released primary context on the driver's
    stack, where torch would find it.

    Args:
        index: of the device.

    Raises:
        MissingDependencyError: PyCUDA is not installed.
        NoGpuError: there is no such GPU, or no driver.
        ModelError: CUDA cannot be initialised.
    """

    def __init__(self, index: int = 0) -> None:
        gpu = find_gpu(index)
        if gpu is None:
            said = f" ({problem})" if (problem := driver_problem(index)) else ""
            raise NoGpuError(f"no NVIDIA GPU number {index} with a working driver here{said}")
        try:
            import pycuda.driver as cuda
        except ImportError as error:
            raise MissingDependencyError("PyCUDA", "gpu", str(error)) from error
        self.index = index
        self.gpu = gpu
        self.cuda: Any = cuda
        with self.errors("initialise CUDA"), _lock:
            if index not in _contexts:
                cuda.init()
                context = cuda.Device(index).retain_primary_context()
                # Not even when Python exits: PyCUDA's destructor detaches a primary context as if it were its own,
                # which fails with a warning, and runtimes that nobody closed would be torn down in a dead context.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(context))
                _contexts[index] = context
            self._context = _contexts[index]

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context this thread's current one, and put back what was there before."""
        self._context.push()
        try:
            yield
        finally:
            self.cuda.Context.pop()

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Turn PyCUDA's errors into ModelError."""
        try:
            yield
        except self.cuda.MemoryError as error:
            raise ModelError(
                f"{self.gpu.name}: not enough memory to {doing}: {error}. Build the plan with a smaller --batch-size."
            ) from error
        except self.cuda.Error as error:
            raise ModelError(f"{self.gpu.name}: could not {doing}: {error}") from error


def make_stream(device: CudaDevice) -> Any:
    """A PyCUDA stream, made inside `current()`, that does not wait for what others do on the default stream."""
    return device.cuda.Stream(_NON_BLOCKING)


class TransferBuffer:
    """A block of device memory with pinned host memory of the same size. Made, used and freed inside `current()`.

    Args:
        device: whose context is current.
        shape: of the uint8 array, the batch first.
    """

    def __init__(self, device: CudaDevice, shape: tuple[int, ...]) -> None:
        self._cuda = device.cuda
        self.host: UInt8Array = self._cuda.pagelocked_empty(shape, np.uint8)
        try:
            self._allocation: Any = self._cuda.mem_alloc(self.host.nbytes)
        except BaseException:
            pinned: Any = self.host.base
            pinned.free()
            raise
        self.address = int(self._allocation)

    def upload(self, rows: int, stream: Any) -> None:
        """Copy the first rows to the device; returns before it is done."""
        self._cuda.memcpy_htod_async(self._allocation, self.host[:rows], stream)

    def download(self, rows: int, stream: Any) -> None:
        """Copy the first rows from the device; returns before it is done."""
        self._cuda.memcpy_dtoh_async(self.host[:rows], self._allocation, stream)

    def free(self) -> None:
        """Give both back. No copy may be under way."""
        if self._allocation is not None:
            # One after the other, also when the device has failed and PyCUDA says so.
            pinned: Any = self.host.base
            allocation, self._allocation = self._allocation, None
            self.host = np.empty((0, *self.host.shape[1:]), np.uint8)
            try:
                allocation.free()
            finally:
                pinned.free()
