"""What is asked of the CUDA driver through ctypes; `test_cuda_graph` has a driver that is compiled."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from isicrt.engine import cuda_driver
from isicrt.engine.cuda_driver import driver_problem, find_gpu, keep_freed_memory
from isicrt.engine.cuda_memory import CudaDevice
from isicrt.engine.errors import NoGpuError
from tests.engine.stand_ins import failing_driver


def _driver(kept: int, fails: str = "") -> Any:
    """A driver whose default pool keeps that many bytes; `pool` has it afterwards."""
    pool: dict[str, Any] = {"kept": kept, "trimmed": []}

    def device(target: Any, index: int) -> int:
        target._obj.value = index
        return 100 if fails == "device" else 0

    def default(target: Any, device: Any) -> int:
        assert device.value == 1
        target._obj.value = 0x1234
        return 801 if fails == "pool" else 0

    def read(handle: Any, attribute: int, value: Any) -> int:
        assert (handle.value, attribute) == (0x1234, 4)
        value._obj.value = pool["kept"]
        return 0

    def write(handle: Any, attribute: int, value: Any) -> int:
        assert (handle.value, attribute) == (0x1234, 4)
        pool["kept"] = value._obj.value
        return 0

    def trim(handle: Any, size: Any) -> int:
        assert handle.value == 0x1234
        pool["trimmed"].append((pool["kept"], size.value))
        return 0

    functions = {"cuDeviceGet": device, "cuDeviceGetDefaultMemPool": default}
    if fails != "old":
        functions |= {"cuMemPoolGetAttribute": read, "cuMemPoolSetAttribute": write, "cuMemPoolTrimTo": trim}
    return SimpleNamespace(pool=pool, **functions)


@pytest.mark.parametrize(
    ("kept", "fails", "then"),
    [
        (0, "", 3 << 30),
        (1 << 20, "", 3 << 30),
        (1 << 40, "", 1 << 40),  # somebody else wants more
        (0, "device", 0),
        (0, "pool", 0),  # a device without pools
        (0, "old", 0),
    ],
)
def test_freed_memory_is_kept(kept: int, fails: str, then: int) -> None:
    driver = _driver(kept, fails)
    end = keep_freed_memory(1, 3 << 30, library=driver)
    assert driver.pool["kept"] == then
    end()
    end()
    assert driver.pool["kept"] == kept
    assert driver.pool["trimmed"] == ([(kept, kept)] if then == 3 << 30 else [])


def test_a_bound_that_somebody_changed_since_is_theirs() -> None:
    driver = _driver(0)
    end = keep_freed_memory(1, 3 << 30, library=driver)
    driver.pool["kept"] = 5 << 30
    end()
    assert driver.pool == {"kept": 5 << 30, "trimmed": []}


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU here")
def test_without_a_driver_nothing_is_kept_and_nothing_said() -> None:
    keep_freed_memory(0, 1)()


@pytest.mark.parametrize(
    ("failing", "code", "name"),
    [
        ("cuInit", 999, "CUDA_ERROR_UNKNOWN"),
        ("cuInit", 802, "CUDA_ERROR_SYSTEM_NOT_READY"),
        ("cuInit", 803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
        ("cuDeviceGet", 101, "CUDA_ERROR_INVALID_DEVICE"),
        ("cuDriverGetVersion", 1, "CUDA_ERROR_INVALID_VALUE"),
    ],
)
def test_what_the_driver_says_is_kept(monkeypatch: pytest.MonkeyPatch, failing: str, code: int, name: str) -> None:
    monkeypatch.setattr(cuda_driver, "driver_library", lambda: failing_driver(failing, code, name.encode()))
    assert find_gpu() is None
    assert driver_problem() == f"{failing}: {name}"
    with pytest.raises(NoGpuError, match=rf"no NVIDIA GPU number 3 with a working driver here \({failing}: {name}\)"):
        CudaDevice(3)


def test_a_library_without_the_drivers_functions_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "driver_library", SimpleNamespace)
    assert find_gpu() is None
    assert "cuInit" in driver_problem()


@pytest.mark.parametrize("there", [False, True])
def test_without_a_driver_and_with_a_gpu_there_is_nothing_to_say(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    def library() -> SimpleNamespace:
        if not there:
            raise OSError("libcuda.so.1: cannot open shared object file")
        return failing_driver("none", 0, b"")

    monkeypatch.setattr(cuda_driver, "driver_library", library)
    assert (find_gpu() is not None, driver_problem()) == (there, "")
