"""Memory of a batch that grows to what its largest batch needs. Used while the device's context is current."""

from __future__ import annotations

from typing import Any

import numpy as np

from isicrt.engine.cuda_memory import CudaDevice
from isicrt.engine.geometry import UInt8Array


def _rounded(size: int) -> int:
    """A power of two: so that images of growing size do not allocate each time."""
    return 1 << max(16, (size - 1).bit_length())


class GrowingMemory:
    """A block of device memory. What lay in it is lost when it grows; nothing may be using it then."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._allocation: Any = None
        self._size = 0

    def at_least(self, size: int) -> int:
        """The address of a block that large; 0 bytes have some address too."""
        if self._allocation is None or size > self._size:
            self.free()
            self._size = _rounded(size)
            self._allocation = self._device.cuda.mem_alloc(self._size)
        return int(self._allocation)

    def free(self) -> None:
        """May be called twice."""
        allocation, self._allocation, self._size = self._allocation, None, 0
        if allocation is not None:
            allocation.free()


class GrowingPinned:
    """A block of pinned host memory, with copies from and to device memory by address."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self.host: UInt8Array = np.empty(0, np.uint8)
        self._pinned: Any = None

    def at_least(self, size: int) -> UInt8Array:
        """uint8 of at least that many bytes."""
        if size > len(self.host):
            self.free()
            self.host = self._device.cuda.pagelocked_empty((_rounded(size),), np.uint8)
            self._pinned = self.host.base
        return self.host

    def upload(self, part: UInt8Array, address: int, stream: Any) -> None:
        """Copy a part of `host` to the device; returns before it is done."""
        self._device.cuda.memcpy_htod_async(address, part, stream)

    def download(self, address: int, size: int, stream: Any) -> None:
        """Copy from the device to the start of `host`; returns before it is done."""
        self._device.cuda.memcpy_dtoh_async(self.at_least(size)[:size], address, stream)

    def free(self) -> None:
        """May be called twice."""
        pinned, self._pinned = self._pinned, None
        self.host = np.empty(0, np.uint8)
        if pinned is not None:
            pinned.free()
