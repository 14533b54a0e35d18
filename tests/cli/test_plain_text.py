"""What a terminal is shown, and what may be pasted from it."""

from __future__ import annotations

import os
import shlex

import pytest

from isicrt.cli.plain_text import printable, shell_word


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("läsion ü 1.jpg", "läsion ü 1.jpg"),
        (os.fsdecode(b"l\xe9sion"), "l\\udce9sion"),
        ("red\x1b[31m\n", "red\\x1b[31m\\n"),
        ("1.11\u202fPM\u3000\u200b.png", "1.11\u202fPM\u3000\\u200b.png"),
    ],
)
def test_what_a_terminal_would_obey_or_could_not_show_is_spelled_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("path", ["runs/a/best.pt", "my runs/best.pt", "it's $HOME; rm *.pt", "läsion/best.pt"])
def test_a_shell_takes_a_path_for_one_word(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(os, "name", "posix")
    assert shlex.split(f"isicrt build-engine {shell_word(path)} --fp32") == ["isicrt", "build-engine", path, "--fp32"]
    assert shell_word("runs/a/best.pt") == "runs/a/best.pt"


@pytest.mark.parametrize(
    ("path", "word"),
    [
        (r"C:\runs\best.pt", r"C:\runs\best.pt"),
        (r"C:\my runs\best.pt", r'"C:\my runs\best.pt"'),
        (r"a&b(1)\it's", r'"a&b(1)\it' + "'" + 's"'),
    ],
)
def test_shells_of_windows_know_double_quotes(monkeypatch: pytest.MonkeyPatch, path: str, word: str) -> None:
    monkeypatch.setattr(os, "name", "nt")
    assert shell_word(path) == word
