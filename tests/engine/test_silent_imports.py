"""No run tells anybody of itself: what libraries would keep to report stays unwritten, and their reporters asleep."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from isicrt.engine import silent_imports
from tests.conftest import REPOSITORY

_RUN = """
import sys
sys.path[:] = {path!r}
from isicrt.engine.segmenter import Segmenter
with Segmenter() as segmenter:
    print(segmenter.runtime.name, segmenter.segment_folder({images!r}, {out!r}).images)
{then}
"""


def _files_after(home: Path, runtime: str, tmp_path: Path, then: str = "") -> set[str]:
    """What a run leaves in its user's home, but for isicrt's own cache."""
    code = _RUN.format(
        path=sys.path, images=str(REPOSITORY / "examples" / "images"), out=str(tmp_path / "o"), then=then
    )
    kept = {
        name: value for name, value in os.environ.items() if name not in ("XDG_CACHE_HOME", silent_imports.ORT_SWITCH)
    }
    own = {"HOME": str(home), "USERPROFILE": str(home), "ISICRT_CPU_RUNTIME": runtime, "CI": ""}
    done = subprocess.run([sys.executable, "-c", code], env=kept | own, capture_output=True, text=True, check=True)
    assert done.stdout.split()[:2] == [f"{runtime}-cpu", "5"]
    files = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    return {name for name in files if not name.startswith(".cache/isicrt/")}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_run_leaves_nothing_to_report(tmp_path: Path, runtime: str) -> None:
    if find_spec(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    home = tmp_path / "home"
    home.mkdir()
    assert _files_after(home, runtime, tmp_path) == set()


def test_openvinos_reporter_can_be_imported_afterwards(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed (extra openvino)")
    if find_spec("openvino_telemetry") is None:
        pytest.skip("its package for reports is not installed")
    home = tmp_path / "home"
    home.mkdir()
    then = "assert 'openvino_telemetry' not in sys.modules; import openvino_telemetry"
    assert _files_after(home, "openvino", tmp_path, then) == set()


def test_a_users_own_setting_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(silent_imports.ORT_SWITCH, raising=False)
    silent_imports.silence_onnxruntime()
    assert os.environ[silent_imports.ORT_SWITCH] == "1"
    monkeypatch.setenv(silent_imports.ORT_SWITCH, "0")
    silent_imports.silence_onnxruntime()
    assert os.environ[silent_imports.ORT_SWITCH] == "0"


@pytest.mark.parametrize("load", [silent_imports.import_onnxruntime, silent_imports.import_openvino])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("raises", [True, False])
def test_a_signal_while_a_native_module_starts_is_handled_afterwards(
    monkeypatch: pytest.MonkeyPatch, load: Callable[[], Any], number: int, raises: bool
) -> None:
    """Handled in its midst, Ctrl-C came out as "ImportError: initialization failed", or the process crashed."""
    steps = []

    def start(name: str) -> str:
        signal.raise_signal(number)
        steps.append("started")
        return name

    def handle(number: int, frame: object) -> None:
        steps.append("handled")
        if raises:
            raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", start)
    before = signal.signal(number, handle)
    try:
        if raises:
            with pytest.raises(KeyboardInterrupt):
                load()
        else:
            assert load() in ("onnxruntime", "openvino")
        assert signal.getsignal(number) is handle
    finally:
        signal.signal(number, before)
    assert steps == ["started", "handled"]
