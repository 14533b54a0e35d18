"""The C library's settings are taken, in a process of its own: they hold for the rest of its life."""

from __future__ import annotations

import platform
import subprocess
import sys


def test_freed_memory_is_kept_where_the_library_is_glibc() -> None:
    code = "from isicrt.trainer.allocator import keep_freed_memory; print(keep_freed_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(platform.libc_ver()[0] == "glibc")
