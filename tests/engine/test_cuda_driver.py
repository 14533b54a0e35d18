"""What is asked of the CUDA driver through ctypes; `test_cuda_graph` has a driver that is compiled."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from isicrt.engine.cuda_driver import find_gpu, keep_freed_memory


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
