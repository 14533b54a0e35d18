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

# Whether a large block that was freed still lies in memory.
_BUFFER = r"""
import ctypes
from isicrt.engine.heap import keep_buffers
done = keep_buffers()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident()
block = libc.malloc(20 << 20)
libc.memset(block, 1, 20 << 20)
libc.free(block)
print(done, resident() - before > 15 << 20)
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
    assert _printed([_CODE, heaps], set_by_user) == expected


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize(
    ("set_by_user", "expected"),
    [
        ({}, "True True"),
        ({"MALLOC_MMAP_THRESHOLD_": "131072"}, "False False"),
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}, "False False"),
    ],
)
def test_buffers_are_kept_for_the_next_image(set_by_user: dict[str, str], expected: str) -> None:
    assert _printed([_BUFFER], set_by_user) == expected


def _printed(code: list[str], set_by_user: dict[str, str]) -> str:
    clean = {n: v for n, v in os.environ.items() if not n.startswith("MALLOC_") and n != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", *code], capture_output=True, text=True, check=True, env=clean | set_by_user
    )
    return done.stdout.strip()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_nobody_uses_is_given_back() -> None:
    code = _BUFFER.replace("import keep_buffers", "import give_back, keep_buffers").replace(
        "print(done,", "kept = resident() - before\ngiven = give_back()\nprint(done, kept > 15 << 20, given,"
    )
    assert _printed([code], {}) == "True True True False"
