from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Whether what a second thread allocates lies in the heap of the first one.
_CODE = r"""
import ctypes, re, sys, threading
from isicrt.engine.heap import share_heaps
done = share_heaps(int(sys.argv[1]))
malloc = ctypes.CDLL(None).malloc
malloc.restype = ctypes.c_void_p
found = []
thread = threading.Thread(target=lambda: found.append(malloc(1000)))
thread.start()
thread.join()
start, end = re.search(r"^(\w+)-(\w+) .*\[heap\]$", open("/proc/self/maps").read(), re.M).groups()
print(done, int(start, 16) <= found[0] < int(end, 16))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize(
    ("heaps", "set_by_user", "expected"),
    [
        ("1", {}, "True True"),
        ("2", {}, "True False"),
        ("1", {"MALLOC_ARENA_MAX": "4"}, "False False"),
        ("1", {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}, "False False"),
    ],
)
def test_threads_share_heaps(heaps: str, set_by_user: dict[str, str], expected: str) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")}
    done = subprocess.run(
        [sys.executable, "-c", _CODE, heaps], capture_output=True, text=True, check=True, env=clean | set_by_user
    )
    assert done.stdout.strip() == expected
