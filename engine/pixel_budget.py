"""How many pixels of large images may be in memory at a time: threads take turns, so that memory has a bound."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

LARGE_PIXELS = 1 << 25
"""From this size on an image waits for its turn: 32 megapixels, 0.1 GB of RGB."""
BUDGET_PIXELS = 1 << 29
"""Pixels of large images that are decoded or restored at a time in one process."""


class PixelBudget:
    """Admits large images while their pixels together stay within a budget; one alone is always admitted.

    Args:
        pixels: the budget.
        large: images of fewer pixels do not count.
    """

    def __init__(self, pixels: int = BUDGET_PIXELS, large: int = LARGE_PIXELS) -> None:
        self._free = self._all = pixels
        self._large = large
        self._changed = threading.Condition()
        self._waiting: set[int] = set()
        self._inside: set[int] = set()

    @contextmanager
    def admit(self, pixels: int) -> Iterator[None]:
        """Inside, the memory for an image of so many pixels may be used. A thread that is inside already goes on: where
        all waited for a second share, none would ever give back its first."""
        own = threading.get_ident()
        if pixels < self._large or own in self._inside:
            yield
            return
        share = min(pixels, self._all)
        with self._changed:
            self._waiting.add(own)
            try:
                while self._free < share:
                    self._changed.wait()
            finally:
                self._waiting.discard(own)
            self._free -= share
            self._inside.add(own)
        try:
            yield
        finally:
            with self._changed:
                self._inside.discard(own)
                self._free += share
                self._changed.notify_all()

    def is_waiting(self, thread: int | None) -> bool:
        """Whether a thread, by its identifier, waits for its turn: that is no time in which it works."""
        return thread in self._waiting


BUDGET = PixelBudget()
"""The process's."""
