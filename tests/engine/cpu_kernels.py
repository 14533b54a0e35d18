"""The CUDA kernels compiled for the CPU: each launch is a loop over the blocks and their threads."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from isicrt.engine.gpu_kernels import NAMES, SOURCE, Grid

_BEFORE = """
#include <cmath>
using std::floor;
struct Three { int x, y, z; };
static Three threadIdx, blockIdx, blockDim, gridDim;
#define __global__
#define __device__ static
"""
_C_TYPES = {"P": ("void *", ctypes.c_void_p), "i": ("int", ctypes.c_int)}


class CpuKernels:
    """`isicrt.engine.gpu_kernels.Kernels` on the CPU. With a stream, that gets the work; without one it is done now."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("g++")
        if compiler is None:
            pytest.skip("no g++ to compile the kernels with")
        source = folder / "kernels.cpp"
        source.write_text(_BEFORE + SOURCE + "".join(_launcher(name, types) for name, types in NAMES.items()))
        output = folder / "kernels.so"
        # As nvcc is told: no product may be fused with a sum. No undefined behaviour either: it ends the process.
        options = ["-O2", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Werror", "-fpermissive"]
        sanitise = ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
        command = [compiler, *options, *sanitise, "-o", str(output), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        self._library = ctypes.CDLL(str(output))
        for name, types in NAMES.items():
            function = getattr(self._library, f"launch_{name}")
            function.argtypes = [ctypes.c_int] * 5 + [_C_TYPES[letter][1] for letter in types]

    def launch(self, name: str, grid: Grid, block: tuple[int, int], stream: Any, *arguments: Any) -> None:
        """See `Kernels.launch`."""
        assert block[0] * block[1] <= 1024
        assert min(grid) > 0
        assert max(grid[1:]) <= 65535
        function = getattr(self._library, f"launch_{name}")
        if stream is None:
            function(*grid, *block, *arguments)
        else:
            stream.queue(name, lambda: function(*grid, *block, *arguments))


def _launcher(name: str, types: str) -> str:
    arguments = ", ".join(f"{_C_TYPES[letter][0]} a{n}" for n, letter in enumerate(types))
    parameters = _parameters(name)
    casts = ", ".join(f"({kind})a{n}" for n, kind in enumerate(parameters))
    return f"""
extern "C" void launch_{name}(int grid_x, int grid_y, int grid_z, int block_x, int block_y, {arguments})
{{
    gridDim = {{grid_x, grid_y, grid_z}};
    blockDim = {{block_x, block_y, 1}};
    for (int bz = 0; bz < grid_z; bz++)
        for (int by = 0; by < grid_y; by++) for (int bx = 0; bx < grid_x; bx++)
            for (int ty = 0; ty < block_y; ty++) for (int tx = 0; tx < block_x; tx++) {{
                blockIdx = {{bx, by, bz}};
                threadIdx = {{tx, ty, 0}};
                {name}({casts});
            }}
}}
"""


def _parameters(name: str) -> list[str]:
    """The C types of a kernel's parameters, read from its declaration."""
    declaration = SOURCE.split(f" {name}(", 1)[1].split(")", 1)[0]
    kinds = []
    for parameter in declaration.split(","):
        words = parameter.split()
        kinds.append(" ".join(words[:-1]) + (" *" if words[-1].startswith("*") else ""))
    return kinds
