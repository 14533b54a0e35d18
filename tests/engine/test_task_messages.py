"""Messages between a run and its processes, as they go through a pipe."""

from __future__ import annotations

import os
import pickle
import threading
from typing import Any

import numpy as np
import pytest

from isicrt.engine import task_process


def _through_a_pipe(*messages: object) -> list[Any]:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as answers, os.fdopen(writing, "wb") as questions:

        def send() -> None:
            for message in messages:
                task_process._send(questions, message)

        thread = threading.Thread(target=send)
        thread.start()
        found = [task_process._receive(answers) for _ in messages]
        thread.join(10)
        assert not thread.is_alive()
    return found


@pytest.mark.parametrize("writev", [True, False])
def test_messages_arrive_one_after_the_other_and_what_is_large_beside_them(
    monkeypatch: pytest.MonkeyPatch, writev: bool
) -> None:
    if not writev:  # as on Windows
        monkeypatch.delattr(os, "writev", raising=False)
    numbers = np.random.default_rng(0)
    large = numbers.bytes(300_000)  # more than a pipe holds
    arrays = [numbers.integers(0, 256, (5, n), np.uint8) for n in (0, 1, 70_000)]
    buffers = [pickle.PickleBuffer(large), pickle.PickleBuffer(b""), pickle.PickleBuffer(b"12")]
    first, second, third, fourth = _through_a_pipe(["a", None], arrays, buffers, arrays[2][:, ::2])
    assert first == ["a", None]
    for found, array in zip(second, arrays, strict=True):
        np.testing.assert_array_equal(found, array)
    assert [bytes(view) for view in third] == [large, b"", b"12"]
    np.testing.assert_array_equal(fourth, arrays[2][:, ::2])


def test_more_parts_than_the_system_takes_at_once() -> None:
    parts = [n.to_bytes(2, "little") * (n % 7) for n in range(3 * task_process._MOST_PARTS)]
    (found,) = _through_a_pipe([pickle.PickleBuffer(part) for part in parts])
    assert [bytes(view) for view in found] == parts


@pytest.mark.parametrize(
    "answer", [b"", b"noise\n", b"a line that is longer than the head of a message is\n", b"isicrt\0\1" + bytes(9)]
)
def test_what_is_no_message_is_told_from_one(answer: bytes) -> None:
    reading, writing = os.pipe()
    os.write(writing, answer)
    os.close(writing)
    with os.fdopen(reading, "rb") as answers, pytest.raises((ValueError, EOFError)):
        task_process._receive(answers)


def test_a_message_that_is_cut_off_is_none() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as questions:
        task_process._send(questions, pickle.PickleBuffer(bytes(1000)))
    whole = os.read(reading, 1 << 16)
    os.close(reading)
    for length in (10, 30, len(whole) - 1):
        reading, writing = os.pipe()
        os.write(writing, whole[:length])
        os.close(writing)
        with os.fdopen(reading, "rb") as answers, pytest.raises(EOFError):
            task_process._receive(answers)
