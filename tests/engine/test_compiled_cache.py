"""What is kept between two processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from isicrt.engine.cache_folder import cache_folder
from isicrt.engine.compiled_cache import KEPT_FILES, CompiledCache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CompiledCache:
    monkeypatch.setenv("ISICRT_CACHE", str(tmp_path))
    return CompiledCache("kind")


def test_what_was_kept_comes_back_under_its_key_alone(cache: CompiledCache, tmp_path: Path) -> None:
    assert cache.read("a", 1) is None
    cache.write(b"data", "a", 1)
    assert cache.read("a", 1) == b"data"
    assert cache.read("a", 2) is None
    assert cache.read("a", "1") is None
    assert CompiledCache("another").read("a", 1) is None
    assert [file.suffix for file in (tmp_path / "kind").iterdir()] == [".bin"]


@pytest.mark.parametrize("content", [b"", b"short", bytes(32) + b"data", bytes(40)])
def test_anything_else_is_nothing(cache: CompiledCache, tmp_path: Path, content: bytes) -> None:
    cache.write(b"data", "a")
    (file,) = (tmp_path / "kind").iterdir()
    file.write_bytes(content)
    assert cache.read("a") is None


def test_the_latest_used_are_kept(cache: CompiledCache, tmp_path: Path) -> None:
    for n in range(KEPT_FILES):
        cache.write(b"%d" % n, n)
        newest = max((tmp_path / "kind").iterdir(), key=lambda file: file.stat().st_mtime_ns)
        os.utime(newest, (n, n))
    assert cache.read(0) == b"0"  # used: younger than all others now
    cache.write(b"one more", "one more")
    assert len(list((tmp_path / "kind").iterdir())) == KEPT_FILES
    assert cache.read(1) is None
    assert cache.read(0) == b"0"


def test_a_folder_of_somebody_else_is_read(cache: CompiledCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError

    cache.write(b"data", "a")
    monkeypatch.setattr(os, "utime", refuse)
    assert cache.read("a") == b"data"


def test_a_folder_that_cannot_be_written_is_no_cache(
    cache: CompiledCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kind").write_text("a file")
    cache.write(b"data", "a")
    assert cache.read("a") is None
    monkeypatch.setenv("ISICRT_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("LOCALAPPDATA", "")

    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    cache.write(b"data", "a")
    assert cache.read("a") is None


def test_it_can_be_turned_off(cache: CompiledCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write(b"data", "a")
    monkeypatch.setenv("ISICRT_COMPILED_CACHE", "0")
    assert cache.read("a") is None
    cache.write(b"data", "b")
    assert len(list((tmp_path / "kind").iterdir())) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="of other systems")
def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ISICRT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("ISICRT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "isicrt"
