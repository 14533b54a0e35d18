"""Channels between stages: everything arrives, and whoever waits can be freed."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from isicrt.engine.channel import Channel, Ended, Stopped


def _in_threads(*works: Callable[[], object]) -> list[object]:
    """What each function returned or raised, run in a thread each."""
    results: list[object] = [None] * len(works)

    def run(n: int) -> None:
        try:
            results[n] = works[n]()
        except Stopped as error:
            results[n] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    return results


def test_a_channel_carries_everything_and_ends() -> None:
    channel: Channel[int] = Channel(2, producers=2)

    def produce() -> None:
        for n in range(50):
            channel.put(n)
        channel.close()

    *_, first, second = _in_threads(produce, produce, lambda: list(channel), lambda: list(channel))
    assert sorted(first + second) == sorted([*range(50)] * 2)


def test_a_stopped_channel_frees_whoever_waits() -> None:
    full: Channel[int] = Channel(1, producers=1)
    full.put(1)
    empty: Channel[int] = Channel(1, producers=1)
    put, get, *_ = _in_threads(lambda: full.put(2), lambda: next(iter(empty)), full.stop, empty.stop)
    assert isinstance(put, Stopped)
    assert isinstance(get, Stopped)
    with pytest.raises(Stopped):
        next(iter(full))


def test_polling_tells_nothing_yet_from_nothing_more() -> None:
    channel: Channel[int] = Channel(2, producers=1)
    assert channel.poll_all(0, 1) == []
    channel.put(1)
    channel.close()
    assert channel.poll_all(0, 1) == [1]
    with pytest.raises(Ended):
        channel.poll_all(0, 1)


def test_what_is_there_now_is_taken_without_waiting() -> None:
    channel: Channel[int] = Channel(2, producers=1)
    assert channel.take() is None
    channel.put(1)
    assert channel.take() == 1
    channel.close()
    assert channel.take() is None
    channel.stop()
    with pytest.raises(Stopped):
        channel.take()


def test_an_item_wakes_one_consumer_and_room_one_producer(monkeypatch: pytest.MonkeyPatch) -> None:
    channel: Channel[int] = Channel(8, producers=1)
    woken: list[int] = []
    monkeypatch.setattr(threading.Condition, "notify", lambda condition, n=1: woken.append(n))
    monkeypatch.setattr(threading.Condition, "notify_all", lambda condition: pytest.fail("all were woken"))
    channel.put(1)
    channel.put(2)
    assert channel.poll_all(0, 1) == [1]
    assert channel.take() == 2
    assert woken == [1] * 5  # whoever leaves something wakes the next


def test_many_go_in_with_one_turn_as_far_as_there_is_room() -> None:
    channel: Channel[int] = Channel(4, producers=1, wake_at=2)

    def produce() -> None:
        channel.put_all(list(range(11)))
        channel.put_all([])
        channel.close()

    taken = _in_threads(produce, lambda: list(channel.several(lambda: 3)))[1]
    assert isinstance(taken, list)
    assert [n for some in taken for n in some] == list(range(11))
    assert all(1 <= len(some) <= 3 for some in taken)


def test_what_is_put_together_is_shared_by_all_who_wait() -> None:
    channel: Channel[int] = Channel(100, producers=1)
    barrier = threading.Barrier(3)

    def consume() -> list[list[int]]:
        return [some for some in channel.several(lambda: 4) if barrier.wait(10) >= 0]

    def produce() -> None:
        channel.put_all(list(range(12)))
        channel.close()

    *found, _ = _in_threads(consume, consume, consume, produce)  # the barrier falls if one of them is not woken
    assert sorted(n for own in found for some in own for n in some) == list(range(12))  # type: ignore[attr-defined]


def test_producers_that_are_held_up_are_all_let_go() -> None:
    channel: Channel[int] = Channel(2, producers=4)

    def produce() -> None:
        channel.put_all([1, 2, 3])
        channel.close()

    found = _in_threads(produce, produce, produce, produce, lambda: list(channel.several(lambda: 100)))[-1]
    assert sum(len(some) for some in found) == 12  # type: ignore[attr-defined]


def test_all_that_is_there_is_taken_when_the_time_is_up() -> None:
    channel: Channel[int] = Channel(8, producers=1, wake_at=4)
    channel.put_all([1, 2])
    assert channel.poll_all(0, 10) == [1, 2]
    assert channel.poll_all(0, 10) == []
    channel.close()
    with pytest.raises(Ended):
        channel.poll_all(0, 10)


def test_several_are_taken_together_and_some_alone() -> None:
    channel: Channel[int] = Channel(20, producers=1)
    for n in (1, 2, 30, 40, 3, 4, 5, 6):
        channel.put(n)
    channel.close()
    assert list(channel.several(lambda: 3, float, 30)) == [[1, 2], [30], [40], [3, 4, 5], [6]]


def test_what_is_taken_together_does_not_weigh_too_much() -> None:
    channel: Channel[int] = Channel(20, producers=1)
    channel.put_all([4, 5, 1, 1, 9, 2, 12, 1])
    channel.close()
    assert list(channel.several(lambda: 9, float, 10)) == [[4, 5, 1], [1, 9], [2], [12], [1]]


def test_a_consumer_that_is_not_in_a_hurry_is_left_alone_until_enough_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    woken: list[int] = []
    monkeypatch.setattr(threading.Condition, "notify", lambda condition, n=1: woken.append(n))
    channel: Channel[int] = Channel(8, producers=1, wake_at=3)
    for n in (1, 2):
        channel.put(n)
    assert woken == []
    channel.put(3)
    assert woken == [1]


def test_the_end_wakes_a_consumer_that_is_not_in_a_hurry() -> None:
    channel: Channel[int] = Channel(8, producers=1, wake_at=3)
    channel.put(1)
    assert _in_threads(lambda: list(channel), channel.close)[0] == [1]
