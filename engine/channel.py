"""What stands between two stages of the pipeline: bounded channels, and the clock of each stage."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from isicrt.engine.outcome import STAGES

T = TypeVar("T")

_LONGEST_WAIT = 0.5
"""Seconds: Windows delivers Ctrl-C to a waiting main thread only when the wait ends."""


class Stopped(Exception):
    """The channel was cut off."""


class Ended(Exception):
    """The channel is empty and every producer has finished."""


class Channel(Generic[T]):
    """A bounded queue from some producers to some consumers, which ends when the last producer closes it.

    Iterating takes items until the end. After `stop` every waiting or later call raises `Stopped`.

    Args:
        capacity: items that wait at most.
        producers: so many times `close` will be called.
        wake_at: a consumer is woken when so many items wait, or when its time is up: one that is not in a hurry then
            costs the others less.
    """

    def __init__(self, capacity: int, producers: int, *, wake_at: int = 1) -> None:
        self._items: deque[T] = deque()
        self._capacity = capacity
        self._producers = producers
        self._wake_at = wake_at
        self._stopped = False
        self._held_up = 0  # producers
        self._lock = threading.Lock()
        # One thread is woken at a time, which wakes the next where it leaves something: where all are, each of many
        # takes Python's lock to find out that it was not meant, and what they do to each other grows with the square of
        # their number.
        self._filled, self._emptied = threading.Condition(self._lock), threading.Condition(self._lock)

    def put(self, item: T) -> None:
        """Append an item; waits while the channel is full."""
        self.put_all((item,))

    def put_all(self, items: Sequence[T]) -> None:
        """Append items in their order, with one turn of the lock where there is room for all; waits where there is
        not."""
        first = 0
        with self._lock:
            while first < len(items):
                while self._is_full() and not self._stopped:
                    self._held_up += 1
                    self._emptied.wait()
                    self._held_up -= 1
                if self._stopped:
                    raise Stopped
                room = self._capacity - len(self._items)
                self._items.extend(items[first : first + room])
                first += room
                if self._has_enough():
                    self._filled.notify()
            if self._held_up and not self._is_full():  # of several who wait, each wakes the next while there is room
                self._emptied.notify()

    def poll_all(self, seconds: float, most: int) -> list[T]:
        """Take up to `most` items: what is there when `wake_at` have come, or after so long. Raises `Ended` after the
        last one."""
        with self._lock:
            self._wait(seconds)
            return self._take(most)

    def take(self) -> T | None:
        """Take an item if there is one now. Raises `Stopped`, and never `Ended`."""
        if not self._items and not self._stopped:  # without the lock: who looks often takes nobody's time
            return None
        with self._lock:
            if self._stopped:
                raise Stopped
            return self._next(1)[0] if self._items else None

    def left(self) -> list[T]:
        """Take all that was there when it was cut off."""
        with self._lock:
            items = list(self._items)
            self._items.clear()
            return items

    def several(
        self, most: Callable[[], int], weight: Callable[[T], float] | None = None, heaviest: float = math.inf
    ) -> Iterator[list[T]]:
        """Take what is there until the end: up to `most()` items at a time, which weigh no more than `heaviest`
        together. An item that weighs as much comes by itself."""
        while True:
            try:
                with self._lock:
                    self._wait(_LONGEST_WAIT)
                    items = self._take(most(), weight, heaviest)
            except Ended:
                return
            if items:
                yield items

    def _wait(self, seconds: float) -> None:
        if not self._has_enough() and self._producers and not self._stopped:
            self._filled.wait(seconds)

    def _take(self, most: int, weight: Callable[[T], float] | None = None, heaviest: float = math.inf) -> list[T]:
        if self._stopped:
            raise Stopped
        if not self._items and not self._producers:
            raise Ended
        return self._next(most, weight, heaviest)

    def _next(self, most: int, weight: Callable[[T], float] | None = None, heaviest: float = math.inf) -> list[T]:
        waiting = self._items
        items: list[T] = []
        left = heaviest
        while waiting and len(items) < most:
            if weight is not None:
                left -= weight(waiting[0])
                if items and left < 0:
                    break
            items.append(waiting.popleft())
        if items:
            self._emptied.notify()
        if waiting and self._has_enough():
            self._filled.notify()
        return items

    def _has_enough(self) -> bool:
        """Whether there is something to wake a consumer for."""
        return len(self._items) >= self._wake_at or self._is_full()

    def _is_full(self) -> bool:
        return len(self._items) >= self._capacity

    def __iter__(self) -> Iterator[T]:
        for items in self.several(lambda: 1):
            yield items[0]

    def close(self) -> None:
        """One producer has finished."""
        with self._lock:
            self._producers -= 1
            self._filled.notify_all()

    def stop(self) -> None:
        """Cut off producers and consumers, now."""
        with self._lock:
            self._stopped = True
            self._filled.notify_all()
            self._emptied.notify_all()


class BusyTime:
    """Seconds that threads spent working in each stage."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time inside to a stage, also when it raises."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - started)

    def add(self, name: str, seconds: float, *, ago: float = 0.0) -> None:
        """Adds time to a stage, which ended `ago` seconds before: that is for whoever draws when it was."""
        with self._lock:
            self.seconds[name] += seconds
