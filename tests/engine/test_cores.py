"""What is read of the processor."""

from __future__ import annotations

from pathlib import Path

import pytest

from isicrt.engine.cores import has_vnni


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni sse\n", True),
        ("flags\t\t: fpu avx_vnni\n", True),
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("Features\t: fp asimd asimddp\n", False),
        ("", False),
        (None, False),
    ],
)
def test_vnni_is_a_flag_of_the_processor(tmp_path: Path, text: str | None, expected: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if text is not None:
        cpuinfo.write_text(text)
    assert has_vnni(cpuinfo) is expected
