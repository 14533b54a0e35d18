"""The kernels of `gpu_kernels` as PTX, which the driver itself turns into code for its GPU: no nvcc is needed there.

python -m isicrt.engine.gpu_ptx     # with nvcc on the PATH: writes kernels.ptx again, after a change of the source
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

PTX_FILE = Path(__file__).with_name("kernels.ptx")
ARCHITECTURE = "compute_75"
"""The oldest that TensorRT 10.12 and later run on; newer GPUs take it too."""
PTX_VERSION = "6.3"
"""The oldest that knows that architecture, of CUDA 10. nvcc writes its own, which a driver for an older CUDA refuses
unread; `ptxas` makes the same code with either."""
_FIRST_LINE = "// isicrt kernels, source and options: SHA-256 "


def read_ptx(source: str, options: Sequence[str]) -> bytes | None:
    """PTX as the driver takes it, with a zero at the end; None where the file is not of this source and options."""
    try:
        text = PTX_FILE.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return text.encode() + b"\0" if text.startswith(_FIRST_LINE + fingerprint(source, options)) else None


def fingerprint(source: str, options: Sequence[str]) -> str:
    """Of what the PTX was compiled from."""
    return hashlib.sha256("\0".join((source, *options)).encode()).hexdigest()


def compile_ptx(source: str, options: Sequence[str], nvcc: str = "nvcc") -> str:
    """The text of `PTX_FILE`. Raises OSError and CalledProcessError where nvcc is missing or refuses."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernels.cu").write_text(source)
        command = [nvcc, *options, "--ptx", f"-arch={ARCHITECTURE}", "-o", "kernels.ptx", "kernels.cu"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
        text = (Path(folder) / "kernels.ptx").read_text("ascii")
    text = re.sub(r"^//.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\.version (.*)$", rf".version {PTX_VERSION} // nvcc: \1", text, flags=re.MULTILINE)
    return f"{_FIRST_LINE}{fingerprint(source, options)}\n{text.strip()}\n"


if __name__ == "__main__":
    from isicrt.engine.gpu_kernels import OPTIONS, SOURCE

    PTX_FILE.write_text(compile_ptx(SOURCE, OPTIONS))
