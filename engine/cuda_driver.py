"""Which GPU is there, asked of the CUDA driver through ctypes: no package is needed, and no context is created.

https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__DEVICE.html
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

_RELEASE_THRESHOLD = 4  # CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{MAJOR,MINOR}


@dataclass(frozen=True)
class Gpu:
    """A CUDA device."""

    name: str
    compute_capability: str
    """As ``"9.0"``."""
    cuda: str
    """The newest CUDA that the driver serves, as ``"13.0"``."""
    driver: str = ""
    """Version of the driver itself, as ``"580.159.04"``; empty where NVML does not say."""


def driver_library() -> ctypes.CDLL:
    """The CUDA driver. Raises OSError where there is none."""
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def error_name(cuda: Any, code: int) -> str:
    """The driver's name of an error, as ``"CUDA_ERROR_UNKNOWN"``."""
    text = ctypes.c_char_p()
    known = cuda.cuGetErrorName(ctypes.c_int(code), ctypes.byref(text)) == 0 and text.value
    return known.decode() if known else f"CUDA error {code}"


def find_gpu(index: int = 0) -> Gpu | None:
    """The device of that number, or None where there is no driver or no such device; `driver_problem` says which."""
    found = _ask(index)
    return found if isinstance(found, Gpu) else None


def driver_problem(index: int = 0) -> str:
    """What the driver said where `find_gpu` finds nothing, as ``"cuInit: CUDA_ERROR_SYSTEM_NOT_READY"``; empty where
    there is a GPU, and where there is no driver."""
    found = _ask(index)
    return "" if isinstance(found, Gpu) else found


def _ask(index: int) -> Gpu | str:
    """The device, or why there is none."""
    try:
        cuda = driver_library()
    except OSError:
        return ""
    device, major, minor, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    calls: tuple[tuple[str, Callable[[], int]], ...] = (
        ("cuInit", lambda: cuda.cuInit(0)),
        ("cuDeviceGet", lambda: cuda.cuDeviceGet(ctypes.byref(device), index)),
        ("cuDeviceGetName", lambda: cuda.cuDeviceGetName(name, len(name), device)),
        ("cuDeviceGetAttribute", lambda: cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)),
        ("cuDeviceGetAttribute", lambda: cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)),
        ("cuDriverGetVersion", lambda: cuda.cuDriverGetVersion(ctypes.byref(version))),
    )
    try:
        for function, call in calls:
            if (code := call()) != 0:
                return f"{function}: {error_name(cuda, code)}"
    except AttributeError as error:  # a stand-in library without these functions, as in some build images
        return str(error)
    served = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}", served, _driver_version())


def gpu_uuid(index: int = 0) -> str | None:
    """The device's UUID as nvidia-smi writes it, ``"GPU-8a56a4bc-..."``; None where the driver does not say.

    CUDA numbers what CUDA_VISIBLE_DEVICES leaves, the fastest first; nvidia-smi all of the machine, by their PCI bus.
    """
    device, uuid = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    try:
        cuda = driver_library()
        known = (
            cuda.cuInit(0) == 0
            and cuda.cuDeviceGet(ctypes.byref(device), index) == 0
            and cuda.cuDeviceGetUuid(ctypes.byref(uuid), device) == 0
        )
    except (OSError, AttributeError):
        return None
    return f"GPU-{UUID(bytes=bytes(uuid))}" if known else None


def keep_freed_memory(index: int, size: int, *, library: Any = None) -> Callable[[], None]:
    """Let the device's default memory pool keep what was freed, up to `size` bytes, for the next allocation.

    By default it gives everything back to the system whenever a stream or an event is waited for, so that libraries
    that allocate in stream order pay for it again with every batch. A device without pools is left as it is, and so is
    a pool that keeps more.
    https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__MALLOC__ASYNC.html

    Returns:
        Ends it: the pool keeps what it kept before, and gives the rest to the system. Nothing happens the second time,
        nor where somebody has changed the bound since.
    """
    device, pool, before = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    ours = False
    try:
        cuda = driver_library() if library is None else library
        known = (
            cuda.cuDeviceGet(ctypes.byref(device), index) == 0
            and cuda.cuDeviceGetDefaultMemPool(ctypes.byref(pool), device) == 0
            and cuda.cuMemPoolGetAttribute(pool, _RELEASE_THRESHOLD, ctypes.byref(before)) == 0
        )
        if known and before.value < size:
            wanted = ctypes.c_uint64(size)
            ours = cuda.cuMemPoolSetAttribute(pool, _RELEASE_THRESHOLD, ctypes.byref(wanted)) == 0
    except (OSError, AttributeError):
        pass

    def end() -> None:
        nonlocal ours
        now = ctypes.c_uint64()
        read = ours and cuda.cuMemPoolGetAttribute(pool, _RELEASE_THRESHOLD, ctypes.byref(now)) == 0
        ours = False
        if read and now.value == size:
            cuda.cuMemPoolSetAttribute(pool, _RELEASE_THRESHOLD, ctypes.byref(before))
            # What is still being freed in the order of a stream goes when that is next waited for.
            cuda.cuMemPoolTrimTo(pool, ctypes.c_size_t(before.value))

    return end


def _driver_version() -> str:
    """https://docs.nvidia.com/deploy/nvml-api/group__nvmlSystemQueries.html"""
    try:
        nvml = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() != 0:
            return ""
        text = ctypes.create_string_buffer(96)
        known = nvml.nvmlSystemGetDriverVersion(text, len(text)) == 0
        nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return ""
    return text.value.decode(errors="replace") if known else ""
